"""`train.learning_rate: auto`: which rate it is, where it comes from, and what a run says about it."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_adapters_lab import RunSpec, run
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.recipes import NEAR, recipes

ROOT = Path(__file__).parents[2]


def spec(adapter: Any, **train: Any) -> RunSpec:
    return RunSpec.parse({"adapter": adapter, "train": {"learning_rate": "auto", **train}})


def test_the_rates_are_those_of_the_benchmark_they_name() -> None:
    found = recipes()
    kept = json.loads((ROOT / found["source"]).read_text(encoding="utf-8"))
    tried: dict[str, dict[float, float]] = {}
    kinds = {row["method"]: row["adapter"] for row in kept["standings"]}
    for trial in kept["trials"]:
        method = trial["method"].partition(" on ")[0]
        if trial["loss"] is not None:
            tried.setdefault(kinds[method], {})[trial["train.learning_rate"]] = trial["loss"]
    assert {*found["rates"]} == {*tried} - {"union"} and {*tried} <= {*all_adapters()}
    for kind, own in found["rates"].items():
        losses = tried[kind]
        assert losses[own["rate"]] == min(losses.values())
        good = [rate for rate, loss in losses.items() if loss <= min(losses.values()) + NEAR]
        assert (own["low"], own["high"]) == (min(good), max(good)) and own["tried"] == [min(losses), max(losses)]


def test_auto_is_a_number_from_the_start() -> None:
    auto = spec("lora")
    rate = recipes()["rates"]["lora"]["rate"]
    given = RunSpec.parse({"adapter": "lora", "train": {"learning_rate": rate}})
    assert auto.train.learning_rate == rate and auto.id == given.id and auto.train.rate_from == "auto"
    assert RunSpec.parse(auto.model_dump(mode="json")) == auto
    assert spec({"type": "pissa"}).train.learning_rate == rate  # a preset of the same method
    assert spec("series").train.learning_rate != rate
    assert spec(None).train.learning_rate == RunSpec.parse({}).train.learning_rate


def test_a_run_says_where_its_rate_comes_from(tmp_path: Path) -> None:
    data = {"task": "mini-addsub", "rows": 16}
    fields = {"adapter": "ia3", "data": data, "train": {"learning_rate": "auto", "batch": 8, "max_steps": 1}}
    notes = run(RunSpec.parse(fields), root=tmp_path).summary["rows"]["notes"]
    (text,) = [note for note in notes if "auto" in note]
    assert f"auto stands for {recipes()['rates']['ia3']['rate']:g}, the best for ia3 in docs/benchmark/" in text
    assert "This run differs: data.task = mini-addsub (there mini-math), train.batch = 8 (there 16)" in text
    plain = run(RunSpec.parse(fields | {"train": {"learning_rate": 0.5, "batch": 8, "max_steps": 1}}), root=tmp_path)
    assert not any("auto" in note for note in plain.summary["rows"]["notes"])


def test_a_method_without_evidence_is_refused() -> None:
    with pytest.raises(BadSpec, match="no rate of 'union' has been measured"):
        spec({"type": "union", "of": [{"type": "lora"}, {"type": "ia3"}]})
