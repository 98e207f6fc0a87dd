"""Adapters on bases that bitsandbytes quantises to 8 and 4 bits keep their promises for plain bases."""

import copy
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from contract import CASES, MERGES, MOVED_BY_PASSES, config, logits, shake, tokens
from fast_path_cases import allocated, gradients, samples
from quantised_cases import SMALL
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.core import weights
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.composition import merge_mix, mix
from llm_adapters_lab.core.hooks import MARKS
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.quantized import scheme
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import BadSpec, CannotInject, CannotMerge, WrongBase
from llm_adapters_lab.events import FellBack, Step
from llm_adapters_lab.inspection.weight_metrics import norms
from llm_adapters_lab.models import loading, quantization, random_models
from llm_adapters_lab.models.source import NANO
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.forecast.memory import Memory, estimate
from llm_adapters_lab.runs.forecast.size import size
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training.compilation import CompiledLayers
from llm_adapters_lab.training.fast_paths import choose_fast_paths
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import FastPaths
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import set_gradient_checkpointing

pytest.importorskip("bitsandbytes", reason="bitsandbytes, of the extra `quantized`, is not installed")
SCHEMES = pytest.mark.parametrize("how", ["nf4", "nf4-double", "int8"])
PLAIN_CUTS = FastPaths()
PLAIN: dict[str, Any] = {"label_head": False, "packing": False, "share_prefix": False}
MATRIX = pytest.mark.parametrize(
    ("family", "how"), [("llama", "nf4"), ("llama", "int8"), ("gpt2", "nf4"), ("bloom", "int8"), ("opt", "nf4-double")]
)
ALL = pytest.mark.parametrize("case", CASES)


WIDE: dict[str, dict[str, int]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 128},
    "gpt2": {"n_embd": 64},
    "bloom": {"hidden_size": 64},
    "opt": {"hidden_size": 64, "ffn_dim": 128, "word_embed_proj_dim": 64},
}


@cache
def wide(family: str) -> Any:
    """Return a tiny model whose rows are whole blocks, which 4 bits on a CPU require."""
    fields = random_models.tiny_config(f"tiny:{family}").to_dict() | {"head_dim": 16} | WIDE[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**fields)).eval()


def quantised(family: str, how: Any, dtype: torch.dtype = torch.float32) -> Any:
    with TemporaryDirectory() as folder:
        wide(family).save_pretrained(folder)
        options = {"quantization_config": quantization.settings(how, dtype)} if how != "none" else {}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).eval()
    quantization.pin_packing(model)
    return model


@cache
def base(family: str, how: str) -> Any:
    """Return a base that the tests share; each leaves it unchanged, which is what they test."""
    return quantised(family, how)


def bits(model: Any) -> list[torch.Tensor]:
    """Return the packed weights as stored in memory; a state dict may convert them."""
    return [m.weight.data.clone() for m in model.modules() if weights.is_quantized(m)]


def state(model: Any) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


@MATRIX
@ALL
def test_start_gradients_state_and_eject(case: str, family: str, how: str) -> None:
    model, ids = base(family, how), tokens()
    packed, before, plain = bits(model), state(model), logits(model, ids)
    assert len(packed) > 7
    assert any(key.endswith(("absmax", "SCB")) for key in before)
    if case == "full-fine-tuning":
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
    assert changed.dtype == plain.dtype
    assert not torch.allclose(changed, plain, atol=1e-6)
    with injection.disabled():
        assert torch.equal(logits(model, ids), plain)

    model.train()
    try:
        model(input_ids=ids).logits.square().mean().backward()
    finally:
        model.eval()
    own = {id(p) for p in injection.parameters()}
    for name, p in model.named_parameters():
        if id(p) in own:
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name
        else:
            assert p.grad is None, name
    changed = logits(model, ids) if case in MOVED_BY_PASSES else changed
    assert torch.equal(logits(model, ids), changed)

    kept = injection.state_dict()
    injection.eject()
    assert torch.equal(logits(model, ids), plain)
    assert all(torch.equal(a, b) for a, b in zip(bits(model), packed, strict=True))
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(set(MARKS) & set(m.__dict__) for m in model.modules())

    again = inject(model, config(case))
    again.load_state_dict(kept)
    assert torch.equal(logits(model, ids), changed)
    again.eject()


