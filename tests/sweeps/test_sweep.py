"""Sweeps: the meaning of a file, checks before anything starts, and the same results after a kill."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from records import HOSTILE, make_run
from sweep_cases import SMALL, parsed
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.evaluation.statistics import mean_interval, wilson
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.seed_groups import groups
from llm_adapters_lab.runs.processes import lives
from llm_adapters_lab.runs.record import Run, list_runs
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import State, beside, state
from llm_adapters_lab.sweeps.executors import EXECUTORS, Local, Processes
from llm_adapters_lab.sweeps.spec import Draws, Sweep, describe_changes
from llm_adapters_lab.sweeps.sweeping import SweepRun, check_points, costs, progress_printer, records, sweep

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "papermill_runs" / "sweeps").glob("*.yaml"))
PLACES = [{"adapter.at": "q"}, {"adapter.at": "v"}]
TWELVE = {"spec": SMALL, "list": PLACES, "grid": {"adapter.rank": [2, 4, 8]}, "seeds": [0, 1]}
FAILS = {"type": "prefix", "virtual_tokens": 2}  # gradient checkpointing drops its cache: it fails in training


def timeless(record: Run) -> tuple[Any, ...]:
    summary = record.summary
    for key in ("seconds", "tokens_per_second", "peak_memory_bytes"):
        del summary["train"][key]
    return summary, [e["loss"] for e in record.events("Step")], list(record.predictions())


def until(true: Callable[[], Any], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A root whose processes are killed after the test in any case."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield tmp_path / "runs"
    for path in (tmp_path / "runs").glob(".processes/*.json"):
        process = json.loads(path.read_text(encoding="utf-8"))
        if "pid" in process and lives(process):
            os.kill(process["pid"], signal.SIGKILL)


def lab(*arguments: Any) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def written(folder: Path, fields: dict[str, Any], name: str = "some") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


# The meaning of a file


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_sweep_file_can_be_run(path: Path) -> None:
    points = Sweep.load(path).points()
    assert len(points) == {"nano-families": 12, "nano-placement": 18, "nano-ranks": 18, "nano-tongues": 5}[path.stem]
    check_points(points)


def test_all_parts_are_multiplied_and_later_fields_vary_first() -> None:
    found = parsed(
        **{"list": [{"adapter.at": "q"}, {"adapter.at": "v"}], "grid": {"adapter.rank": [2, 4]}, "seeds": [3, 5]}
    )
    seen = [(s.adapter.at, s.adapter.rank, s.seed) for s in found.specs()]  # type: ignore[union-attr]
    assert seen == [(at, rank, seed) for at in ("q", "v") for rank in (2, 4) for seed in (3, 5)]
    assert describe_changes(found.points()[1].changes) == "adapter.at = q, adapter.rank = 2, seed = 5"
    assert parsed().specs() == [RunSpec.parse(SMALL)]


def test_combinations_with_the_same_id_are_one_run() -> None:
    # The seed of a bare base has no effect, and naming the default placement makes no difference.
    assert len(parsed(**{"list": [{"adapter": None}], "seeds": [0, 1, 2]}).specs()) == 1
    assert len(parsed(grid={"adapter.at": ["", "q,v"]}).specs()) == 1


def test_an_adapter_and_its_fields_can_be_varied_in_any_order() -> None:
    found = parsed(grid={"adapter.at": ["q", "v"], "adapter": [{"type": "lora", "rank": 4}, "dora"]})
    assert [s.adapter.type for s in found.specs()] == ["lora", "dora"] * 2  # type: ignore[union-attr]
    assert {s.adapter.at for s in found.specs()} == {"q", "v"}  # type: ignore[union-attr]
    assert found.grid["adapter"][0] == {"type": "lora", "rank": 4}
    assert describe_changes(found.points()[0].changes) == "adapter.at = q, adapter = lora (rank 4)"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"gird": {}}, "'gird' is not a known key. Did you mean 'grid'"),
        ({"lits": []}, "Did you mean 'list'"),
        ({"grid": {"adapter.rank": []}}, "grid.adapter.rank must be a list that is not empty"),
        ({"grid": {"adapter.rank": 4}}, "grid.adapter.rank must be a list that is not empty; given was 4"),
        (
            {"grid": {"adapter.rank": [4, 0], "train.batch": [2]}},
            r"adapter.rank = 0, train.batch = 2: adapter.rank must be a whole number from 1 to 4096",
        ),
        ({"grid": {"adapter.rnak": [4]}}, "adapter.rnak = 4: .*Did you mean 'rank'"),
        ({"grid": {"adapter.rank": [1]}, "list": [{"adapter.rank": 2}]}, "adapter.rank is varied by grid and by list"),
        ({"grid": {"seed": [1]}, "seeds": [1]}, "seed is varied by grid and by seeds"),
        ({"grid": {"seed": list(range(200)), "adapter.rank": list(range(1, 200))}}, "39,800 combinations"),
        ({"spec": "nowhere.yaml"}, "There is no spec file nowhere.yaml"),
        ({"random": {"count": 2, "fields": {"seed": {"integer": [0, 9]}}}}, "random.seed"),
        ({"random": {"count": 2, "seed": 0, "fields": {}}}, "random.fields"),
        ({"random": {"count": 2, "seed": 0, "fields": {"seed": {"normal": [0, 9]}}}}, "normal"),
        ({"random": {"count": 2, "seed": 0, "fields": {"seed": {"integer": [9, 0]}}}}, "lowest, highest"),
        ({"random": {"count": 2, "seed": 0, "fields": {"seed": {"log-uniform": [0, 9]}}}}, "above 0"),
        ({"random": {"count": 2, "seed": 0, "fields": {"seed": {}}}}, "is one of choice"),
    ],
)
def test_a_wrong_sweep_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        parsed(**parts).specs()


def test_many_wrong_combinations_are_counted() -> None:
    with pytest.raises(BadSpec, match=r"(?s)rank = -9.*rank = -5.*and 3 more") as caught:
        parsed(grid={"adapter.rank": [*range(-9, -1), 4]}).specs()
    assert "rank = -4" not in str(caught.value)


def test_the_spec_of_a_file_is_searched_beside_it_then_here_then_among_the_presets(tmp_path: Path) -> None:
    written(tmp_path, SMALL, "mine")
    path = written(tmp_path, {"spec": "mine.yaml", "seeds": [4]}, "many")
    found = Sweep.load(path, {"train.max_steps": 1})
    assert found.name == "many"
    assert found.specs() == [RunSpec.load(tmp_path / "mine.yaml", {"seed": 4, "train.max_steps": 1})]
    path = written(tmp_path, {"spec": "paper/llama-7b-lora"}, "paper")
    assert Sweep.load(path).specs() == [RunSpec.load("paper/llama-7b-lora")]
    with pytest.raises(BadSpec, match="mine.yaml is no sweep: it has no key `spec`"):
        Sweep.load(tmp_path / "mine.yaml")


ranges = st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)).filter(lambda r: r[0] < r[1])


@settings(deadline=None)
@given(ranges, st.integers(0, 1000))
def test_draws_stay_in_their_range(limits: tuple[float, float], seed: int) -> None:
    fields: dict[str, Any] = {"a": {"uniform": limits}, "b": {"log-uniform": limits}}
    fields |= {"c": {"integer": (3, 5)}, "d": {"choice": ["x", None]}}
    for drawn in Draws.model_validate({"count": 20, "seed": seed, "fields": fields}).draw():
        assert all(limits[0] <= drawn[name] <= limits[1] for name in "ab")
        assert drawn["c"] in (3, 4, 5)
        assert drawn["d"] in ("x", None)


def test_draws_are_reproducible_and_grow_without_changing() -> None:
    fields: dict[str, Any] = {"train.learning_rate": {"log-uniform": [1e-4, 1e-2]}}
    few = Draws.model_validate({"count": 3, "seed": 1, "fields": fields}).draw()
    assert [d["train.learning_rate"] for d in few] == [0.007361, 0.0001675, 0.001184]
    more = Draws.model_validate({"count": 9, "seed": 1, "fields": {"seed": {"integer": [0, 9]}, **fields}}).draw()
    assert [{name: d[name] for name in fields} for d in more[:3]] == few
    rates = [d["train.learning_rate"] for d in Draws.model_validate({"count": 999, "seed": 0, "fields": fields}).draw()]
    assert 0.4 < sum(rate < 1e-3 for rate in rates) / 999 < 0.6  # half of them below the geometric mean


# Before anything starts


@pytest.mark.parametrize("name", EXECUTORS)
def test_nothing_starts_if_one_cannot_be_run(root: Path, name: str) -> None:
    for parts, message in (
        ({"grid": {"adapter.at": ["q", "q@99"]}}, "adapter.at = q@99: .*layers 99"),
        ({"grid": {"data.task": ["mini-math", "boolq"], "data.root": [str(root)]}}, "data.task = boolq"),
    ):
        with pytest.raises(BadSpec, match=message):
            sweep(parsed(**parts), root=root, executor=EXECUTORS[name](1))
    assert not root.exists()


def test_local_does_one_run_at_a_time() -> None:
    with pytest.raises(BadSpec, match="jobs = 2: local and study work in this process, one after the other"):
        Local(2)
    with pytest.raises(BadSpec, match="jobs = 0"):
        Processes(0)


def test_a_dry_run_shows_states_and_costs(root: Path, tmp_path: Path) -> None:
    path = written(tmp_path, {"spec": SMALL, "grid": {"adapter.rank": [2, 4]}})
    result = lab("sweep", path, "--dry-run", "--root", root)
    assert result.exit_code == 0
    assert "2 runs, about " in result.stdout and "not started" in result.stdout
    assert "Time: a rough figure" in result.stdout
    assert not root.exists()
    point = Sweep.load(path).points()[0]
    done = records(sweep(parsed(), root=root))
    assert done[0].id == point.spec.id
    result = lab("sweep", path, "--dry-run", "--root", root)
    assert "1 of 2 runs are finished; 1 run, about " in result.stdout
    assert "Time: the time of a finished run like this one." in result.stdout
    found = json.loads(lab("sweep", path, "--dry-run", "--root", root, "--json").stdout)
    assert [row["state"] for row in found] == ["finished", "unfinished"]
    assert found[1]["trainable"] == 2 * found[0]["trainable"] == 2 * done[0].summary["trainable_parameters"]
    (took,) = [event["seconds"] for event in done[0].events("Finished")]
    assert [row["time_from"] for row in found] == ["same run"] * 2
    assert [row["seconds"] for row in found] == pytest.approx([took] * 2, rel=0.05)  # by the load of the machine
    longer = Sweep.load(path, {"train.max_steps": 3})
    assert [cost.duration.source for cost in costs(longer.points(), root)] == ["same base", "same base"]


# Execution


def test_one_failure_does_not_stop_the_others(root: Path, tmp_path: Path) -> None:
    rows = [{"adapter": FAILS}, {"adapter.rank": 4}]
    path = written(tmp_path, {"spec": SMALL, "list": rows})
    strict = ["--set", "train.gradient_checkpointing=true"]
    result = lab("sweep", path, *strict, "--root", root)
    assert result.exit_code == 1
    assert "1 of 2, adapter = prefix (virtual_tokens 2): failed: CannotInject" in result.stdout
    assert "2 of 2, adapter.rank = 4: finished" in result.stdout
    assert (root / "some.html").stat().st_size > 1_000_000
    failed, fine = Sweep.load(path, {"train.gradient_checkpointing": True}).specs()
    assert Run(root / failed.id).summary["status"] == "failed"
    assert Run(root / fine.id).done
    # Failed runs are tried again, finished ones are read.
    before = (root / fine.id / "summary.json").stat().st_mtime_ns
    result = lab("sweep", path, *strict, "--root", root, "--report", tmp_path / "x" / "all.html", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout.splitlines()[-1])
    assert [row["state"] for row in found["runs"]] == ["failed", "finished"]
    assert "gradient_checkpointing" in found["runs"][0]["reason"]
    assert Path(found["report"]) == tmp_path / "x" / "all.html"
    assert (root / fine.id / "summary.json").stat().st_mtime_ns == before


def test_an_incomplete_sweep_names_the_missing_runs(tmp_path: Path) -> None:
    standing = SweepRun({"adapter.rank": 4}, Run(tmp_path / "a"), State("failed", "CannotInject: no"))
    with pytest.raises(LabError, match="1 of 1 runs are not finished:\n  adapter.rank = 4: failed, CannotInject: no"):
        records([standing])


def test_stop_ends_the_active_run_and_starts_no_other(root: Path) -> None:
    stop, seen = threading.Event(), []

    def look(standings: Any) -> None:
        seen.append([standing.state.name for standing in standings])
        if "running" in seen[-1]:
            stop.set()

    ended = sweep(parsed(seeds=[0, 1]), root=root, stop=stop, on_update=look, every=0)
    assert [standing.state.name for standing in ended] == ["stopped", "unfinished"]
    assert seen[0] == ["unfinished"] * 2
    assert not ended[1].run.folder.exists()


class Threads:
    """Another executor: a miniature cluster."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.most, self.started = jobs, 0, []
        self.threads: dict[str, threading.Thread] = {}
        self.full = threading.Event()

    def opened(self, root: Path, specs: Sequence[RunSpec]) -> AbstractContextManager[None]:
        return nullcontext()

    def start(self, spec: RunSpec, root: Path, look: Callable[[], None], stop: threading.Event) -> None:
        self.started.append(spec.seed)
        if spec.seed == 3:
            raise OSError("the queue is full")
        record = Run(root / spec.id)
        self.threads[spec.id] = threading.Thread(target=self.work, args=(record, spec))
        self.threads[spec.id].start()
        self.most = max(self.most, sum(thread.is_alive() for thread in self.threads.values()))
        if self.most >= self.jobs:
            self.full.set()

    def work(self, record: Run, spec: RunSpec) -> None:
        self.full.wait(60)
        time.sleep(0.05)
        record.folder.mkdir(parents=True)
        record.write("summary.json", {"id": spec.id, "status": "finished"})

    def state(self, run: Run) -> State:
        thread = self.threads.get(run.id)
        return State("running") if thread and thread.is_alive() else state(run)


