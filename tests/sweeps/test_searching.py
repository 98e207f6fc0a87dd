"""How a benchmark searches: grids, budgets, rules that end runs early, and TPE."""

import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_adapters_lab.config import change
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.results.benchmark_report import pareto, saved_tokens, standings
from llm_adapters_lab.results.plots import benchmark_figures, data
from llm_adapters_lab.runs.record import list_runs
from llm_adapters_lab.runs.reproduce import rerun
from llm_adapters_lab.sweeps.benchmarks import Benchmark, Outcome, benchmark
from llm_adapters_lab.sweeps.executors import make_executor
from llm_adapters_lab.sweeps.searching import LEVEL, Look, Search, levels, survivors, training_cost
from llm_adapters_lab.sweeps.spec import Distribution

RATE = "train.learning_rate"
FIELDS: dict[str, Any] = {
    "spec": {
        "base": "nano",
        "data": {"task": "mini-addsub", "rows": 96, "validation": 24},
        "train": {"batch": 8, "max_steps": 12, "evaluate_every": 4},
        "eval": {"tasks": ["mini-addsub"], "rows": 8, "batch": 8, "forgetting": "stories"},
    },
    "methods": {"lora": {"adapter": {"type": "lora", "rank": 4, "at": "attn+mlp"}}},
    "retained": ["mini-bool"],
    "search": {"by": "grid", "runs": 4, "fields": {RATE: {"log-uniform": [1e-4, 0.1]}}},
    "seeds": [0, 1],
}


def numbers(**field: Any) -> Distribution:
    return Distribution.model_validate({name.replace("_", "-"): value for name, value in field.items()})


def found(outcome: Outcome) -> list[Any]:
    return [(t.run.id, t.loss, t.tokens, t.ended) for t in outcome.trials]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    root = tmp_path_factory.mktemp("whole")
    return root, benchmark(Benchmark.parse(FIELDS), root=root)


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    root = tmp_path_factory.mktemp("halved")
    return root, benchmark(Benchmark.parse(change(FIELDS, {"search.rule": "halving"})), root=root)


def test_a_grid_has_even_distances_and_at_most_the_budget() -> None:
    log, whole, words = numbers(log_uniform=(1e-4, 0.1)), numbers(integer=(1, 9)), numbers(choice=["a", "b"])
    one = Search(by="grid", fields={RATE: log}).settings({RATE: log}, 4)
    assert [setting[RATE] for setting in one] == [1e-4, 1e-3, 1e-2, 0.1]
    several = Search(by="grid").settings({RATE: log, "adapter.rank": whole, "x": words}, 20)
    assert (
        len(several) == 18
        and {s["adapter.rank"] for s in several} == {1, 5, 9}
        and {s["x"] for s in several} == {"a", "b"}
    )
    assert numbers(uniform=(0, 1)).spread(1) == [0.5] and math.isclose(log.spread(1)[0], 10**-2.5, rel_tol=1e-3)
    with pytest.raises(BadSpec, match="has 2 runs, and the budget has room for 1"):
        Search(by="grid").settings({"x": words}, 1)


def test_halving_keeps_the_better_half_and_mcnemar_all_that_may_be_as_good() -> None:
    runs = {"a": (0.5, 30), "b": (0.4, 29), "c": (0.9, 24), "d": (2.0, 3), "e": (3.0, 0)}
    looks = {name: Look(loss, "1" * n + "0" * (40 - n)) for name, (loss, n) in runs.items()}
    assert survivors("none", looks) == {*"abcde"}
    assert survivors("halving", looks) == {*"bac"}
    # a and c differ on six rows: p = .031.
    assert survivors("mcnemar", looks, 0.03) == {*"abc"} and survivors("mcnemar", looks, 0.04) == {*"ab"}
    assert survivors("mcnemar", {}) == set()


def test_early_looks_get_little_of_the_level() -> None:
    found = levels([25, 50, 75], 100)
    assert [*found.values()] == pytest.approx([3.28e-6, 9.99e-4, 6.22e-3], rel=0.01)
    assert sum(levels(range(1, 100), 100).values()) < LEVEL


def test_mcnemar_rarely_ends_a_run_that_is_as_good() -> None:
    def share(level: float) -> float:
        rng, ended = np.random.default_rng(0), 0
        for _ in range(400):
            right = rng.random((3, 2, 64)) < rng.random(64)  # three looks at two equal runs
            marks = [["".join("01"[int(x)] for x in run) for run in look] for look in right]
            ended += any(len(survivors("mcnemar", {"a": Look(0, a), "b": Look(0, b)}, level)) < 2 for a, b in marks)
        return ended / 400

    assert share(LEVEL / 3) <= LEVEL < share(0.2)


