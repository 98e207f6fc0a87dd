"""Adapters on checkpoints that were quantised by other tools: GPTQ, AWQ, torchao and compressed-tensors."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quantised_checkpoints
import torch
from contract import CASES, MOVED_BY_PASSES, config, logits, shake, tokens
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.core import weights
from llm_adapters_lab.core.hooks import MARKS
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.quantized import LIBRARIES, scheme
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import BadSpec, CannotInject, CannotMerge, LabError, ModelUnavailable, WrongBase
from llm_adapters_lab.models import loading, random_models
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.forecast.size import size
from llm_adapters_lab.runs.preflight import check_spec
from llm_adapters_lab.runs.preview import dry_run
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec

SPEC: dict[str, Any] = {
    "adapter": {"type": "lora", "rank": 4, "at": "attn+mlp"},
    "data": {"task": "mini-math", "rows": 24, "validation": 8},
    "train": {"batch": 8, "max_steps": 2, "learning_rate": 1e-2},
    "eval": {"tasks": ["mini-addsub"], "rows": 3, "max_new_tokens": 4},
}


def among(*kinds: str) -> pytest.MarkDecorator:
    """Parametrise over kinds of checkpoints; those without their libraries are skipped."""
    params = []
    for kind in kinds:
        needed = LIBRARIES[kind.partition(":")[0]]
        absent = [name for name in needed if importlib.util.find_spec(name) is None]
        marks = [pytest.mark.skipif(bool(absent), reason=f"{' and '.join(absent)} not installed")]
        if "gptqmodel" in needed:  # it warns of transformers, and of Python itself
            marks.append(pytest.mark.filterwarnings("ignore"))
        params.append(pytest.param(kind, marks=marks))
    return pytest.mark.parametrize("kind", params)


INT8, FP8 = "torchao:Int8WeightOnlyConfig", "torchao:Float8WeightOnlyConfig"
PACKED = ["gptq", "awq", INT8, FP8]
UNPACKED = [f"compressed-tensors:{scheme}" for scheme in ("W4A16", "W8A16", "W8A8", "FP8_DYNAMIC")]
Made = Callable[[str], tuple[Path, dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a checkpoint of a kind, and the weights that it represents; each is written once."""
    found: dict[str, tuple[Path, dict[str, torch.Tensor]]] = {}

    def get(kind: str) -> tuple[Path, dict[str, torch.Tensor]]:
        if kind not in found:
            folder = tmp_path_factory.mktemp("checkpoint")
            found[kind] = folder, quantised_checkpoints.write(kind, folder)
        return found[kind]

    return get


@pytest.fixture(scope="module")
def loaded(made: Made) -> Callable[[str], Any]:
    """Return a model that the tests share; each leaves it unchanged, which is what they test."""
    found: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in found:
            found[kind] = loading.load_base(str(made(kind)[0]), "fp32").model
        return found[kind]

    return get


def bits(model: Any) -> dict[str, torch.Tensor]:
    """Return copies of all stored tensors, including the components of packed ones."""
    found = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        inner = getattr(tensor, "__tensor_flatten__", None)
        parts = {part: getattr(tensor, part) for part in inner()[0]} if inner else {"": tensor}
        found |= {f"{name} {part}": t.detach().clone() for part, t in parts.items()}
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(t.view(torch.uint8) if t.dim() else t, other[name].view(torch.uint8) if t.dim() else other[name])
        for name, t in one.items()
    )