def test_any_executor_works_and_gets_no_more_than_its_jobs(tmp_path: Path) -> None:
    where, said = Threads(3), []
    ended = sweep(
        parsed(seeds=list(range(8))), root=tmp_path, executor=where, every=0.01, on_update=progress_printer(said.append)
    )
    assert [standing.state.name for standing in ended] == ["finished"] * 3 + ["failed"] + ["finished"] * 4
    assert ended[3].state.reason == "OSError: the queue is full"
    assert where.started == list(range(8))
    assert 2 <= where.most <= 3
    assert said[0] == "8 runs: 8 unfinished"
    assert "4 of 8, seed = 3: failed: OSError: the queue is full" in said
    again = Threads(3)
    sweep(parsed(seeds=list(range(8))), root=tmp_path, executor=again, every=0.01)
    assert again.started == [3]


def test_runs_active_elsewhere_are_followed_and_not_started(tmp_path: Path) -> None:
    where = Threads(2)
    one, two = parsed(seeds=[0, 1]).specs()
    where.start(two, tmp_path, lambda: None, threading.Event())
    ended = sweep(parsed(seeds=[0, 1]), root=tmp_path, executor=where, every=0.01)
    assert [standing.state.name for standing in ended] == ["finished"] * 2
    assert where.started == [1, 0]
    assert one.seed == 0