def test_budgets_in_tokens_and_flops_are_equal_for_all_methods() -> None:
    spec = Benchmark.parse(FIELDS).points(Benchmark.parse(FIELDS).contests()[0], [{}])[0].spec
    cost = training_cost(spec)
    assert cost.tokens == pytest.approx(12 * 8 * 40, rel=0.3)
    assert cost.flops == pytest.approx(cost.tokens * (4 * 1.6e6), rel=0.3)
    two = change(FIELDS, {"search.runs": None, "search.tokens": int(2.5 * cost.tokens), "search.by": "random"})
    what = Benchmark.parse(two)
    assert len(what.searched(what.contests()[0])) == 2
    flops = change(FIELDS, {"search.runs": None, "search.flops": 3.5 * cost.flops, "search.by": "random"})
    full = Benchmark.parse(change(flops, {"methods.full": {"adapter": "full-fine-tuning"}}))
    assert [len(full.searched(contest)) for contest in full.contests()] == [3, 2]  # 6 per weight, not 4
    small = Benchmark.parse(change(two, {"search.tokens": 100}))
    with pytest.raises(BadSpec, match="no room for one run of lora on mini-addsub over nano, which takes"):
        benchmark(small, root="nowhere")
    assert not Path("nowhere").exists()


def test_a_rule_spares_tokens_and_what_it_leaves_equals_the_whole_search(
    whole: tuple[Path, Outcome], halved: tuple[Path, Outcome]
) -> None:
    plain, outcome = ({t.changes[RATE]: t for t in each[1].trials} for each in (whole, halved))
    assert saved_tokens(whole[1]) == 0 and saved_tokens(halved[1]) == pytest.approx(1 - (2 * 4 + 8 + 12) / 48, abs=0.03)
    assert sorted(t.ended or 12 for t in outcome.values()) == [4, 4, 8, 12]
    for rate, trial in outcome.items():
        events = [(e["step"], e["loss"], e["right"]) for e in trial.run.events("Validated")]
        same = [(e["step"], e["loss"], e["right"]) for e in plain[rate].run.events("Validated")]
        assert events == same[: len(events)] and len(events) == (trial.ended or 12) / 4
    assert sum(event["event"] == "Resumed" for t in outcome.values() for event in t.run.events()) >= 2
    best = halved[1].best(halved[1].benchmark.contests()[0])
    assert best is not None and best.ended is None and best.run.spec.train.pause_at is None
    assert rerun(best.run) == []


def test_a_search_that_is_interrupted_ends_the_same(halved: tuple[Path, Outcome], tmp_path: Path) -> None:
    what, stop = halved[1].benchmark, threading.Event()
    part = benchmark(
        what,
        root=tmp_path,
        stop=stop,
        on_update=lambda runs: stop.set() if any(r.state.name == "stopped" for r in runs) else None,
    )
    assert part.unfinished and not part.finals
    assert found(benchmark(what, root=tmp_path)) == found(halved[1])
    stop = threading.Event()
    stop.set()
    before = len(list_runs(tmp_path))
    read = benchmark(what, root=tmp_path, stop=stop)  # reads what is there
    assert found(read) == found(halved[1]) and read.finals and len(list_runs(tmp_path)) == before
    nothing = benchmark(what, root=tmp_path / "empty", stop=stop)
    assert not nothing.finals and not (tmp_path / "empty").exists()


def test_what_is_measured(whole: tuple[Path, Outcome]) -> None:
    _, outcome = whole
    (one,) = standings(outcome)
    (runs,) = outcome.finals.values()
    bare = outcome.bare["nano"].summary
    assert {*bare["scores"]} == {"mini-addsub", "mini-bool"}
    kept = [run.summary["scores"]["mini-bool"]["accuracy"] - bare["scores"]["mini-bool"]["accuracy"] for run in runs]
    assert one.measures["retained"] == pytest.approx(sum(kept) / 2)
    rise = [run.summary["forgetting"]["loss"] - bare["forgetting"]["loss"] for run in runs]
    assert one.measures["forgetting"] == pytest.approx(sum(rise) / 2, abs=1e-6) and one.measures["forgetting"] > 0
    assert one.accuracy == pytest.approx(sum(run.summary["scores"]["mini-addsub"]["accuracy"] for run in runs) / 2)
    assert one.measures["bytes"] == 4 * one.measures["trainable"]
    assert one.measures["flops"] == pytest.approx(training_cost(runs[0].spec).flops, rel=0.1)
    assert one.row()["ends"]["accuracy"] == list(one.ends["accuracy"])
    figures = benchmark_figures(outcome, [one])
    titles = [figure.layout.title.text for figure in figures]
    assert titles == [
        "Methods in tiers",
        "Accuracy against parameters",
        "Accuracy against forgetting",
        "Accuracy against FLOPs",
        "All measures",
        "Search over learning rate",
        "Sensitivity to learning rate",
    ]
    assert all(data(figure) for figure in figures)
    (row,) = data(figures[0])
    assert row["method"] == "lora" and row["tier"] == 1


