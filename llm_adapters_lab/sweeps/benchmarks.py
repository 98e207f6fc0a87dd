"""Benchmark files: methods that each get the same number of runs to search, and several seeds for what they find.

    spec: {base: nano, data: {task: mini-math, validation: 64}, train: {max_steps: 80}, eval: {tasks: [mini-addsub]}}

Methods:
      lora: {adapter: {type: lora, rank: 8, at: attn+mlp}}
      series: {adapter: series, search: {train.learning_rate: {log-uniform: [1e-3, 1e-1]}}}
    bases: [nano]                       # optional; default: that of spec
    tasks: [mini-math]                  # optional; what is learnt, one benchmark each
    search: {runs: 6, seed: 0, fields: {train.learning_rate: {log-uniform: [1e-4, 3e-2]}}}
    seeds: [0, 1, 2]

A method is searched by its validation loss, on rows held out of the training rows; nothing is scored meanwhile. The
best of its runs is repeated with every seed, and only these runs answer the test questions.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, field_validator, model_validator

from llm_adapters_lab.config import Part, change, parse
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.runs.presets import read_spec
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.signatures import checked
from llm_adapters_lab.sweeps.executors import Executor
from llm_adapters_lab.sweeps.spec import MAX_COMBINATIONS, Changes, Distribution, Draws, Point, describe_changes, reject
from llm_adapters_lab.sweeps.sweeping import Listener, SweepRun, check_points, sweep


class Method(Part):
    """What is compared."""

    adapter: dict[str, Any] | str = Field(description="its adapter: fields, a name or a preset")
    fields: dict[str, Any] = Field(default_factory=dict, description="other dotted fields that it sets")
    search: dict[str, Distribution] = Field(
        default_factory=dict, description="dotted fields with its own ranges, in place of common ones"
    )


class Search(Part):
    """The budget of every method, and what it may vary."""

    runs: int = Field(default=6, ge=1, le=1000, description="runs of each method for a base and a task")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the draws, and of the runs")
    fields: dict[str, Distribution] = Field(default_factory=dict, description="dotted fields with common ranges")


class Contest(NamedTuple):
    """A place of a benchmark: what is learnt by which method over which base."""

    base: str
    task: str
    method: str

    @property
    def words(self) -> str:
        """The same in words."""
        return f"{self.method} on {self.task} over {self.base}"


class Benchmark(Part):
    """Methods, what they learn, and an equal budget."""

    name: str = Field(default="benchmark", pattern=r"^[\w.-]+$", description="default: the name of the file")
    spec: dict[str, Any] = Field(description="common to all runs: fields of a spec, a spec file or a preset")
    methods: dict[str, Method] = Field(min_length=1, description="by name")
    bases: list[str] = Field(default_factory=list, description="default: the base of spec")
    tasks: list[str] = Field(default_factory=list, description="what is learnt; default: the task of spec")
    search: Search = Field(default_factory=Search, description="what each method may try")
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1, description="seeds of the best run of each method")

    @field_validator("spec", mode="before")
    @classmethod
    def _spec(cls, value: Any) -> Any:
        return read_spec(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_fair(self) -> Benchmark:
        if len({*self.seeds}) < len(self.seeds):
            raise BadSpec("seeds names one twice. Name each seed once.")
        ranges = {name: self.ranges(name) for name in self.methods}
        if self.search.runs > 1 and (fixed := [name for name, own in ranges.items() if not own]):
            raise BadSpec(
                f"{', '.join(fixed)} has nothing to search, and would win or lose by its one setting. Give "
                "search.fields a range, or the method a `search` of its own; or set search.runs: 1 for all."
            )
        for name, own in ranges.items():
            varied = [*own, *self.methods[name].fields]
            if bad := [field for field in varied if field.partition(".")[0] in ("base", "eval", "seed", "data")]:
                raise BadSpec(f"{name} cannot vary {bad[0]}, which would change what is compared. Remove it.")
        if self.count > MAX_COMBINATIONS:
            raise BadSpec(f"The benchmark has {self.count:,} runs, and at most {MAX_COMBINATIONS:,} are allowed.")
        for point in (point for contest in self.contests() for point in self._points(contest, [{}])):
            self._check(point.spec)
        return self

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Benchmark:
        """Make a benchmark from plain data.

        Raises:
            BadSpec: a key is unknown or a value not allowed.
        """
        return parse(cls, fields)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Benchmark:
        """Read a benchmark file.

        Raises:
            BadSpec: the file is missing, cannot be read, or holds no valid benchmark.
        """
        path = Path(path)
        fields = {"name": path.stem, **read_spec(path)}
        if "spec" not in fields or "methods" not in fields:
            raise BadSpec(f"{path} is no benchmark: it has no key `{'spec' if 'spec' not in fields else 'methods'}`.")
        beside = path.parent / spec if isinstance(spec := fields["spec"], str) else None
        return cls.parse(fields | ({"spec": str(beside)} if beside and beside.is_file() else {}))

    @property
    def count(self) -> int:
        """Number of runs, of search and scoring together; fewer if a method has fewer different settings to try."""
        places = len(self.methods) * max(1, len(self.bases)) * max(1, len(self.tasks))
        return places * (self.search.runs + len(self.seeds))

    def ranges(self, method: str) -> dict[str, Distribution]:
        """Return the fields that a method searches, with its ranges."""
        return self.search.fields | self.methods[method].search

    def contests(self) -> list[Contest]:
        """Return all places, those of one base and task after one another."""
        common = RunSpec.parse({**self.spec, "adapter": None})
        bases, tasks = self.bases or [common.base], self.tasks or [common.data.task]
        return [Contest(base, task, method) for base in bases for task in tasks for method in self.methods]

    def searched(self, contest: Contest) -> list[Point]:
        """Return the runs of the search of a place, without scores.

        Raises:
            BadSpec: some draws are no valid spec.
        """
        fields = self.ranges(contest.method)
        drawn = [{}] if not fields else Draws(count=self.search.runs, seed=self.search.seed, fields=fields).draw()
        quiet: Changes = {"eval.tasks": [], "seed": self.search.seed}
        return self._points(contest, [draw | quiet for draw in drawn])

    def finals(self, contest: Contest, best: Changes) -> list[Point]:
        """Return the runs of a place that are scored: its best setting with every seed."""
        setting = {name: best[name] for name in self.ranges(contest.method) if name in best}
        return self._points(contest, [setting | {"seed": seed} for seed in self.seeds])

    def _points(self, contest: Contest, several: Sequence[Changes]) -> list[Point]:
        method, found, faults = self.methods[contest.method], dict[str, Point](), dict[str, str]()
        own: Changes = {"base": contest.base, "data.task": contest.task, **method.fields}
        for changes in several:
            try:
                fields = change({**self.spec, "adapter": _written(method.adapter)}, own | changes)
                spec = RunSpec.parse(fields)
            except LabError as error:
                faults[f"{contest.words}, {describe_changes(changes)}"] = str(error)
            else:
                found.setdefault(spec.id, Point(changes, spec))
        reject(faults)
        return list(found.values())

    @staticmethod
    def _check(spec: RunSpec) -> None:
        if not spec.eval.tasks:
            raise BadSpec("eval.tasks is empty, so that nothing would be compared. Name what is scored.")
        if not spec.data.validation:
            raise BadSpec(
                "data.validation = 0: methods would be searched on what they have learnt, or on the test. "
                "Hold rows out."
            )
        if not spec.learns:
            raise BadSpec("A method of a benchmark has to learn something; a bare base or saved adapters do not.")


@dataclass(frozen=True)
class Trial:
    """A run of the search.

    Attributes:
        contest: its place.
        changes: what was drawn.
        run: its record.
        loss: the lowest validation loss, in nats; infinite if it has failed.
    """

    contest: Contest
    changes: Changes
    run: Run
    loss: float


@dataclass(frozen=True)
class Outcome:
    """What a benchmark has found.

    Attributes:
        benchmark: what was asked.
        trials: of the search, in order of their places.
        finals: the scored runs of each place, by seed; empty where all trials have failed.
        unfinished: why runs have not ended, by run id.
    """

    benchmark: Benchmark
    trials: tuple[Trial, ...]
    finals: Mapping[Contest, tuple[Run, ...]]
    unfinished: Mapping[str, str]

    def best(self, contest: Contest) -> Trial | None:
        """Return the trial of a place with the lowest loss; None if all have failed."""
        own = [trial for trial in self.trials if trial.contest == contest and math.isfinite(trial.loss)]
        return min(own, key=lambda trial: trial.loss, default=None)


class _Fixed(NamedTuple):
    """Runs that are done like those of a sweep."""

    chosen: list[Point]

    def points(self) -> list[Point]:
        return self.chosen


def benchmark(
    what: Benchmark,
    *,
    root: str | Path = "runs",
    executor: Executor | None = None,
    stop: threading.Event | None = None,
    on_update: Listener | None = None,
) -> Outcome:
    """Search every method with the same budget, then score the best setting of each with several seeds.

    Finished runs are read, so that the same call resumes an interrupted benchmark.

    Args:
        what: the benchmark.
        root: folder of all runs.
        executor: where the runs are done; default: in this process.
        stop: set it from another thread to start no further runs.
        on_update: called with the runs of a stage while they are done.

    Raises:
        BadSpec: a setting is invalid; nothing was started.
        LabError: a model, rows or the executor are at fault.
    """
    stop = stop or threading.Event()
    places = {contest: what.searched(contest) for contest in what.contests()}
    check_points([point for contest in places for point in what.finals(contest, places[contest][0].changes)], root)
    drawn = [point for points in places.values() for point in points]
    done = {each.run.id: each for each in _do(drawn, root, executor, stop, on_update)}
    trials = tuple(
        Trial(contest, point.changes, done[point.spec.id].run, _loss(done[point.spec.id].run))
        for contest, points in places.items()
        for point in points
    )
    outcome = Outcome(what, trials, {}, _unfinished(done.values()))
    if stop.is_set():
        return outcome
    best = {contest: outcome.best(contest) for contest in places}
    scored = {contest: what.finals(contest, trial.changes) for contest, trial in best.items() if trial}
    ended = _do([point for points in scored.values() for point in points], root, executor, stop, on_update)
    by_id = {each.run.id: each.run for each in ended}
    finals = {contest: tuple(by_id[point.spec.id] for point in points) for contest, points in scored.items()}
    return Outcome(what, trials, finals, _unfinished([*done.values(), *ended]))


def _do(points: list[Point], root: Any, executor: Any, stop: threading.Event, on_update: Any) -> list[SweepRun]:
    unique = list({point.spec.id: point for point in points}.values())
    return sweep(_Fixed(unique), root=root, executor=executor, stop=stop, on_update=on_update) if unique else []


def _loss(run: Run) -> float:
    losses = [event["loss"] for event in run.events("Validated")] if run.done else []
    return min(losses, default=math.inf)


def _unfinished(runs: Any) -> dict[str, str]:
    return {each.run.id: each.state.reason or each.state.name for each in runs if not each.run.done}


def _written(adapter: dict[str, Any] | str) -> dict[str, Any]:
    return {"type": adapter} if isinstance(adapter, str) else adapter