# Results of several runs


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 500)), min_size=1, max_size=8))
def test_the_interval_of_a_mean_holds_the_mean(tasks: list[tuple[float, int]]) -> None:
    low, high = mean_interval([share * total for share, total in tasks], [total for _, total in tasks])
    assert 0 <= low < high <= 1
    assert low - 1e-9 <= sum(share for share, _ in tasks) / len(tasks) <= high + 1e-9


def test_the_interval_of_one_task_is_nearly_that_of_wilson_and_shrinks_with_tasks() -> None:
    assert mean_interval([], []) == (0, 1)
    assert mean_interval([70], [100]) == pytest.approx(wilson(70, 100), abs=2e-3)
    (low, high), (lower, higher) = mean_interval([35] * 4, [50] * 4), mean_interval([35], [50])
    assert (higher - lower) / (high - low) == pytest.approx(2, rel=0.05)


def test_runs_that_differ_only_in_the_seed_are_one_result(tmp_path: Path) -> None:
    lora = [make_run(tmp_path, {"type": "lora"}, {"a": 10 + 2 * seed, "b": 20}, seed=seed) for seed in (2, 0)]
    base, half = make_run(tmp_path, None, {"a": 4, "b": 2}), make_run(tmp_path, {"type": "dora"}, {"a": 4})
    open_ = make_run(tmp_path, {"type": "lora"}, {"a": 1, "b": 1}, seed=5, done=False)
    found = groups([*lora, base, half, open_])
    assert [(group.name, group.seeds) for group in found] == [("lora", (0, 2)), ("base", (0,))]
    assert found[0].means == (0.75, 0.85)
    assert found[0].mean == pytest.approx(0.8)
    # Two seeds answer the same forty questions, which do not become eighty.
    assert (found[0].low, found[0].high) == mean_interval([12, 20], [20, 20])
    assert [group.name for group in groups([half, base], ["a"])] == ["dora", "base"]
    figure = plots.means(found)
    rows = [(row["name"], round(row["mean accuracy (%)"], 6)) for row in plots.data(figure)]
    assert rows == [("lora", 80), ("lora, seeds", 75), ("lora, seeds", 85), ("base", 15), ("base, seeds", 15)]
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # the first on top
    assert plots.means([]).layout.annotations[0].text == "nothing was scored"