def test_the_front_has_what_no_method_beats(whole: tuple[Path, Outcome]) -> None:
    import dataclasses

    (one,) = standings(whole[1])
    several = [
        dataclasses.replace(one, measures={"accuracy": a, "trainable": t})
        for a, t in ((0.5, 10), (0.7, 20), (0.6, 30), (0.7, 40))
    ]
    assert [s.measures["trainable"] for s in pareto(several, "trainable", "accuracy")] == [10, 20]


def test_tpe_without_optuna_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(LabError, match="pip install optuna"):
        benchmark(Benchmark.parse(change(FIELDS, {"search.by": "tpe"})), root=tmp_path)
    assert list_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"search.tokens": 1000}, "given as runs and as tokens"),
        ({"search.by": "tpe", "search.rule": "halving"}, "one run after another"),
        ({"search.rule": "mcnemar", "spec.train.evaluate_every": 0}, "none before the end"),
        ({"search.rule": "halving", "methods.lora.fields": {"train.batch": 4}}, "lora varies train.batch"),
        ({"retained": ["mini-addsub"]}, "in eval.tasks and in retained"),
        ({"retained": ["mini-nothing"]}, "mini-nothing"),
        ({"search.rule": "guess"}, "search.rule"),
    ],
)
def test_what_is_refused_at_once(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=text):
        benchmark(Benchmark.parse(change(FIELDS, changes)), root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_cannot_read_a_task_is_refused_before_the_first_run(tmp_path: Path) -> None:
    rows = [{"instruction": f"Ωμέγα {n} ψυχή?", "answer": f"λόγος {n}"} for n in range(80)]
    file = tmp_path / "greek.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    fields = change(FIELDS, {"tasks": ["mini-addsub", f"own:{file}"], "retained": []})
    with pytest.raises(BadSpec, match=r"greek.jsonl over nano: .*usable"):
        benchmark(Benchmark.parse(fields), root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_test_set_that_is_also_searched_on_is_refused(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"ben has {n} figs . ben gets {n + 1} more figs . how many figs does ben have now ?",
            "answer": str(2 * n + 1),
        }
        for n in range(2, 40)
    ]
    file = tmp_path / "figs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = f"own:{file}?form=number"  # a file has the same rows in every split
    asked = {"tasks": [task], "max_new_tokens": 4}
    own = {"spec.data": {"task": task, "rows": 16, "validation": 8}, "spec.eval": asked, "retained": []}
    with pytest.raises(BadSpec, match="test questions of .* are among the held-out rows"):
        benchmark(Benchmark.parse(change(FIELDS, own)), root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_killed_benchmark_continues_to_the_bit(halved: tuple[Path, Outcome], tmp_path: Path) -> None:
    file, root = tmp_path / "mine.yaml", tmp_path / "runs"
    file.write_text(json.dumps(change(FIELDS, {"search.rule": "halving"})), encoding="utf-8")
    command = [sys.executable, "-m", "llm_adapters_lab", "benchmark", str(file), "--root", str(root)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while time.monotonic() < until and len([*root.glob("*/checkpoints/*")]) < 3:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert len([*root.glob("*/checkpoints/*")]) >= 3 and not [*root.glob("*/predictions.jsonl")]
    assert found(benchmark(halved[1].benchmark, root=root)) == found(halved[1])


def test_a_study_carries_a_rule(halved: tuple[Path, Outcome], tmp_path: Path) -> None:
    outcome = benchmark(halved[1].benchmark, root=tmp_path, executor=make_executor("study"))
    assert [(t.run.id, t.tokens, t.ended) for t in outcome.trials] == [(i, n, e) for i, _, n, e in found(halved[1])]
    assert [t.loss for t in outcome.trials] == pytest.approx([t.loss for t in halved[1].trials], rel=1e-4)
