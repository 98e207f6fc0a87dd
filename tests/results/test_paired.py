"""Two runs on the same items, several seeds of one spec, and the published figures."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.statistics import bootstrap_difference, mcnemar, wilson
from llm_adapters_lab.files import append_line
from llm_adapters_lab.results import published_results
from llm_adapters_lab.results.comparison import compare
from llm_adapters_lab.results.paired_tests import disagreements, pairs
from llm_adapters_lab.results.seed_groups import seeds
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.registry import all_tasks

LORA = {"type": "lora"}


def made(root: Path, adapter: Any, right: list[bool], seed: int = 0, **more: Any) -> Run:
    """Write a finished run with one answer for each item."""
    spec = RunSpec.parse({"base": "nano", "adapter": adapter, "seed": seed, "eval": {"tasks": ["mini-bool"]}})
    run = Run(root / spec.id)
    run.clear()
    run.write("spec.json", spec.model_dump(mode="json"))
    for i, good in enumerate(right):
        said = {"extracted": "true" if good else None, "gold": "true", "correct": good, "text": "", "prompt": f"q{i}"}
        append_line(run.folder / "predictions.jsonl", {"task": "mini-bool", "id": f"mini-bool/test/{i}", **said})
    correct, total = sum(right), len(right)
    low, high = wilson(correct, total)
    score = {"accuracy": correct / total, "correct": correct, "total": total, "low": low, "high": high}
    score |= {"chance": 0.5, "majority": 0.6, "in_format": 0.2, "protocol": "lab", "by_label": 0.5, "by_text": None}
    summary = {"id": spec.id, "status": "finished", "base_parameters": 1000, "trainable_parameters": 10}
    run.write("summary.json", {**summary, "scores": {"mini-bool": score}, "train": None, **more})
    return run


def test_mcnemar_is_the_exact_binomial_test() -> None:
    # Agresti, Categorical Data Analysis, approval ratings: 150 against 86, z = 4.17 in the large-sample form.
    assert mcnemar(150, 86) == pytest.approx(3.7e-5, rel=0.05)
    assert mcnemar(5, 0) == mcnemar(0, 5) == 2 / 2**5
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_by_its_definition(b: int, c: int) -> None:
    expected = min(1.0, 2 * binom.cdf(min(b, c), b + c, 0.5)) if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_the_bootstrap_is_that_of_drawing_items_and_is_seeded() -> None:
    rng = random.Random(1)
    first, second = ([rng.random() < share for _ in range(80)] for share in (0.7, 0.5))
    low, high = bootstrap_difference(first, second)
    assert (low, high) == bootstrap_difference(first, second)
    assert low < sum(first) / 80 - sum(second) / 80 < high
    draws = []
    for _ in range(4000):
        at = rng.choices(range(80), k=80)
        draws.append(sum(first[i] - second[i] for i in at) / 80)
    draws.sort()
    assert low == pytest.approx(draws[100], abs=0.02)
    assert high == pytest.approx(draws[-100], abs=0.02)
    assert bootstrap_difference([True] * 5, [False] * 5) == (1, 1)
    assert bootstrap_difference([], []) == (-1, 1)
    with pytest.raises(ValueError, match="same items"):
        bootstrap_difference([True], [])


def test_a_difference_is_called_one_only_where_it_is(tmp_path: Path) -> None:
    base = made(tmp_path, None, [False] * 40)
    better = made(tmp_path, LORA, [True] * 12 + [False] * 28)
    same = made(tmp_path, {"type": "prefix"}, [True] * 3 + [False] * 37)
    strong, weak = pairs([base, better, same])
    assert (strong["only_first"], strong["only_second"], strong["items"]) == (0, 12, 40)
    assert strong["verdict"] == "lora is better"
    assert strong["difference"] == pytest.approx(-0.3)
    assert strong["high"] < 0
    assert weak["verdict"] == "not distinguishable"
    assert pairs([base]) == []
    found = disagreements(better, same)
    assert [item["right"] for item in found] == ["first"] * 9
    assert found[0]["second"] is None
    assert {item["id"] for item in found} == {f"mini-bool/test/{i}" for i in range(3, 12)}


def test_a_record_without_answers_is_named(tmp_path: Path) -> None:
    first, second = made(tmp_path, None, [True] * 4), made(tmp_path, LORA, [True] * 4)
    (second.folder / "predictions.jsonl").unlink()
    with pytest.raises(BadSpec, match=r"predictions\.jsonl holds 0 of 4 answers"):
        pairs([first, second])


def test_seeds_of_one_spec_are_a_mean_and_a_spread(tmp_path: Path) -> None:
    runs = [made(tmp_path, LORA, [True] * n + [False] * (10 - n), seed=n) for n in (4, 5, 9)]
    other = made(tmp_path, {"type": "lora", "rank": 2}, [True] * 10)
    (group,) = seeds([*runs, other])
    assert (group["runs"], group["seeds"], group["low"], group["high"]) == (3, [4, 5, 9], 0.4, 0.9)
    assert group["mean"] == pytest.approx(0.6)
    assert group["deviation"] == pytest.approx(0.2645751)
    assert seeds([runs[0], other]) == []


def test_a_leak_is_marked_from_one_in_a_hundred(tmp_path: Path) -> None:
    from llm_adapters_lab.results.plots.runs import accuracy
    from llm_adapters_lab.results.reports import report

    leaks = {"mini-bool": {"exact": 83, "ngram": 90, "total": 100}}
    run = made(tmp_path, LORA, [True] * 5, leaks=leaks)
    (row,) = compare([run])
    assert row["leak"] == 0.9
    assert accuracy(run).layout.xaxis.ticktext[0] == "mini-bool *"
    page = report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "90 % of the rows seen in training" in page
    text = CliRunner().invoke(app, ["compare", str(run.folder)]).stdout
    assert "mini-bool!" in text
    assert "90 % of the test rows are in the training data" in text
    below = made(tmp_path, LORA, [True] * 5, seed=1, leaks={"mini-bool": {"exact": 1, "total": 200}})
    assert compare([below])[0]["leak"] is None
    assert accuracy(below).layout.xaxis.ticktext[0] == "mini-bool"


def test_compare_says_it_all(tmp_path: Path) -> None:
    first, second = made(tmp_path, None, [False] * 8), made(tmp_path, LORA, [True] * 8)
    third = made(tmp_path, LORA, [True] * 7 + [False], seed=1)
    names = [str(run.folder) for run in (first, second, third)]
    result = CliRunner().invoke(app, ["compare", *names, "--items", "--paper", "llama-7b-lora"])
    assert result.exit_code == 0, result.output
    assert re.search(r"\nlora r\d+ q,v s0 +mini-bool +-100.0 .* better ", result.stdout)
    for words in ("base against each other run", "can be format, not knowledge", "93.8 ± 8.8", "mini-bool/test/7"):
        assert words in result.stdout
    found = json.loads(CliRunner().invoke(app, ["compare", *names, "--json"]).stdout)
    assert set(found) == {"rows", "paper", "pairs", "seeds"}
    assert found["pairs"][0]["verdict"] == "lora (seed 0) is better"
    bad = CliRunner().invoke(app, ["compare", names[0], "--paper", "llama-7b-lorra"])
    assert bad.exit_code == 2
    assert "Did you mean 'llama-7b-lora'" in bad.output


def test_the_published_figures_have_the_published_averages() -> None:
    averages = {
        ("arithmetic", "llama-7b-lora"): 61.9,
        ("arithmetic", "llama-13b-lora"): 65.4,
        ("arithmetic", "bloomz-7b-prefix"): 36.0,
        ("arithmetic, corrected", "llama-7b-lora"): 46.9,
        ("arithmetic, corrected", "gpt-j-6b-series"): 39.6,
        ("commonsense", "llama-13b-parallel"): 81.5,
        ("commonsense", "gpt-j-6b-lora"): 50.2,
    }
    rows = {(t["name"], name): row for t in published_results.tables() for name, row in t["rows"].items()}
    assert len(rows) == 51
    for key, average in averages.items():
        assert sum(rows[key].values()) / len(rows[key]) == pytest.approx(average, abs=0.06)
    assert {task for row in rows.values() for task in row} <= set(all_tasks())


def test_a_contaminated_figure_says_so() -> None:
    found = {row["task"]: row for row in published_results.published("llama-7b-lora")}
    assert len(found) == 15
    assert [task for task, row in found.items() if row["contaminated"]] == ["multiarith", "addsub", "singleeq"]
    assert found["gsm8k"]["accuracy"] == 0.375
    assert found["mawps"]["accuracy"] == 0.79
    assert "Math10K" in found["addsub"]["note"]
    assert [row["task"] for row in published_results.published("llama-7b-lora", ["boolq"])] == ["boolq"]
