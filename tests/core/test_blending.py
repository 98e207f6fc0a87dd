"""Blending saved adapters, and starting from them: exact where it must be, refused where nothing fits."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import logits, shake, tokens
from small_runs import small

from llm_adapters_lab.core.blending import begin_from_saved, blend
from llm_adapters_lab.core.composition import merge_mix, mix
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import adapter_config
from llm_adapters_lab.core.saved_adapters import looking_in, read_saved, saved_folder
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import BadSpec, StateMismatch, WrongBase
from llm_adapters_lab.events import Step
from llm_adapters_lab.models import random_models
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.reproduce import rerun
from llm_adapters_lab.runs.spec import RunSpec

IDS = tokens()
FOUR = pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3"])
LORA = {"type": "lora", "rank": 4, "at": "q,down"}
SERIES = {"type": "series", "bottleneck": 8, "at": "attn+mlp", "bias": True}
KINDS = {
    "lora": LORA,
    "relu": {**SERIES, "nonlinearity": "relu"},
    "tanh": {**SERIES, "nonlinearity": "tanh"},
    "parallel": {"type": "parallel", "bottleneck": 8, "nonlinearity": "gelu"},
    "union": {"type": "union", "of": [LORA, {**SERIES, "nonlinearity": "relu"}]},
}
EACH = pytest.mark.parametrize("kind", KINDS)


def saved(folder: Path, fields: dict[str, Any], family: str = "llama", seed: int = 0) -> tuple[Any, Injection]:
    model = random_models.tiny(f"tiny:{family}")
    injection = inject(model, adapter_config(fields))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    save_adapter(injection, folder)
    return model, injection


def of(folder: Path, family: str = "llama") -> torch.Tensor:
    model = random_models.tiny(f"tiny:{family}")
    load_adapter(model, folder)
    return logits(model, IDS)


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("by", ["weights", "activations"])
def test_units_are_transported_between_widths(nonlinearity: str, by: str, tmp_path: Path) -> None:
    """Each unit of the wider adapter is there twice with half its output, in another order: the same function."""
    narrow = SERIES | {"nonlinearity": nonlinearity}
    saved(tmp_path / "a", narrow)
    _, injection = saved(tmp_path / "b", narrow | {"bottleneck": 16}, seed=1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2)) // 2
    state = read_saved(tmp_path / "a").tensors
    for key, tensor in read_saved(tmp_path / "a").tensors.items():
        if key.endswith(("down.weight", "down.bias")):
            state[key] = tensor[order]
        elif key.endswith("up.weight"):
            state[key] = tensor[:, order] / 2
    injection.load_saved(state)
    save_adapter(injection, tmp_path / "b")
    torch.testing.assert_close(of(tmp_path / "b"), of(tmp_path / "a"), atol=1e-5, rtol=1e-5)
    known = {"model": random_models.tiny("tiny:llama"), "ids": IDS} if by == "activations" else {}
    made = blend([str(tmp_path / "a"), str(tmp_path / "b")], "align", **known)
    assert made.config.model_dump()["bottleneck"] == 8
    made.save(tmp_path / "made")
    torch.testing.assert_close(of(tmp_path / "made"), of(tmp_path / "a"), atol=1e-5, rtol=1e-5)
    blend([str(tmp_path / "b"), str(tmp_path / "a")], "align", **known).save(tmp_path / "wide")
    if by == "weights" and nonlinearity == "relu":
        assert read_saved(tmp_path / "wide").tensors.keys() == read_saved(tmp_path / "b").tensors.keys()
    for how in ("average", "delta"):
        with pytest.raises(BadSpec, match="bottleneck is 16, not 8"):
            blend([str(tmp_path / "a"), str(tmp_path / "b")], how)


def test_widths_without_a_common_measure_are_refused(tmp_path: Path) -> None:
    for name, more in (("a", {"bottleneck": 61}), ("b", {"bottleneck": 37}), ("c", {"bottleneck": 61, "scaling": 2.0})):
        saved(tmp_path / name, SERIES | more)
    with pytest.raises(BadSpec, match="bottleneck is 37, not 61"):
        blend([str(tmp_path / "a"), str(tmp_path / "b")], "align")
    with pytest.raises(BadSpec, match=r"scaling is 2\.0, not 1\.0"):
        blend([str(tmp_path / "a"), str(tmp_path / "c")], "align")


@EACH
@pytest.mark.parametrize("how", ["average", "align"])
def test_a_blend_of_one_has_the_same_tensors(kind: str, how: Any, tmp_path: Path) -> None:
    saved(tmp_path / "a", KINDS[kind])
    before = read_saved(tmp_path / "a").tensors
    blend([str(tmp_path / "a")], how).save(tmp_path / "b")
    after = read_saved(tmp_path / "b").tensors
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@FOUR
@EACH
def test_a_reordered_copy_aligns_to_the_original(kind: str, family: str, tmp_path: Path) -> None:
    model, injection = saved(tmp_path / "a", KINDS[kind], family)
    seen = logits(model, IDS)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, adapter in injection.adapters.items():
            units = adapter.units(injection.config_of(key))
            size = next(adapter.get_parameter(name).shape[axis] for name, axis in units.axes.items())
            turn = torch.eye(size)[torch.randperm(size, generator=generator)]
            if units.symmetry == "sign":
                turn = turn * torch.where(torch.rand(size, generator=generator) < 0.5, -1.0, 1.0)[:, None]
            if units.symmetry == "linear":
                turn = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
            for name, axis in units.axes.items():
                p = adapter.get_parameter(name)
                p.copy_(torch.tensordot(turn, p, dims=([1], [axis])).movedim(0, axis))
    torch.testing.assert_close(logits(model, IDS), seen, atol=1e-5, rtol=1e-5)  # the same function
    save_adapter(injection, tmp_path / "b")
    pair = [str(tmp_path / name) for name in "ab"]
    blend(pair, "align").save(tmp_path / "c")
    first, aligned = read_saved(tmp_path / "a").tensors, read_saved(tmp_path / "c").tensors
    assert max(float((first[name] - aligned[name]).abs().max()) for name in first) < 1e-5
    blend(pair, "average").save(tmp_path / "d")
    assert not torch.allclose(of(tmp_path / "d", family), seen, atol=1e-4)
    if kind in ("relu", "tanh"):
        base = random_models.tiny(f"tiny:{family}")
        blend(pair, "align", model=base, ids=tokens(4, 12)).save(tmp_path / "e")
        torch.testing.assert_close(of(tmp_path / "e", family), seen, atol=1e-5, rtol=1e-5)
        assert not any(module._forward_hooks for module in base.modules())


@FOUR
def test_a_delta_blend_is_the_merged_mix(family: str, tmp_path: Path) -> None:
    models = {}
    for seed, name in enumerate("ab"):
        model, injection = saved(tmp_path / name, LORA, family, seed)
        with torch.no_grad():  # two of four dimensions each, so that the sum of both has rank four
            for adapter in injection.adapters.values():
                adapter.B[:, 2:] = 0
        save_adapter(injection, tmp_path / name)
        models[name] = model
    blend([str(tmp_path / name) for name in "ab"], "delta", [0.7, 0.3]).save(tmp_path / "c")
    both = random_models.tiny(f"tiny:{family}")
    for name in "ab":
        load_adapter(both, tmp_path / name, name=name)
    mix(both, {"a": 0.7, "b": 0.3})
    torch.testing.assert_close(of(tmp_path / "c", family), logits(both, IDS), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(merge_mix(both), IDS), of(tmp_path / "c", family), atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    for name, fields in (("a", LORA), ("s", SERIES), ("r", {**LORA, "rank": 2}), ("k", {"type": "ia3"})):
        saved(tmp_path / name, fields)
    saved(tmp_path / "bits", {**LORA, "quantize": {"bits": 4}})
    saved(tmp_path / "g", LORA, "gpt2")
    at = {name: str(tmp_path / name) for name in ("a", "s", "r", "k", "g", "bits")}
    for sources, how, match in (
        (["a", "s"], "average", "only one method"),
        (["a", "r"], "average", "rank is 2, not 4"),
        (["s", "s"], "delta", "'series' with this config has no delta blend"),
        (["k", "k"], "align", "'ia3' with this config has no align blend"),
        (["bits", "bits"], "average", "Masked, split or quantised"),
    ):
        with pytest.raises(BadSpec, match=match):
            blend([at[name] for name in sources], how)
    with pytest.raises((WrongBase, BadSpec), match="does not fit|different bases"):
        blend([at["a"], at["g"]])
    with pytest.raises(BadSpec, match="as many finite weights"):
        blend([at["a"], at["a"]], weights=[1.0])
    for name in ("", ".", "..", "/", "nowhere", "*", "../x", "a" * 3000):
        with looking_in(tmp_path), pytest.raises(BadSpec, match="no saved adapter"):
            saved_folder(name)


@FOUR
@EACH
def test_starting_from_a_saved_adapter_is_that_adapter(kind: str, family: str, tmp_path: Path) -> None:
    seen = logits(saved(tmp_path / "a", KINDS[kind], family)[0], IDS)
    model = random_models.tiny(f"tiny:{family}")
    injection = inject(model, adapter_config({**KINDS[kind], "start": str(tmp_path / "a")}))
    begin_from_saved(injection)
    assert torch.equal(logits(model, IDS), seen)


def first_loss(spec: RunSpec, root: Path) -> tuple[float, Any]:
    record = run(spec, root=root)
    return next(event["loss"] for event in record.events("Step")), record


def test_a_run_starts_from_a_run_and_knows_when_it_changes(tmp_path: Path) -> None:
    plain_loss, plain = first_loss(small("lora"), tmp_path)
    fields = {"type": "lora", "rank": 4, "at": "q,v,down"}
    started, record = first_loss(small("lora", adapter={**fields, "start": plain.id}), tmp_path)
    assert started < plain_loss
    assert record.id != plain.id
    assert record.summary["hashes"]["adapters"] == {plain.id: record.summary["hashes"]["adapters"][plain.id]}
    blended = small("lora", adapter={**fields, "start": {"blend": [plain.id, record.id], "how": "align"}})
    assert RunSpec.parse(json.loads(blended.model_dump_json())).id == blended.id
    stop = threading.Event()
    run(blended, root=tmp_path, stop=stop, on_event=lambda event: stop.set() if isinstance(event, Step) else None)
    save_adapter(*changed(plain.folder / "adapter"))
    with pytest.raises(BadSpec, match="the saved adapters that it is made from changed"):
        run(blended, root=tmp_path)
    with pytest.warns(UserWarning, match="the saved adapters that it is made from changed"):
        run(small("lora", adapter={**fields, "start": plain.id}), root=tmp_path)
    assert run(blended, root=tmp_path, fresh=True).done
    assert rerun(run(blended, root=tmp_path)) == []


def changed(folder: Path) -> tuple[Injection, Path]:
    from llm_adapters_lab.models import load_base

    base = load_base("nano")
    injection = load_adapter(base.model, folder, tokenizer=base.tokenizer)
    shake(injection)
    return injection, folder


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"start": "nowhere"}, BadSpec, "no saved adapter 'nowhere'"),
        ({"start": "A"}, StateMismatch, "adapter.start: .*do not fit"),
        ({"start": "A", "rank": 8}, BadSpec, "rank is 8, not 4"),
        ({"start": "A", "alpha": 3.0}, BadSpec, "alpha is 3.0, not 16.0"),
        ({"start": {"blend": ["A", "A"], "weights": [1.0]}}, BadSpec, "as many finite weights"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_before_weights_load(
    fields: dict[str, Any], error: Any, match: str, tmp_path: Path
) -> None:
    saved(tmp_path / "A", {**LORA, "at": "q@0"})
    text = json.dumps({"type": "lora", "rank": 4, "at": "q", **fields}).replace('"A"', json.dumps(str(tmp_path / "A")))
    with pytest.raises(error, match=match):
        run(small("lora", base="tiny:llama", adapter=json.loads(text)), root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(WrongBase, match="another base"):
        run(small("lora", adapter={**LORA, "at": "q@0", "start": str(tmp_path / "A")}), root=tmp_path / "runs")