def test_names_are_escaped(tmp_path: Path) -> None:
    rows = [make_run(tmp_path, {"type": "lora"}, {"a": 1}, data={"root": text}) for text in (HOSTILE, "x")]
    assert "<script" not in plots.means(groups(rows)).to_json().replace("\\u003c", "<")


def command(path: Path, root: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "llm_adapters_lab", "sweep", str(path), "--root", str(root), *more]


@pytest.mark.slow
def test_a_killed_and_resumed_sweep_equals_an_undisturbed_one(root: Path, tmp_path: Path) -> None:
    path, whole = written(tmp_path, TWELVE, "twelve"), tmp_path / "whole"
    expected = {run.id: timeless(run) for run in records(sweep(Sweep.load(path), root=whole))}
    assert len(expected) == 12
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(command(path, root), stdout=log, stderr=log)
        until(lambda: sum(run.done for run in list_runs(root)) >= 4)
        until(lambda: not list_runs(root)[-1].done)  # in the middle of one, too
        child.kill()
        assert child.wait() == -signal.SIGKILL
    done = {run.id: (run.folder / "summary.json").stat().st_mtime_ns for run in list_runs(root) if run.done}
    assert 4 <= len(done) < 12
    after = subprocess.run(command(path, root, "--json"), capture_output=True, text=True, check=True)
    assert [row["state"] for row in json.loads(after.stdout.splitlines()[-1])["runs"]] == ["finished"] * 12
    assert {run.id: timeless(run) for run in list_runs(root)} == expected
    assert {name: (root / name / "summary.json").stat().st_mtime_ns for name in done} == done
    assert [len(group.runs) for group in groups(list_runs(root))] == [2] * 6


@pytest.mark.slow
def test_launched_runs_outlive_the_sweep_and_equal_local_ones(root: Path, tmp_path: Path):
    path = written(tmp_path, {"spec": SMALL, "seeds": [0, 1]})
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(command(path, root, "--executor", "process", "--jobs", "2"), stdout=log, stderr=log)
        until(lambda: len(list(root.glob(".processes/*.json"))) == 4)  # a spec and a pid of each
        child.kill()
        child.wait()
    began = [Run(root.resolve() / spec.id) for spec in Sweep.load(path).specs()]
    pids = [json.loads(beside(run, "json").read_text(encoding="utf-8"))["pid"] for run in began]
    assert all(state(run).works for run in began)
    ended = sweep(Sweep.load(path), root=root, executor=Processes(2))
    assert [json.loads(beside(run, "json").read_text(encoding="utf-8"))["pid"] for run in began] == pids
    here = records(sweep(Sweep.load(path), root=tmp_path / "here"))
    assert [timeless(run) for run in records(ended)] == [timeless(run) for run in here]