@MATRIX
@pytest.mark.parametrize("case", [case for case in MERGES if case != "full-fine-tuning"])
def test_merging_is_rejected_or_dequantises(case: str, family: str, how: str) -> None:
    model, ids = copy.deepcopy(base(family, how)), tokens()
    injection = inject(model, config(case))
    shake(injection)
    before, hooked = state(model), logits(model, ids)
    homeless = case == "bitfit" or (case == "adapter-bias" and family == "llama")
    if case in ("norm-tuning", "trainable-tokens"):  # norms and embeddings are not quantised, so they can be merged
        assert torch.allclose(logits(merge(injection), ids), hooked, atol=1e-6)
        assert scheme(model) == how
        return
    if homeless and family == "llama":
        with pytest.raises(CannotMerge, match="has no bias"):
            merge(injection, dequantize=True)
    elif case != "bitfit":
        with pytest.raises(CannotMerge, match=r"is quantised, .*dequantize=True"):
            merge(injection)
    assert torch.equal(logits(model, ids), hooked)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if homeless and family == "llama":
        return
    # int8 also rounds activations, which a dense model does not.
    model.train()
    for module in model.modules():
        module.training = "Linear8bit" in type(module).__name__
    exact = logits(model, ids)
    merged = merge(injection, dequantize=True)
    assert torch.allclose(logits(merged.eval(), ids), exact, atol=2e-5)
    assert set(merged.state_dict()) == set(wide(family).state_dict())
    assert [type(m) for m in merged.modules()] == [type(m) for m in wide(family).modules()]
    assert scheme(merged) == "none"
    assert not any(weights.is_quantized(m) for m in merged.modules())


def test_a_mix_is_not_merged_into_packed_weights() -> None:
    model, ids = base("llama", "nf4"), tokens()
    for name in ("one", "two"):
        shake(inject(model, config("lora"), name=name))
    mix(model, {"one": 0.5, "two": 0.5})
    mixed = logits(model, ids)
    with pytest.raises(CannotMerge, match="is quantised"):
        merge_mix(model)
    assert torch.equal(logits(model, ids), mixed)
    for injection in list(model.__dict__["injections"].values()):
        injection.eject()


@SCHEMES
def test_views_read_the_dequantised_weight(how: str) -> None:
    model, plain = base("llama", how), wide("llama")
    first, second = inject(model, config("lora")), inject(plain, config("lora"))
    shake(first)
    second.load_state_dict(first.state_dict())
    try:
        found, dense = norms(first), norms(second)
        assert found.keys() == dense.keys()
        for key, mine in found.items():
            assert mine.change == pytest.approx(dense[key].change, rel=1e-4)
            assert mine.relative == pytest.approx(dense[key].relative, rel=0.1)
    finally:
        first.eject()
        second.eject()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_fp32_adapters_on_a_half_precision_base(dtype: Any) -> None:
    model, ids = quantised("llama", "nf4", loading.DTYPES[dtype]), tokens()
    for case in ("lora", "series", "dora", "ia3", "prefix"):
        injection = inject(model, config(case))
        assert all(p.dtype == torch.float32 for p in injection.parameters())
        found = model(input_ids=ids).logits
        assert found.dtype == loading.DTYPES[dtype]
        found.float().square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in injection.parameters())
        injection.eject()


@SCHEMES
def test_predicted_bytes_match_the_stored_bytes(how: Any) -> None:
    held: dict[int, int] = {}
    for module in loading.load_base("nano", quantization=how).model.modules():
        for p in module.parameters(recurse=False):
            parts = [p.data, getattr(p, "SCB", None)]
            if (found := getattr(p, "quant_state", None)) is not None:
                parts += [found.absmax, found.code]
                parts += [found.state2.absmax, found.state2.code, found.offset] if found.nested else []
            held |= {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in parts if t is not None}
    # All weights have the same codes; bitsandbytes may store them once or per weight.
    assert size("nano", None, quantization=how).weights == pytest.approx(sum(held.values()), rel=0.06)
    assert size("nano", None, quantization=how).weights < 0.3 * size("nano", None).weights


