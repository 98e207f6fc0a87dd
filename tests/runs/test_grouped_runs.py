"""Runs whose rows belong to groups: from the spec to the scores, resumed, and what is refused before weights load."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.core.call_context import context_of
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.tensor_files import read_tensors
from llm_adapters_lab.errors import BadSpec, CannotInject
from llm_adapters_lab.events import Event, Step
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.preflight import preflight
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training.spec import TrainSpec

POLY = {"type": "poly", "skills": 2, "rank": 1, "at": "down"}
SEEN = ("mini-rules-minus", "mini-rules-minus-there", "mini-rules-minus-there-stop", "mini-rules-plus")
SEEN += ("mini-rules-plus-stop", "mini-rules-plus-there-stop")


def spec(**changes: Any) -> RunSpec:
    fields: dict[str, Any] = {
        "base": "nano",
        "adapter": POLY,
        "data": {"task": "mini-rules", "group": "task", "rows": 64},
        "train": {"batch": 8, "max_steps": 6, "learning_rate": 0.01, "checkpoint_every": 3},
        "eval": {"tasks": ["mini-rules-plus"], "rows": 4, "batch": 2},
    }
    return RunSpec.parse({**fields, **changes})


def rows(folder: Path, name: str, languages: str = "de fr de fr de fr") -> str:
    made = [{"instruction": f"say {i}", "output": str(i), "lang": lang} for i, lang in enumerate(languages.split())]
    (folder / name).write_text("\n".join(map(json.dumps, made)), encoding="utf-8")
    return f"own:{folder / name}"


def test_a_run_trains_scores_saves_and_restores_its_groups(tmp_path: Path) -> None:
    record = run(spec(), root=tmp_path)
    base, injection = restore(record)
    assert injection is not None
    assert injection.config.groups == SEEN
    assert context_of(base.model).groups == list(SEEN)
    assert record.summary["trainable_parameters"] == injection.count()
    assert "groups" in record.summary["hashes"]["data"]
    adapter = next(iter(injection.adapters.values()))
    assert bool((adapter.Z.abs() > 1.1e-3).any(-1).all())  # the router has moved in every group


def test_a_stopped_run_resumes_to_the_bit(tmp_path: Path) -> None:
    stop = threading.Event()

    def halt(event: Event) -> None:
        if isinstance(event, Step) and event.step == 4:
            stop.set()

    half = run(spec(), root=tmp_path / "a", stop=stop, on_event=halt)
    assert not half.done
    whole, again = run(spec(), root=tmp_path / "b"), run(spec(), root=tmp_path / "a")
    one, two = (read_tensors(record.folder / "adapter" / "adapter.safetensors") for record in (whole, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [p["text"] for p in whole.predictions()] == [p["text"] for p in again.predictions()]


def test_the_group_decides_the_answer(tmp_path: Path) -> None:
    plan = {"batch": 16, "max_steps": 60, "learning_rate": 0.02}
    data = {"task": "mini-rules", "group": "task"}
    score = {"tasks": ["mini-rules-minus-there"], "rows": 8}
    asked = [spec(data=data, train=plan, eval=score | more) for more in ({}, {"group": "mini-rules-plus-stop"})]
    own, other = ([p["text"] for p in run(one, root=tmp_path).predictions()] for one in asked)
    assert sum(text.startswith("there are") for text in own) > 6
    assert sum(text.endswith(" .") and "+" in text for text in other) > 6


def test_columns_of_own_rows_are_groups(tmp_path: Path) -> None:
    task, other = rows(tmp_path, "train.jsonl"), rows(tmp_path, "test.jsonl", "fr de")
    data = {"task": task, "group": "column:lang", "template": "qa"}
    record = run(spec(data=data, eval={"tasks": [other]}), root=tmp_path / "runs")
    _, injection = restore(record)
    assert injection is not None and injection.config.groups == ("de", "fr")


def test_old_ids_are_unchanged_and_learning_rates_are_those_of_the_plan() -> None:
    from llm_adapters_lab.training.optimizer import make_optimizer, set_learning_rate

    assert RunSpec().canonical() == RunSpec.parse({"data": {"group": "none"}}).canonical()
    assert spec().id != spec(data={"task": "mini-rules", "rows": 64}).id
    slow, fast = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = make_optimizer([slow, fast], TrainSpec(), {fast: 10.0})
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 5.0]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"eval": {"tasks": ["mini-addsub"]}}, "scored as the group 'mini-addsub'.* Set eval.group"),
    "named": ({"eval": {"tasks": ["mini-addsub"], "group": "es"}}, "scored as the group 'es'"),
    "without rows": ({"adapter": {**POLY, "groups": [*SEEN, "mini-bool"]}}, "No training row is of .*mini-bool"),
    "not listed": ({"adapter": {**POLY, "groups": SEEN[1:]}}, "of the group 'mini-rules-minus', not one of"),
    "no rows at all": ({"adapter": {**POLY, "groups": ["a"]}, "data": {}}, "adapter.groups names groups, but"),
    "no data.group": ({"data": {}, "eval": {"tasks": ["mini-bool"], "group": "a"}}, "eval.group names groups, but"),
    "plain adapter": ({"adapter": "lora", "eval": {"group": "a"}}, "'lora' has no part for a group"),
    "bare base": ({"adapter": None, "eval": {"tasks": ["mini-bool"], "group": "a"}}, "a bare base has no part"),
    "blocks": ({"adapter": {**POLY, "blocks": 5}}, "blocks = 5 does not divide the widths"),
    "column of a test": ({"eval": {"tasks": ["mini-bool"], "group": "column:lang"}}, "eval.group = column:lang, but"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_before_weights_load(case: str) -> None:
    changes, message = REFUSED[case]
    plan = spec(**changes)
    with pytest.raises((BadSpec, CannotInject), match=message):
        preflight(plan, Blueprint(*plan.base_parts))


def test_columns_and_documents_are_refused_by_the_spec(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="data.group = column:lang, but mini-math is no file with columns"):
        spec(data={"task": "mini-math", "group": "column:lang"})
    with pytest.raises(BadSpec, match="packs documents of several groups together"):
        spec(data={"task": "mini-math", "group": "task", "form": "text"})
    with pytest.raises(BadSpec, match="data.group"):
        spec(data={"task": "mini-math", "group": "speaker"})
    task = rows(tmp_path, "x.jsonl")
    plan = spec(data={"task": task, "group": "column:speaker", "template": "qa"}, eval={})
    with pytest.raises(Exception, match="speaker"):
        preflight(plan, Blueprint(*plan.base_parts))


def test_a_group_of_which_all_rows_are_too_long_is_refused(tmp_path: Path) -> None:
    made = [
        {"instruction": "say " * (90 if i % 8 == 0 else 1), "output": str(i), "lang": "fr" if i % 8 == 0 else "de"}
        for i in range(24)
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, made)), encoding="utf-8")
    data = {"task": f"own:{tmp_path / 'x.jsonl'}", "group": "column:lang", "template": "qa", "max_tokens": 40}
    plan = spec(data=data, eval={})
    with pytest.raises(BadSpec, match="No row of the group 'fr' is left to train on"):
        preflight(plan, Blueprint(*plan.base_parts))


@pytest.mark.parametrize("adapter", [POLY, {"type": "hyper", "bottleneck": 4, "embedding": 8}])
def test_a_new_group_starts_from_a_trained_run_and_trains_its_own_part_alone(
    adapter: dict[str, Any], tmp_path: Path
) -> None:
    first = run(spec(adapter=adapter), root=tmp_path)
    data = {"task": "mini-rules-plus-there", "group": "task", "rows": 16}
    changes = {"data": data, "eval": {"tasks": ["mini-rules-plus-there"], "rows": 2}}
    second = run(spec(adapter={**adapter, "start": first.id, "train": "groups"}, **changes), root=tmp_path)
    before, after = (read_tensors(r.folder / "adapter" / "adapter.safetensors") for r in (first, second))
    own = get_adapter(adapter["type"]).cls.by_group(restore(second)[1].config)  # type: ignore[union-attr]
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if name.rpartition("/")[2] in own:
            mean = before[name].mean(0, keepdim=True)
            assert tensor.shape == mean.shape and not torch.equal(tensor, mean)
        else:
            assert torch.equal(tensor, before[name])


def test_a_part_is_exported_and_merged_as_an_ordinary_adapter(tmp_path: Path) -> None:
    record = run(spec(), root=tmp_path)
    runner, names = CliRunner(), ("mini-rules-plus", "mean")
    for name in names:
        out = tmp_path / name
        args = ["export", record.id, str(out), "--format", "lab", "--group", name, "--root", str(tmp_path)]
        found = runner.invoke(app, args)
        assert found.exit_code == 0, found.output
        assert json.loads((out / "adapter.json").read_text())["config"]["type"] == "lora"
    merged = runner.invoke(app, ["merge", record.id, str(tmp_path / "m"), "--group", "mean", "--root", str(tmp_path)])
    assert merged.exit_code == 0, merged.output
    unknown = ["merge", record.id, str(tmp_path / "x"), "--group", "es", "--root", str(tmp_path)]
    assert runner.invoke(app, unknown).exit_code == 2