@among(*PACKED, UNPACKED[0])
@pytest.mark.parametrize("case", CASES)
def test_start_gradients_state_and_eject(case: str, kind: str, loaded: Callable[[str], Any]) -> None:
    model, ids = loaded(kind), tokens()
    before, plain = bits(model), logits(model, ids)
    if case == "full-fine-tuning" and kind in PACKED:
        with pytest.raises(CannotInject, match="'full-fine-tuning' trains the parameters of .*, which are quantised"):
            inject(model, config(case))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        return
    injection = inject(model, config(case))
    assert all(p.dtype == torch.float32 for p in injection.parameters())
    if get_adapter(CASES[case]["type"]).cls.identity:
        assert torch.allclose(logits(model, ids), plain, atol=1e-6)
    shake(injection)
    changed = logits(model, ids)
    assert not torch.allclose(changed, plain, atol=1e-6)
    model.train()
    try:
        model(input_ids=ids).logits.square().mean().backward()
    finally:
        model.eval()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in injection.parameters())
    own = {id(p) for p in injection.parameters()}
    assert all(p.grad is None for p in model.parameters() if id(p) not in own)
    changed = logits(model, ids) if case in MOVED_BY_PASSES else changed
    assert torch.equal(logits(model, ids), changed)

    kept = injection.state_dict()
    injection.eject()
    assert torch.equal(logits(model, ids), plain)
    assert same(bits(model), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(set(MARKS) & set(m.__dict__) for m in model.modules())
    again = inject(model, config(case))
    again.load_state_dict(kept)
    assert torch.equal(logits(model, ids), changed)
    again.eject()


@among(*PACKED)
@pytest.mark.parametrize("case", ["lora", "dora", "krona", "ia3", "bitfit", "hydra", "norm-tuning"])
def test_merging_is_rejected_or_dequantises(case: str, kind: str, made: Made, tmp_path: Path) -> None:
    found, ids = loading.load_base(str(made(kind)[0]), "fp32"), tokens()
    model, before = found.model, bits(found.model)
    injection = inject(model, config(case, **({"at": "q,v"} if case == "bitfit" else {})))
    shake(injection)
    hooked = logits(model, ids)
    if case in ("bitfit", "norm-tuning"):  # these do not change packed weights
        assert torch.allclose(logits(merge(injection), ids), hooked, atol=1e-3 if case == "bitfit" else 1e-5)
        assert scheme(model) == kind.partition(":")[0]
        return
    with pytest.raises(CannotMerge, match=r"is quantised, .*dequantize=True"):
        merge(injection)
    assert torch.equal(logits(model, ids), hooked)
    merged = merge(injection, dequantize=True)
    assert torch.allclose(logits(merged, ids), hooked, atol=1e-5)
    assert scheme(merged) == "none" and before.keys() != bits(merged).keys()
    plain = dict(quantised_checkpoints.model().named_modules())
    assert {path: type(m) for path, m in merged.named_modules()} == {path: type(m) for path, m in plain.items()}
    merged.save_pretrained(tmp_path)
    found.tokenizer.save_pretrained(tmp_path)
    assert torch.allclose(logits(loading.load_base(str(tmp_path), "fp32").model, ids), hooked, atol=1e-5)


@among("gptq", "awq")
def test_weights_are_read_as_the_format_defines(kind: str, made: Made, loaded: Callable[[str], Any]) -> None:
    known, model = made(kind)[1], loaded(kind)
    assert len(known) == 14
    for path, weight in known.items():
        assert torch.equal(weights.read(model.get_submodule(path)), weight)
        module = quantised_checkpoints.model().get_submodule(path)
        assert (weight - module.weight).norm() < 0.1 * module.weight.norm()


@among(*PACKED, *UNPACKED)
def test_predicted_sizes_match_the_stored_bytes(kind: str, made: Made, loaded: Callable[[str], Any]) -> None:
    model, found = loaded(kind), size(str(made(kind)[0]), None, "fp32")
    held = sum(t.numel() * t.element_size() for t in bits(model).values())
    assert found.weights == pytest.approx(held, rel=0.05)
    assert (
        weights.num_parameters(model)
        == found.base
        == sum(p.numel() for p in quantised_checkpoints.model().parameters())
    )


@among(*UNPACKED)
def test_compressed_tensors_are_a_plain_base(kind: str, made: Made, tmp_path: Path) -> None:
    found, ids = loading.load_base(str(made(kind)[0]), "fp32"), tokens()
    model, dense = found.model, logits(quantised_checkpoints.model(), ids)
    assert scheme(model) == "none" and not any(weights.is_quantized(m) for m in model.modules())
    plain = logits(model, ids)
    assert 0 < (plain - dense).abs().max() < 0.2 * dense.abs().max()
    model.save_pretrained(tmp_path)
    found.tokenizer.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert torch.equal(logits(loading.load_base(str(tmp_path), "fp32").model, ids), plain)
    with pytest.raises(BadSpec, match="already quantised by compressed-tensors and cannot be loaded as int8"):
        loading.load_base(str(made(kind)[0]), quantization="int8")


@among("gptq", "awq", INT8, UNPACKED[0])
def test_a_run_on_a_checkpoint(kind: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = kind.partition(":")[0]
    named = "none" if kind in UNPACKED else method
    spec = RunSpec.parse({**SPEC, "base": str(made(kind)[0]), "dtype": "fp32"})
    capsys.readouterr()
    planned = dry_run(spec, tmp_path)
    assert planned.quantization == named and planned.memory is not None
    record = run(spec, root=tmp_path)
    assert record.done
    assert planned.base_parameters == record.summary["base_parameters"] == size(spec.base, None).base
    assert planned.weights == pytest.approx(planned.memory.weights, rel=0.01)
    assert len(list(record.predictions())) == 3
    assert not capsys.readouterr().out  # a program may parse it
    if named != "none":
        assert set(LIBRARIES[method]) <= set(record.summary["environment"])
    assert json.loads((record.folder / "adapter" / "adapter.json").read_text())["quantization"] == named
    base, injection = restore(record)
    assert injection is not None and scheme(base.model) == named
    hooked, out = logits(base.model, tokens()), tmp_path / "merged"
    if named != "none":
        refused = CliRunner().invoke(app, ["merge", str(record.folder), str(out)])
        assert refused.exit_code == 2 and "--dequantize" in refused.output and not out.exists()
    words = ["merge", str(record.folder), str(out), *(["--dequantize"] if named != "none" else [])]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert torch.allclose(logits(loading.load_base(str(out), "fp32").model, tokens()), hooked, atol=1e-4)


@among("gptq", "awq", UNPACKED[0])
def test_an_adapter_knows_its_checkpoint(kind: str, made: Made, tmp_path: Path) -> None:
    injection = inject(loading.load_base(str(made(kind)[0]), "fp32").model, config("lora"))
    shake(injection)
    save_adapter(injection, tmp_path / "adapter", "it")
    same_one = loading.load_base(str(made(kind)[0]), "fp32").model
    again = load_adapter(same_one, tmp_path / "adapter")
    assert torch.equal(logits(same_one, tokens()), logits(injection.model, tokens()))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), injection.parameters(), strict=True))
    other = shutil.copytree(made(kind)[0], tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    (changed,) = [name for name in tensors if "layers.1.mlp.up_proj" in name and "scale" in name]
    save_file(tensors | {changed: tensors[changed] * 1.1}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        WrongBase, match=r"another base: model\.layers\.1\.mlp\.up_proj\.weight has other values\. Load"
    ):
        load_adapter(loading.load_base(str(other), "fp32").model, tmp_path / "adapter")


@among("gptq", "awq")
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_model_that_was_evaluated_can_still_be_trained(kind: str, dtype: Any, made: Made) -> None:
    """In 16 bits, gptqmodel would repack the weights for evaluation, and no longer propagate gradients."""
    model, ids = loading.load_base(str(made(kind)[0]), dtype).model, tokens()
    before, plain = bits(model), logits(model, ids)
    assert plain.dtype == loading.DTYPES[dtype]
    assert same(bits(model), before)
    injection = inject(model, config("lora", at="attn+mlp"))
    model.train()
    model(input_ids=ids).logits.float().square().mean().backward()
    assert all(a.B.grad is not None and a.B.grad.abs().sum() > 0 for a in injection.adapters.values())
    injection.eject()
    assert torch.equal(logits(model.eval(), ids), plain)


@among("torchao:Int8DynamicActivationInt8WeightConfig")
def test_a_base_that_does_not_propagate_gradients_is_rejected(kind: str, made: Made) -> None:
    model, ids = loading.load_base(str(made(kind)[0]), "fp32").model, tokens()
    plain = logits(model, ids)
    with pytest.raises(CannotInject, match=r"quantised in a way \(torchao\) that does not propagate gradients"):
        inject(model, config("lora"))
    assert torch.equal(logits(model, ids), plain)


METHODS = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


@pytest.mark.parametrize("kind", METHODS)
def test_a_missing_library_is_named_before_anything_is_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    quantised_checkpoints.model().save_pretrained(base)
    (base / "model.safetensors").unlink()
    quantised_checkpoints.describe(base, METHODS[kind])
    Blueprint("nano").tokenizer.save_pretrained(base)
    for library in LIBRARIES[kind]:
        monkeypatch.setitem(sys.modules, library, None)
    needed = " and ".join(LIBRARIES[kind]).replace("_", "-")
    said = (
        rf"is quantised by {kind}, and that needs {needed}, which (is|are) not installed\. Install with pip install \S"
    )
    with pytest.raises(BadSpec, match=said):
        loading.load_base(str(base))
    spec = RunSpec.parse({**SPEC, "base": str(base)})
    for attempt in (run, dry_run):
        with pytest.raises(BadSpec, match=said):
            attempt(spec, root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("kind", "least", "most"), [("gptq", 0.125, 0.135), ("awq", 0.125, 0.135), ("torchao", 0.25, 0.26)]
)
def test_the_size_of_a_large_checkpoint_is_read_from_its_configuration(
    kind: str, least: float, most: float, tmp_path: Path
) -> None:
    fields = random_models.tiny_config("tiny:llama").to_dict() | {"hidden_size": 4096, "intermediate_size": 16384}
    fields |= {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 128}
    for name, more in (("plain", {}), ("packed", {"quantization_config": METHODS[kind]})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(fields | more), encoding="utf-8")
    plain, packed = (size(str(tmp_path / name), None, "fp32").weights for name in ("plain", "packed"))
    assert least < packed / plain < most


def described(folder: Path, quantization: Any) -> str:
    """Write a plain checkpoint whose config declares it quantised, and return its path."""
    quantised_checkpoints.model().save_pretrained(folder)
    quantised_checkpoints.describe(folder, quantization)
    Blueprint("nano").tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "quip", "bits": 2},
        {"quant_method": ["gptq"]},
        [1, 2],
    ],
    ids=["unknown", "wrong type", "no fields"],
)
def test_an_invalid_quantization_config_is_rejected_before_anything_is_read(quantization: Any, tmp_path: Path) -> None:
    base = described(tmp_path / "base", quantization)
    (tmp_path / "base" / "model.safetensors").unlink()
    spec = RunSpec.parse({**SPEC, "base": base})
    for attempt in (run, dry_run):
        with pytest.raises(
            LabError, match=r"quantization_config in config\.json of .* cannot be used|could not be loaded"
        ):
            attempt(spec, root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": "four", "group_size": [1]},
        {"quant_method": "torchao", "quant_type": "int4_weight_only"},
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": None}}},
    ],
    ids=["bits", "an older form", "no data"],
)
def test_a_size_is_predicted_for_any_configuration(quantization: Any, tmp_path: Path) -> None:
    assert size(described(tmp_path / "base", quantization), None).weights > 0


def test_undeclared_packed_weights_are_not_replaced_by_random_ones(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    quantised_checkpoints.write("gptq", base)
    config = json.loads((base / "config.json").read_text())
    del config["quantization_config"]
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailable, match=r"lack model\.layers\.0\.mlp\.down_proj\.weight and 13 more"):
        loading.load_base(str(base))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_plain_weights_declared_as_packed_are_rejected(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    said = METHODS["nf4"] if kind == "nf4" else {"quant_method": "bitsandbytes", "load_in_8bit": True}
    with pytest.raises(BadSpec, match=r"bitsandbytes quantised it, but the weight of \S+ is not"):
        loading.load_base(described(tmp_path / "base", said))


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (METHODS["torchao"], "cannot shard"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "loses its scales"),
    ],
    ids=["torchao", "int8"],
)
def test_checkpoints_that_cannot_be_sharded_are_rejected_by_their_format(
    quantization: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RunSpec.parse({**SPEC, "base": described(tmp_path / "base", quantization)})
    for name, value in {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadSpec, match=expected):
        check_spec(spec)