@pytest.mark.parametrize("how", ["nf4", "int8"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_estimate_matches_the_allocated_memory(how: str, checkpointed: bool) -> None:
    rows = samples(8, least=40)
    plan = {"batch": 8, "max_steps": 1, "gradient_checkpointing": checkpointed}
    spec = RunSpec.parse({"base": "nano", "quantization": how, "adapter": "lora", "train": plan})
    found = estimate(spec, rows)
    assert isinstance(found, Memory)
    model = loading.load_base("nano", quantization=spec.quantization).model
    injection = inject(model, spec.adapter)
    cuts, _ = choose_fast_paths(model, injection, rows, spec.train)
    model.train()
    if checkpointed:
        set_gradient_checkpointing(model, True)
    allocated(model, cuts, rows[:2])
    model.zero_grad()
    assert found.step == pytest.approx(allocated(model, cuts, rows), rel=0.15)


@pytest.mark.parametrize(("how", "far"), [("nf4", 1e-5), ("nf4-double", 1e-5), ("int8", 1e-3)])
@pytest.mark.parametrize("plan", [{}, {"gradient_checkpointing": True}], ids=["all", "checkpointed"])
def test_fast_paths_train_to_the_same_losses(how: Any, far: float, plan: dict[str, Any]) -> None:
    rows = samples(8, least=20)

    def losses(**fields: Any) -> list[float]:
        model = loading.load_base("nano", quantization=how).model
        torch.manual_seed(0)
        injection = inject(model, config("lora"))
        events = list(train(model, injection, rows, TrainSpec(batch=8, max_steps=3, learning_rate=1e-2, **fields)))
        assert not any(isinstance(event, FellBack) for event in events)
        return [event.loss for event in events if isinstance(event, Step)]

    assert losses(**plan) == pytest.approx(losses(**PLAIN), abs=far)


@pytest.mark.parametrize("how", ["nf4", "int8"])
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning", "ignore::DeprecationWarning")
def test_compiled_layers_compute_the_same(how: Any) -> None:
    model, rows = quantised("llama", how).train(), samples(4)
    injection = inject(model, config("lora"))
    shake(injection)
    loss, slopes = gradients(model, injection, PLAIN_CUTS, rows)
    with CompiledLayers(model, injection.anatomy, backend="eager"):
        found, others = gradients(model, injection, PLAIN_CUTS, rows)
    assert found == pytest.approx(loss, abs=1e-5)
    assert torch.allclose(others, slopes, atol=1e-5)


def test_a_run_on_a_quantised_base(tmp_path: Path) -> None:
    spec = RunSpec.parse({**SMALL, "quantization": "nf4"})
    record = run(spec, root=tmp_path)
    assert record.done
    assert record.summary["base_parameters"] == size("nano", None).base
    assert json.loads((record.folder / "adapter" / "adapter.json").read_text())["quantization"] == "nf4"
    loaded, injection = restore(record)
    assert scheme(loaded.model) == "nf4"
    assert injection is not None
    ids, hooked = tokens(), logits(loaded.model, tokens())
    assert record.summary["hashes"] == run(spec, root=tmp_path, fresh=True).summary["hashes"]

    for source in (str(record.folder), str(record.folder / "adapter")):
        out = tmp_path / Path(source).name / "merged"
        result = CliRunner().invoke(app, ["merge", source, str(out)])
        assert result.exit_code == 2
        assert "--dequantize" in result.output
        assert not out.exists()
        assert CliRunner().invoke(app, ["merge", source, str(out), "--dequantize"]).exit_code == 0
        merged = loading.load_base(str(out)).model
        assert scheme(merged) == "none"
        assert torch.allclose(logits(merged, ids), hooked, atol=1e-4)
        assert not torch.allclose(logits(loading.load_base("nano").model, ids), hooked, atol=1e-1)


@pytest.mark.parametrize("how", ["none", "int8", "nf4-double"])
def test_an_adapter_knows_how_its_base_was_quantised(how: Any, tmp_path: Path) -> None:
    model = quantised("llama", "nf4")
    injection = inject(model, config("lora"))
    shake(injection)
    save_adapter(injection, tmp_path, "tiny:llama")
    other = quantised("llama", how)
    with pytest.raises(WrongBase, match=f"quantization: nf4, and this one has {how}"):
        load_adapter(other, tmp_path)
    assert "injections" not in other.__dict__
    load_adapter(other, tmp_path, check_base=False)
    same = load_adapter(quantised("llama", "nf4"), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), injection.parameters(), strict=True))


def test_another_base_in_four_bits_is_detected(tmp_path: Path) -> None:
    save_adapter(
        inject(loading.load_base("nano", quantization="nf4").model, config("lora")), tmp_path / "adapter", "nano"
    )
    changed = loading.load_base("nano").model
    with torch.no_grad():
        changed.model.layers[3].mlp.up_proj.weight.mul_(1.1)
    changed.save_pretrained(tmp_path / "other")
    loading.load_base("nano").tokenizer.save_pretrained(tmp_path / "other")
    other = loading.load_base(str(tmp_path / "other"), quantization="nf4").model
    with pytest.raises(WrongBase, match=r"layers\.3\.mlp\.up_proj\.weight has other values"):
        load_adapter(other, tmp_path / "adapter")


