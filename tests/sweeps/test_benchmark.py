"""Benchmarks: equal budgets, a search that does not see the test, and methods in tiers."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.config import change
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.results.benchmark_report import standings, verdicts
from llm_adapters_lab.results.plots import search_figure
from llm_adapters_lab.runs.record import list_runs
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.benchmarks import Benchmark, Contest, Outcome, benchmark
from llm_adapters_lab.training.step import GradientComputer

FILES = sorted((Path(__file__).parents[2] / "papermill_runs" / "benchmarks").glob("*.yaml"))
RATES = {"train.learning_rate": {"log-uniform": [1e-3, 3e-2]}}
FIELDS: dict[str, Any] = {
    "spec": {
        "base": "nano",
        "data": {"task": "mini-addsub", "rows": 32, "validation": 8},
        "train": {"batch": 8, "max_steps": 3},
        "eval": {"tasks": ["mini-bool"], "rows": 8, "batch": 8, "max_new_tokens": 3},
    },
    "methods": {
        "lora": {"adapter": {"type": "lora", "rank": 2}},
        "series": {
            "adapter": "series",
            "fields": {"train.warmup": 1},
            "search": {"train.learning_rate": {"choice": [0.1]}},
        },
    },
    "search": {"runs": 3, "fields": RATES},
    "seeds": [0, 1],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Outcome]]:
    root = tmp_path_factory.mktemp("benchmark")
    yield root, benchmark(Benchmark.parse(FIELDS), root=root)


def test_every_method_has_the_same_budget_and_its_own_ranges() -> None:
    what = Benchmark.parse(FIELDS)
    lora, series = what.contests()
    assert (lora, series) == (Contest("nano", "mini-addsub", "lora"), Contest("nano", "mini-addsub", "series"))
    rates = [point.spec.train.learning_rate for point in what.searched(lora)]
    assert len({*rates}) == 3 and all(1e-3 <= rate <= 3e-2 for rate in rates)
    # A choice of one value is one run, however often it is drawn.
    assert [point.spec.train.learning_rate for point in what.searched(series)] == [0.1]
    assert what.count == 2 * (3 + 2) + 1
    assert {point.spec.train.warmup for point in what.searched(series)} == {1}
    wide = Benchmark.parse(FIELDS | {"bases": ["nano", "nano-moe"], "tasks": ["mini-addsub", "mini-bool"]})
    assert len(wide.contests()) == 8 and wide.count == 42


def test_the_search_does_not_see_the_test_and_the_best_setting_gets_every_seed(done: tuple[Path, Outcome]) -> None:
    root, outcome = done
    assert not outcome.unfinished and len(outcome.trials) == 4
    for trial in outcome.trials:
        assert trial.run.summary["scores"] == {} and list(trial.run.predictions()) == []
        assert trial.loss == min(event["loss"] for event in trial.run.events("Validated"))
    for contest, runs in outcome.finals.items():
        best = outcome.best(contest)
        assert best is not None
        assert best.loss == min(trial.loss for trial in outcome.trials if trial.contest == contest)
        assert [run.spec.seed for run in runs] == [0, 1]
        assert {run.spec.train.learning_rate for run in runs} == {best.run.spec.train.learning_rate}
        assert all(run.summary["scores"]["mini-bool"]["total"] == 8 for run in runs)
    assert len(list_runs(root)) == 4 + 4 + 1  # with the bare base


def test_a_finished_benchmark_is_read_and_an_interrupted_one_resumed(
    done: tuple[Path, Outcome], tmp_path: Path
) -> None:
    root, outcome = done
    before = {run.id: (run.folder / "summary.json").stat().st_mtime_ns for run in list_runs(root)}
    again = benchmark(Benchmark.parse(FIELDS), root=root)
    assert {run.id: (run.folder / "summary.json").stat().st_mtime_ns for run in list_runs(root)} == before
    assert [(t.run.id, t.loss) for t in again.trials] == [(t.run.id, t.loss) for t in outcome.trials]
    stop = threading.Event()
    part = benchmark(
        Benchmark.parse(FIELDS),
        root=tmp_path,
        stop=stop,
        on_update=lambda runs: stop.set() if any(each.run.done for each in runs) else None,
    )
    assert part.unfinished and not part.finals
    whole = benchmark(Benchmark.parse(FIELDS), root=tmp_path)
    assert [(t.run.id, t.loss) for t in whole.trials] == [(t.run.id, t.loss) for t in outcome.trials]


def test_what_is_reported(done: tuple[Path, Outcome]) -> None:
    _, outcome = done
    found = standings(outcome)
    assert {one.contest.method for one in found} == {"lora", "series"}
    for one in found:
        runs = outcome.finals[one.contest]
        shares = [run.summary["scores"]["mini-bool"]["accuracy"] for run in runs]
        assert one.accuracy == pytest.approx(sum(shares) / 2) and one.by_seed == pytest.approx(shares)
        assert one.tier is not None and one.ends["accuracy"][0] <= one.accuracy <= one.ends["accuracy"][1]
        losses = sorted(trial.loss for trial in outcome.trials if trial.contest == one.contest)
        assert (one.loss, one.typical_loss) == (losses[0], losses[len(losses) // 2])
        assert one.measures["trainable"] == runs[0].summary["trainable_parameters"]
    (lora,) = [one for one in found if one.contest.method == "lora"]
    rates = [trial.changes["train.learning_rate"] for trial in outcome.trials if trial.contest == lora.contest]
    assert bool(lora.edges) == (lora.setting["train.learning_rate"] in (min(rates), max(rates)))
    (text,) = verdicts(outcome)
    assert text.startswith("mini-addsub over nano: ") and "2 seeds" in text
    figure = search_figure(outcome)
    assert [trace.name for trace in figure.data] == ["lora", "series"]
    assert [len(trace.x) for trace in figure.data] == [3, 1]
    assert not search_figure(outcome, "train.warmup").data


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seeds": [1, 1]}, "names one twice"),
        ({"seeds": []}, "seeds"),
        ({"search": {"runs": 3}}, "lora has nothing to search"),
        ({"search.fields": {"eval.rows": {"choice": [1, 2]}}}, "cannot vary eval.rows"),
        ({"search.fields": {"seed": {"choice": [1, 2]}}}, "cannot vary seed"),
        ({"methods.lora.fields": {"eval.rows": 2}}, "cannot vary eval.rows"),
        ({"search.fields": {"train.nothing": {"choice": [1, 2]}}}, "train.nothing"),
        ({"search.runs": 0}, "search.runs"),
        ({"spec.data.validation": 0}, "Hold rows out"),
        ({"spec.eval.tasks": []}, "nothing would be compared"),
        ({"methods.lora.adapter": "lore"}, "lora"),
        ({"methods.lora.fields": {"train.batch": 0}}, "train.batch"),
        ({"methods": {}}, "methods"),
        (
            {
                "search.runs": 1000,
                "seeds": [*range(500)],
                "tasks": ["mini-addsub", "mini-bool", "mini-multi", "mini-math"],
            },
            "at most",
        ),
    ],
)
def test_what_is_refused(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=text):
        benchmark(Benchmark.parse(change(FIELDS, changes)), root=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_files_are_benchmarks(path: Path) -> None:
    what = Benchmark.load(path)
    comment = path.read_text(encoding="utf-8").partition("spec:")[0]
    assert f"{len(what.methods)} methods, {what.count} runs" in comment
    for contest in what.contests():
        assert all(isinstance(point.spec, RunSpec) for point in what.searched(contest))


def test_the_command(done: tuple[Path, Outcome], tmp_path: Path) -> None:
    root, _ = done
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(FIELDS), encoding="utf-8")
    asked = ["benchmark", str(file), "--root", str(root)]
    result = CliRunner().invoke(app, [*asked, "--report", str(tmp_path / "search.html"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert [row["method"] for row in found["standings"]] == [one.contest.method for one in standings(done[1])]
    page = (tmp_path / "search.html").read_text(encoding="utf-8")
    assert "<h2>Benchmark</h2>" in page and "<pre>plots.benchmark_tiers(found)</pre>" in page
    assert found["unfinished"] == {} and found["report"] == str(tmp_path / "search.html")
    text = CliRunner().invoke(app, asked)
    assert "against the best" in text.output
    assert "series on mini-addsub over nano: only 1 different settings were tried, of others 3." in text.output
    dry = CliRunner().invoke(app, [*asked, "--dry-run"])
    assert "9 runs: 2 methods, a search of 3 runs and 2 seeds each." in dry.output


def test_a_failed_trial_is_reported_and_does_not_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = GradientComputer.step

    def breaks(self: GradientComputer, *args: Any) -> float:
        loss = step(self, *args)
        return float("nan") if self.plan.learning_rate > 5e-3 else loss

    monkeypatch.setattr(GradientComputer, "step", breaks)
    outcome = benchmark(Benchmark.parse(FIELDS), root=tmp_path)
    failed = [trial for trial in outcome.trials if trial.run.spec.train.learning_rate > 5e-3]
    assert 2 <= len(failed) < len(outcome.trials)
    assert all(trial.loss == float("inf") for trial in failed)
    assert {*outcome.unfinished} == {trial.run.id for trial in failed}
    stop = threading.Event()
    stop.set()
    assert benchmark(Benchmark.parse(FIELDS), root=tmp_path, stop=stop).finals == outcome.finals  # also if only read
    lora, series = standings(outcome)
    assert (
        lora.contest.method == "lora" and lora.failed == len(failed) - 1 and lora.setting["train.learning_rate"] < 5e-3
    )
    assert (series.tier, series.accuracy, series.failed, series.loss) == (None, None, 1, float("inf"))
