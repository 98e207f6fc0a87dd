"""The view Benchmark of Compare without a browser: it reads a file, starts it once, and shows the results so far."""

import asyncio
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from launches import end_all, until

from llm_adapters_lab.config import change
from llm_adapters_lab.results.benchmark_report import verdicts
from llm_adapters_lab.sweeps.benchmarks import Benchmark, Outcome, benchmark
from widgets.figures.benchmark_view import BenchmarkView
from widgets.kit import launching
from widgets.kit.panel import schedule
from widgets.kit.workspace import Workspace
from widgets.panels.compare_panel import ComparePanel

FIELDS: dict[str, Any] = {
    "spec": {
        "base": "nano",
        "data": {"task": "mini-addsub", "rows": 32, "validation": 8},
        "train": {"batch": 8, "max_steps": 3},
        "eval": {"tasks": ["mini-bool"], "rows": 8, "batch": 8, "max_new_tokens": 3},
    },
    "methods": {"narrow": {"adapter": {"type": "lora", "rank": 2}}, "wide": {"adapter": {"type": "lora", "rank": 16}}},
    "search": {"runs": 2, "fields": {"train.learning_rate": {"log-uniform": [1e-3, 3e-2]}}},
    "seeds": [0, 1],
}
PLAN = "2 methods, each with a search of 2 runs and 2 seeds: 9 runs"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    root = tmp_path_factory.mktemp("runs")
    return root, benchmark(Benchmark.parse(FIELDS), root=root)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark file below the working directory, next to a file that holds no benchmark."""
    monkeypatch.chdir(tmp_path)
    folder = Path("papermill_runs/benchmarks")
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(FIELDS), encoding="utf-8")
    Path("sweep.yaml").write_text("grid: {adapter.rank: [2, 4]}", encoding="utf-8")
    return folder / "tiny.yaml"


def show(root: Path) -> BenchmarkView:
    view = BenchmarkView(Workspace(root), lambda: schedule(view.refresh))
    asyncio.run(view.refresh())
    return view


def text(markup: str) -> str:
    return unescape(re.sub("<[^>]*>", " ", markup)).strip()


def test_a_line_says_what_a_file_will_do(file: Path, tmp_path: Path) -> None:
    view = show(tmp_path / "runs")
    assert view.file.options == (("choose", ""), ("tiny.yaml", str(file)))
    assert "same budget" in text(view.plan.value)
    assert view.start.disabled
    view.file.value = str(file)
    assert text(view.plan.value) == f"{PLAN}, 0 finished."
    assert (view.problem.value, view.start.disabled, view.halt.disabled) == ("", False, True)
    assert view._shown.layout.display == "none"
    pairs = change(FIELDS, {"tasks": ["mini-addsub", "mini-bool"], "search.runs": 1, "search.fields": {}})
    Path("other.yaml").write_text(yaml.safe_dump(pairs), encoding="utf-8")
    view.path.value = "other.yaml"
    assert view.file.value == ""
    assert "for each of 2 pairs of task and base: 13 runs, 0 finished." in text(view.plan.value)
    view.file.value = str(file)
    assert view.path.value == ""
    assert text(view.plan.value) == f"{PLAN}, 0 finished."
    assert not (tmp_path / "runs").exists()


def test_a_fault_of_the_file_is_shown_and_goes_when_it_is_corrected(file: Path, tmp_path: Path) -> None:
    view = show(tmp_path / "runs")
    view.path.value = "missing.yaml"
    assert "missing.yaml" in text(view.problem.value)
    assert "lab-error" in view.problem.value
    file.write_text(yaml.safe_dump(change(FIELDS, {"spec.data.validation": 0})), encoding="utf-8")
    view.file.value = str(file)
    assert "Hold rows out" in text(view.problem.value)
    assert (text(view.plan.value), view.start.disabled) == ("", True)
    file.write_text(yaml.safe_dump(change(FIELDS, {"seeds": [0, 1, 2]})), encoding="utf-8")
    asyncio.run(view.refresh())
    assert view.problem.value == ""
    assert "3 seeds: 11 runs" in text(view.plan.value)


def test_results_so_far_in_words_and_figures(file: Path, done: tuple[Path, Outcome], tmp_path: Path) -> None:
    root, outcome = done
    view = show(root)
    view.file.value = str(file)
    assert text(view.plan.value) == f"{PLAN}, 9 finished."
    assert text(view.verdicts.value) == verdicts(outcome)[0]
    titles = ["Methods in tiers", "All measures", "Search over learning rate", "Sensitivity to learning rate"]
    assert [each for each in view.chosen.options if " against " not in each] == titles
    assert any("accuracy against" in each.lower() for each in view.chosen.options)
    for title in view.chosen.options:
        view.chosen.value = title
        assert view.card.drawing is not None
        assert view.card.drawing.title == title
        assert view.card.view.figure["data"]
        assert view.card.drawing.rows
    # The search alone has no verdict yet, and its figure already.
    part = tmp_path / "part"
    shutil.copytree(root, part)
    for run in (run for runs in (*outcome.finals.values(), outcome.bare.values()) for run in runs):
        shutil.rmtree(part / run.id)
    view = show(part)
    view.file.value = str(file)
    assert text(view.plan.value) == f"{PLAN}, 4 finished."
    assert view.verdicts.value == ""
    view.chosen.value = titles[2]
    assert [trace["name"] for trace in view.card.view.figure["data"]] == ["narrow", "wide"]
    # What is finished later is read with the next refresh.
    runs = [*outcome.bare.values(), *(runs[0] for runs in outcome.finals.values())]
    for run in runs:
        shutil.copytree(root / run.id, part / run.id)
    view.workspace.runs.refresh()
    asyncio.run(view.refresh())
    assert text(view.plan.value) == f"{PLAN}, 7 finished."
    assert text(view.verdicts.value).startswith("So far, mini-addsub over nano: ")


def test_start_launches_one_process_that_survives_the_page(file: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    view = show(root)
    view.file.value = str(file)
    view.start.click()
    view._start()  # another page
    try:
        process = launching.benchmark_process(root, "tiny")
        line = psutil.Process(process["pid"]).cmdline()
        assert line[line.index("benchmark") :] == [
            *("benchmark", str(file.resolve()), "--root", str(root), "--executor", "process")
        ]
        assert len([child for child in psutil.Process().children() if "benchmark" in child.cmdline()]) == 1
        assert "It is active" in text(view.plan.value)
        assert (view.start.disabled, view.halt.disabled) == (True, False)
        again = show(root)
        assert (again.file.value, again.start.disabled) == (str(file), True)
        assert "It is active" in text(again.plan.value)
        until(lambda: [*root.glob(".processes/*.spec.json")])  # of its first run
        again.halt.click()
        until(lambda: not launching.is_active(root, "tiny"))
        again._look()
        assert "active" not in text(again.plan.value)
        assert (again.problem.value, again.start.disabled, again.halt.disabled) == ("", False, True)
    finally:
        end_all(root)


def test_why_a_process_has_ended_is_shown(file: Path, tmp_path: Path) -> None:
    file.write_text(yaml.safe_dump(change(FIELDS, {"spec.base": str(tmp_path / "no model")})), encoding="utf-8")
    view = show(tmp_path / "runs")
    view.file.value = str(file)
    view.start.click()
    until(lambda: not launching.is_active(tmp_path / "runs", "tiny"))
    view._look()
    assert "no model" in text(view.problem.value)
    assert not view.start.disabled


def test_the_view_is_alone_in_its_place_and_needs_no_runs(file: Path, done: tuple[Path, Outcome]) -> None:
    panel = ComparePanel(Path("runs"))
    assert panel.benchmark.widget.layout.display == "none"
    panel.compete.click()
    assert (panel.view.value, panel.empty.layout.display, panel._all.layout.display) == ("Benchmark", "none", "")
    panel.benchmark.file.value = str(file)
    assert f"{PLAN}, 0 finished." in text(panel.benchmark.plan.value)
    panel.view.value = "Tiers"
    assert (panel.empty.layout.display, panel._all.layout.display) == ("", "none")
    panel = ComparePanel(done[0])
    panel.view.value = "Benchmark"
    panel.benchmark.file.value = str(file)
    assert text(panel.benchmark.verdicts.value)
    assert "lab-hidden" in panel._result._dom_classes
    assert panel.table.layout.display == "none"
    panel.view.value = "Tiers"
    assert "lab-hidden" not in panel._result._dom_classes
    assert panel.table.layout.display == ""
    assert panel.benchmark.widget.layout.display == "none"
    assert panel.problem.value == ""