def test_a_checkpoint_that_is_already_quantised(tmp_path: Path) -> None:
    nano = loading.load_base("nano", quantization="nf4")
    nano.model.save_pretrained(tmp_path)
    nano.tokenizer.save_pretrained(tmp_path)
    plain = logits(nano.model, tokens())
    for asked in ("none", "nf4"):
        found = loading.load_base(str(tmp_path), quantization=asked).model
        assert scheme(found) == "nf4"
        assert torch.equal(logits(found, tokens()), plain)
    with pytest.raises(BadSpec, match="already quantised by nf4 and cannot be loaded as int8"):
        loading.load_base(str(tmp_path), quantization="int8")
    with pytest.raises(BadSpec, match="already quantised"):
        run(RunSpec.parse({**SMALL, "base": str(tmp_path), "quantization": "int8"}), root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert size(str(tmp_path), None).weights == size("nano", None, quantization="nf4").weights


@pytest.mark.filterwarnings("ignore")
def test_a_torchao_checkpoint_is_read_trained_on_and_dequantised(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    made = AutoModelForCausalLM.from_pretrained(NANO, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    made.save_pretrained(tmp_path)
    loading.load_base("nano").tokenizer.save_pretrained(tmp_path)
    model, ids = loading.load_base(str(tmp_path)).model, tokens()
    assert scheme(model) == "torchao"
    plain = logits(model, ids)
    with pytest.raises(BadSpec, match="already quantised by torchao"):
        loading.load_base(str(tmp_path), quantization="nf4")
    with pytest.raises(CannotInject, match="quantised"):
        inject(model, config("full-fine-tuning"))
    for case in ("lora", "dora", "pissa", "series", "ia3", "prefix", "norm-tuning"):
        injection = inject(model, config(case))
        model(input_ids=ids).logits.square().mean().backward()
        assert all(p.grad is not None for p in injection.parameters())
        injection.eject()
    assert torch.equal(logits(model, ids), plain)
    record = run(RunSpec.parse({**SMALL, "base": str(tmp_path)}), root=tmp_path / "runs")
    loaded, injection = restore(record)
    assert injection is not None
    hooked = logits(loaded.model, ids)
    with pytest.raises(CannotMerge, match="is quantised"):
        merge(injection)
    assert torch.allclose(logits(merge(injection, dequantize=True), ids), hooked, atol=1e-4)
    assert scheme(loaded.model) == "none"


@SCHEMES
def test_dequantised_weights_are_close_to_the_original_ones(how: str) -> None:
    for family in WIDE:
        dense, packed = wide(family), base(family, how)
        sites = Anatomy.of(dense).projections
        for site in sites:
            old, new = (weights.read(model.get_submodule(site.path)) for model in (dense, packed))
            assert new.dtype == torch.float32
            assert (new - old).norm() < (0.01 if how == "int8" else 0.11) * old.norm()
        assert (logits(dense, tokens()) - logits(packed, tokens())).abs().max() < 0.2


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU dequantises them correctly")
def test_rows_that_a_cpu_dequantises_wrongly_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="has 32 input features, .* correct only for multiples of 64"):
        loading.load_base("tiny:llama", quantization="nf4")
    with pytest.raises(BadSpec, match="Choose quantization: int8"):
        run(RunSpec.parse({**SMALL, "base": "tiny:llama", "quantization": "nf4-double"}), root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_default_quantization_does_not_change_the_run_id() -> None:
    plain = RunSpec.parse(SMALL)
    assert plain.id == RunSpec.parse({**SMALL, "quantization": "none", "device_map": "none"}).id
    assert plain.id != RunSpec.parse({**SMALL, "quantization": "nf4"}).id
    bare = {"base": "nano", "eval": {"tasks": ["mini-bool"]}}
    assert RunSpec.parse(bare).id != RunSpec.parse({**bare, "quantization": "int8"}).id


def test_bases_that_cannot_be_quantised_are_rejected_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadSpec, match=r"quantization.*'nf5'"):
        RunSpec.parse({"quantization": "nf5"})
    with pytest.raises(BadSpec, match="GGUF"):
        loading.load_base(str(tmp_path / "x.gguf"), quantization="nf4")
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(BadSpec, match="needs bitsandbytes, which is not installed"):
        loading.load_base("nano", quantization="nf4")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", ["lora", "dora", "series", "parallel", "prefix"])
@SCHEMES
def test_on_a_gpu(case: str, how: Any) -> None:
    model, ids = loading.load_base("nano", quantization=how).model, tokens().cuda()
    packed, plain = bits(model), logits(model, ids)
    assert all(p.device.type == "cuda" for p in model.parameters())
    torch.manual_seed(0)
    injection = inject(model, config(case))
    assert all(p.device.type == "cuda" for p in injection.parameters())
    plan = TrainSpec(batch=8, max_steps=8, learning_rate=1e-2, precision="bf16")
    losses = [e.loss for e in train(model, injection, samples(8, least=20), plan) if isinstance(e, Step)]
    assert losses[-1] < losses[0]
    injection.eject()
    assert torch.equal(logits(model, ids), plain)
    assert all(torch.equal(a, b) for a, b in zip(bits(model), packed, strict=True))
