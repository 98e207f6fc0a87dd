"""Compositions of saved and new adapters: exact, scored without training, trained beside frozen members, refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from contract import logits, tokens
from small_runs import small
from test_fusion import FOUR, PARALLEL, SERIES, alone, close, saved

from llm_adapters_lab.core.call_context import grouped
from llm_adapters_lab.core.composition import compose
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import adapter_config
from llm_adapters_lab.core.saved_adapters import digest
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import BadSpec, CannotInject, WrongBase
from llm_adapters_lab.models import random_models
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec

IDS = tokens()
LORA = {"type": "lora", "rank": 2, "at": "q,v"}


def composed(family: str, rule: str, of: list[Any], **more: Any) -> tuple[Any, Injection]:
    model = random_models.tiny(f"tiny:{family}")
    return model, inject(model, adapter_config({"type": "composed", "rule": rule, "of": of, **more}))


@FOUR
@pytest.mark.parametrize("rule", ["a > b", "b > a", "a | b | c", "0.7 a + -0.2 b", "a > (b | c)"])
def test_it_equals_compose_by_hand(family: str, rule: str, tmp_path: Path) -> None:
    kinds = {"a": SERIES, "b": PARALLEL, "c": LORA}
    folders = {name: saved(tmp_path / name, family, kind, seed=i) for i, (name, kind) in enumerate(kinds.items())}
    used = sorted({*rule} & {*kinds}, key=rule.index)
    model, injection = composed(family, rule, [folders[name] for name in used])
    assert injection.count() == 0
    other = random_models.tiny(f"tiny:{family}")
    for name in used:
        load_adapter(other, folders[name], name=name)
    compose(other, rule)
    close(logits(model, IDS), logits(other, IDS))
    assert not torch.allclose(logits(model, IDS), alone(folders["a"], family), atol=1e-3)


@FOUR
def test_rows_go_through_the_member_of_their_group(family: str, tmp_path: Path) -> None:
    a, b = (saved(tmp_path / str(i), family, kind, seed=i) for i, kind in enumerate((SERIES, PARALLEL)))
    model, _ = composed(family, f"[one: {a}, two: {b}]", [])
    ids = IDS[:1].repeat(3, 1)
    with torch.no_grad(), grouped(model, ["two", "one", "two"]):
        seen = model(ids).logits
    for row, folder in enumerate((b, a, b)):
        close(seen[row], alone(folder, family)[0])
    with pytest.raises(CannotInject, match="routed by the groups one, two, and this call names none"):
        model(ids)


def test_a_new_member_is_trained_on_a_frozen_one(tmp_path: Path) -> None:
    language = saved(tmp_path / "language", "llama", SERIES)
    before = digest(Path(language))
    model, injection = composed("llama", "language > task", [language, LORA])
    close(logits(model, IDS), alone(language, "llama"))  # a new LoRA changes nothing yet
    fresh = random_models.tiny("tiny:llama")
    assert injection.count() == inject(fresh, adapter_config(LORA)).count()
    logits(model, IDS)
    out = model(IDS).logits.square().mean()
    out.backward()
    for adapter in injection.adapters.values():
        for name, p in adapter.named_parameters():
            assert (p.grad is None) == (not p.requires_grad), name
    assert digest(Path(language)) == before


def test_a_part_of_a_union(tmp_path: Path) -> None:
    a, b = (saved(tmp_path / str(i), "llama", kind, seed=i) for i, kind in enumerate((SERIES, LORA)))
    model, _ = composed("llama", "x > y", [a, b])
    parts = [{"type": "composed", "rule": "x > y", "of": [a, b]}, {"type": "norm-tuning"}]
    other = random_models.tiny("tiny:llama")
    injection = inject(other, adapter_config({"type": "union", "of": parts}))
    close(logits(other, IDS), logits(model, IDS))
    save_adapter(injection, tmp_path / "union")
    again = random_models.tiny("tiny:llama")
    load_adapter(again, tmp_path / "union")
    assert torch.equal(logits(again, IDS), logits(other, IDS))


def test_saved_and_loaded_without_its_members(tmp_path: Path) -> None:
    a, b = (saved(tmp_path / str(i), "llama", kind, seed=i) for i, kind in enumerate((SERIES, LORA)))
    model, injection = composed("llama", "x > y", [a, b])
    expected = logits(model, IDS)
    save_adapter(injection, tmp_path / "both")
    for folder in (a, b):
        Path(folder).rename(f"{folder}-gone")
    again = random_models.tiny("tiny:llama")
    load_adapter(again, tmp_path / "both")
    assert torch.equal(logits(again, IDS), expected)


def test_a_run_that_only_scores(tmp_path: Path) -> None:
    few = {"data": {"task": "mini-addsub", "rows": 32}, "eval": {"tasks": ["mini-addsub"], "rows": 4}}
    members = [run(small("lora", adapter={"type": kind}, **few), root=tmp_path).id for kind in ("lora", "series")]
    rule = f"[mini-addsub: {members[0]}, mini-multi: {members[1]}]"
    fields = {"base": "nano", "adapter": {"type": "composed", "rule": rule}, "data": {"group": "task"}}
    record = run(RunSpec.parse({**fields, "eval": few["eval"]}), root=tmp_path)
    assert record.summary["train"] is None and record.summary["trainable_parameters"] == 0
    single = run(small("lora", adapter={"type": "lora"}, **few), root=tmp_path)
    assert list(record.predictions()) == list(single.predictions())
    _, injection = restore(record)
    assert injection is not None and len(injection.sites) == 18
    # Settings of a training are no part of it.
    other = RunSpec.parse({**fields, "eval": few["eval"], "train": {"epochs": 9}, "seed": 3})
    assert other.id == record.id
    assert RunSpec.parse({**fields, "eval": few["eval"], "data": {"group": "none"}}).id != record.id


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rule": "a >"}, "where a name should be"),
        ({"rule": "a > b", "of": ["x"]}, "names a, b, but `of` has 1"),
        ({"rule": "a", "of": [{"type": "composed", "rule": "b"}]}, "cannot be a member of a composed"),
        ({"rule": "a", "of": [{"type": "lora", "start": "x"}]}, "a new member has no start"),
        ({}, "adapter.rule is missing"),
        ({"rule": "a", "sparse": {"score": "random"}}, "adapter.sparse is for the matrices of one method"),
        ({"rule": "a", "quantize": {"bits": 4}}, "adapter.quantize is for the matrices of one method"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        adapter_config({"type": "composed", **fields})


def test_what_is_refused_before_work(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", "gpt2", SERIES)
    with pytest.raises(WrongBase):
        composed("llama", "x", [a])
    b = saved(tmp_path / "b", "llama", SERIES | {"at": "down.in"})
    c = saved(tmp_path / "c", "llama", SERIES | {"at": "down"})
    with pytest.raises(CannotInject, match="one module in two ways"):
        composed("llama", "x > y", [b, c])
    fields: dict[str, Any] = {"base": "nano", "adapter": {"type": "composed", "rule": "[a: nothing, b: neither]"}}
    for more, message in (
        ({"data": {"group": "task"}}, "scored as the group 'mini-addsub', which no adapter is for"),
        ({"data": {"group": "task"}, "eval": {"tasks": ["mini-addsub"], "group": "mean"}}, "sends each row to one"),
        ({}, "gives rows none"),
        ({"data": {"group": "task"}, "eval": {"tasks": ["mini-addsub"], "group": "a"}}, "no saved adapter 'nothing'"),
    ):
        spec = RunSpec.parse({"eval": {"tasks": ["mini-addsub"], "rows": 2}, **fields, **more})
        with pytest.raises(BadSpec, match=message):
            run(spec, root=tmp_path)
