"""The compare panel without a browser: it shows the results of the library, and names what is missing."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from records import HOSTILE, make_run

from llm_adapters_lab.files import append_line
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.appearance import looks
from llm_adapters_lab.results.comparison import compare
from llm_adapters_lab.results.paired_tests import pairs
from llm_adapters_lab.runs.record import Run
from widgets.panels.compare_panel import FIGURES, MAX_RUNS, PARTS, ComparePanel

LORA, SERIES = {"type": "lora", "rank": 4}, {"type": "series"}


def asked(root: Path, adapter: Any, right: int, seed: int = 0, **more: Any) -> Run:
    """Write a run with 20 answers to the task "a", of which the first `right` are correct."""
    run = make_run(root, adapter, {"a": right}, seed=seed, **more)
    path = run.folder / "predictions.jsonl"
    path.unlink()
    for i in range(20):
        answer = {"extracted": "7", "gold": "7", "correct": i < right, "prompt": "", "text": ""}
        append_line(path, {"task": "a", "id": f"a/test/{i}", **answer})
    return run


@pytest.fixture
def three(tmp_path: Path) -> list[Run]:
    return [asked(tmp_path, None, 4), asked(tmp_path, LORA, 14), asked(tmp_path, SERIES, 5)]


def rows(panel: ComparePanel, name: str) -> list[list[str]]:
    """Return the cells of a table, without its header."""
    lines = re.findall(r"<tr>(.*?)</tr>", panel.parts[name].value, re.S)[1:]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.S) for line in lines]
    return [[unescape(re.sub("</?(mark|div)[^>]*>", "", cell)) for cell in line] for line in cells]


def drawn(panel: ComparePanel, name: str) -> list[dict[str, Any]]:
    (output,) = panel.parts[name].outputs
    traces: list[dict[str, Any]] = output["data"]["application/vnd.plotly.v1+json"]["data"]
    return traces


def visible(panel: ComparePanel) -> set[str]:
    return {name for name, part in panel.parts.items() if part.layout.display != "none"}


def test_every_part_shows_the_results_of_the_library(three: list[Run]) -> None:
    panel = ComparePanel(three)
    assert panel.problem.value == ""
    assert panel.advice.value == ""
    assert visible(panel) == set(PARTS)
    assert all(run.id in panel.legend.value for run in three)
    names = [look.name for look in looks(three).values()]
    assert [trace["name"] for trace in drawn(panel, "accuracy") if trace["type"] == "bar"] == names
    assert [trace["name"] for trace in drawn(panel, "parameters")] == names[1:]
    curves = [list(trace.x) for trace in plots.loss_curve(*three).data]
    assert [trace["x"] for trace in drawn(panel, "losses")] == curves
    expected = [
        f"{100 * row['accuracy']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f} %)" for row in compare(three)
    ]
    assert rows(panel, "scores") == [["a", *expected]]


def test_significance_comes_from_the_paired_test_with_the_sign_of_a_gain(three: list[Run]) -> None:
    panel = ComparePanel(three)
    found = pairs(three)
    better, alike = rows(panel, "significance")
    assert better[:7] == ["lora", "base", "a", "20", "10", "0", "+50.0 (+30.0 to +70.0)"]
    assert better[8] == found[0]["verdict"] == "lora is better"
    assert float(better[7]) == pytest.approx(found[0]["p"], rel=0.05)
    assert alike[8] == found[1]["verdict"] == "not distinguishable"
    assert panel.parts["significance"].value.count("<mark>") == 1
    panel.against.value = three[1].id
    assert next(trace["name"] for trace in drawn(panel, "accuracy") if trace["type"] == "bar") == "base"
    first, _ = rows(panel, "significance")
    assert first[:7] == ["base", "lora", "a", "20", "0", "10", "-50.0 (-70.0 to -30.0)"]
    assert "differs from lora" in panel.parts["specs"].value


def test_only_fields_that_differ_are_shown_and_marked(tmp_path: Path) -> None:
    few = [asked(tmp_path, LORA | {"rank": rank}, 5, seed) for rank, seed in ((4, 0), (8, 0), (4, 1))]
    panel = ComparePanel(few)
    assert rows(panel, "specs") == [["adapter.rank", "4", "8", "4"], ["seed", "0", "0", "1"]]
    assert re.findall(r"<mark>(.*?)</mark>", panel.parts["specs"].value) == ["8", "1"]
    assert "over the seeds 0, 1" in panel.parts["significance"].value


def test_single_and_unfinished_runs_are_shown(three: list[Run], tmp_path: Path) -> None:
    panel = ComparePanel([three[1]])
    assert "Only one run" in panel.advice.value
    assert visible(panel) == {"accuracy", "scores", "parameters", "losses"}
    half = make_run(tmp_path, LORA, {}, seed=3, done=False)
    panel.show([half, three[1]])
    assert "1 of these 2 runs are unfinished" in panel.advice.value
    assert "need two finished runs" in panel.advice.value
    assert [run.id for run in panel.runs] == [three[1].id, half.id]  # finished runs come first
    assert visible(panel) == set(PARTS) - {"significance"}
    assert panel.against.layout.display == "none"
    panel.show([half])
    assert visible(panel) == {"losses"}
    panel.show([])
    assert visible(panel) == set()
    assert panel.widget.layout.display == "none"
    assert all(panel.parts[name].outputs == () for name in FIGURES)


def test_without_common_datasets_there_is_no_mean(three: list[Run], tmp_path: Path) -> None:
    other = make_run(tmp_path, LORA, {"b": 5}, seed=1)
    panel = ComparePanel([three[1], other])
    assert "No adapter was scored on all datasets" in panel.advice.value
    assert visible(panel) == {"accuracy", "scores", "losses", "specs"}
    assert [row[0] for row in rows(panel, "scores")] == ["a", "b", "mean"]
    assert rows(panel, "scores")[2][1:] == ["–", "–"]


def test_unreadable_runs_are_named_and_the_others_shown(three: list[Run], tmp_path: Path) -> None:
    broken = Run(tmp_path / "broken")
    broken.folder.mkdir()
    (broken.folder / "spec.json").write_text("{", encoding="utf-8")
    panel = ComparePanel([three[0], broken, three[1], three[0]])
    assert "broken is left out" in panel.problem.value
    assert [run.id for run in panel.runs] == [three[0].id, three[1].id]
    assert visible(panel) == set(PARTS)
    (three[1].folder / "predictions.jsonl").unlink()
    panel.show(three[:2])
    assert "predictions.jsonl holds 0 of 20 answers" in panel.problem.value
    assert visible(panel) == set(PARTS) - {"significance"}
    panel.show([three[0], three[2]])
    assert panel.problem.value == ""
    panel.show([Run(tmp_path / str(i)) for i in range(MAX_RUNS + 1)])
    assert f"at most {MAX_RUNS}" in panel.problem.value
    assert visible(panel) == set()


def test_contamination_and_lost_formats_are_reported(three: list[Run], tmp_path: Path) -> None:
    summary = three[1].summary
    summary["leaks"] = {"a": {"exact": 5, "ngram": 1, "total": 20}}
    summary["scores"]["a"]["in_format"] = 0.1
    three[1].write("summary.json", summary)
    words = ComparePanel(three).parts["scores"].value
    assert "a, lora: 25 % of the test rows are in the training data" in words
    assert "a jump in accuracy can be format" in words
    assert "training data" not in ComparePanel([three[0], three[2]]).parts["scores"].value


def test_hostile_names_are_text(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, adapter, {HOSTILE: 5, "b": 3}) for adapter in (None, LORA)]
    panel = ComparePanel(runs)
    assert panel.problem.value == ""
    for name in set(PARTS) - set(FIGURES):
        text = panel.parts[name].value
        assert text
        assert "<img" not in text
        assert "<script" not in text
        assert "&amp;lt;" not in text
    assert "&lt;img" in panel.parts["scores"].value
    assert "<img" not in str(drawn(panel, "accuracy"))
