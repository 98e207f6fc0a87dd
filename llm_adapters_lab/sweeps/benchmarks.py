"""Benchmark files: methods that each get the same number of runs to search, and several seeds for what they find.

    spec: {base: nano, data: {task: mini-math, validation: 64}, train: {max_steps: 80}, eval: {tasks: [mini-addsub]}}

Methods:
      lora: {adapter: {type: lora, rank: 8, at: attn+mlp}}
      series: {adapter: series, search: {train.learning_rate: {log-uniform: [1e-3, 1e-1]}}}
    bases: [nano]                       # optional; default: that of spec
    tasks: [mini-math]                  # optional; what is learnt, one benchmark each; or {task: mini-math, rows: 64}
    retained: [mini-bool]               # optional; what is not learnt, but also answered
    search: {runs: 6, seed: 0, fields: {train.learning_rate: {log-uniform: [1e-4, 3e-2]}}}   # see `searching`
    seeds: [0, 1, 2]

A method is searched by its validation loss, on rows held out of the training rows; nothing is scored meanwhile. The
best of its runs is repeated with every seed, and only these runs answer the test questions.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, field_validator, model_validator

from llm_adapters_lab.config import Part, change
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.models.blueprint import blueprint
from llm_adapters_lab.runs.preflight import check_rows
from llm_adapters_lab.runs.presets import read_spec
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import state
from llm_adapters_lab.signatures import checked
from llm_adapters_lab.sweeps.executors import Executor
from llm_adapters_lab.sweeps.searching import RUNS, Asker, Look, Search, levels, survivors, training_cost
from llm_adapters_lab.sweeps.spec import MAX_COMBINATIONS, Changes, Distribution, Point, describe_changes, reject
from llm_adapters_lab.sweeps.sweeping import Listener, check_points, sweep
from llm_adapters_lab.tasks.contamination import overlap

PACE = ("train.batch", "train.epochs", "train.max_steps", "train.evaluate_every")
"""Fields in which runs that are compared before their end must be equal."""


class Method(Part):
    """What is compared."""

    adapter: dict[str, Any] | str = Field(description="its adapter: fields, a name or a preset")
    fields: dict[str, Any] = Field(default_factory=dict, description="other dotted fields that it sets")
    search: dict[str, Distribution] = Field(
        default_factory=dict, description="dotted fields with its own ranges, in place of common ones"
    )


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
    tasks: list[str | dict[str, Any]] = Field(
        default_factory=list,
        description="what is learnt: tasks, or fields of data such as {task: mini-math, rows: 64}; default: as in spec",
    )
    retained: list[str] = Field(
        default_factory=list, description="tasks that are not learnt, to report how their accuracy changes"
    )
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
        if self.search.runs != 1 and (fixed := [name for name, own in ranges.items() if not own]):
            raise BadSpec(
                f"{', '.join(fixed)} has nothing to search, and would win or lose by its one setting. Give "
                "search.fields a range, or the method a `search` of its own; or set search.runs: 1 for all."
            )
        for name, own in ranges.items():
            varied = [*own, *self.methods[name].fields]
            if bad := [field for field in varied if field.partition(".")[0] in ("base", "eval", "seed", "data")]:
                raise BadSpec(f"{name} cannot vary {bad[0]}, which would change what is compared. Remove it.")
            if self.search.rule != "none" and (bad := sorted({*varied} & {*PACE})):
                raise BadSpec(
                    f"search.rule = {self.search.rule} compares runs at the same step, but {name} varies {bad[0]}. "
                    "Remove one of the two."
                )
        asked = RunSpec.parse({**self.spec, "adapter": None}).eval.tasks
        if twice := {*asked} & {*self.retained}:
            raise BadSpec(f"{min(twice)} is in eval.tasks and in retained. Remove it from one of them.")
        if self.search.rule != "none" and not self.looks:
            raise BadSpec(
                f"search.rule = {self.search.rule} ends runs at validations, but there is none before the end. "
                "Set train.evaluate_every to a part of train.max_steps."
            )
        if self.count > MAX_COMBINATIONS:
            raise BadSpec(f"The benchmark has {self.count:,} runs, and at most {MAX_COMBINATIONS:,} are allowed.")
        for contest in self.contests():
            self._check(self.points(contest, [{}])[0].spec)
        return self

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
        """Number of runs, of search and scoring together, as far as known: a budget in tokens is not counted in runs.

        It is smaller if a method has fewer different settings to try. The bare bases are among them.
        """
        bases = max(1, len(self.bases))
        places = len(self.methods) * bases * max(1, len(self.tasks))
        return places * ((self.search.runs or RUNS) + len(self.seeds)) + bases

    @property
    def looks(self) -> dict[int, float]:
        """The steps at which runs may end, every validation before the last step, with the level of the test there."""
        train = RunSpec.parse({**self.spec, "adapter": None}).train
        every, steps = train.evaluate_every, train.max_steps or 0
        return levels(range(every, steps, every), steps) if every else {}

    def ranges(self, method: str) -> dict[str, Distribution]:
        """Return the fields that a method searches, with its ranges."""
        return self.search.fields | self.methods[method].search

    def contests(self) -> list[Contest]:
        """Return all places, those of one base and task after one another."""
        common = RunSpec.parse({**self.spec, "adapter": None})
        bases, tasks = self.bases or [common.base], [*self._data()]
        return [Contest(base, task, method) for base in bases for task in tasks for method in self.methods]

    def _data(self) -> dict[str, dict[str, Any]]:
        """Return the fields of `data` of everything that is learnt, by its name in words."""
        common = RunSpec.parse({**self.spec, "adapter": None}).data.task
        given = [{"task": each} if isinstance(each, str) else {"task": common, **each} for each in self.tasks]
        return {
            ", ".join(
                [str(fields["task"]), *(f"{name} {value}" for name, value in fields.items() if name != "task")]
            ): fields
            for fields in given or [{"task": common}]
        }

    def comparisons(self) -> list[list[Contest]]:
        """Return the places that are compared with each other: those of one base and task."""
        places = self.contests()
        shared = dict.fromkeys((contest.base, contest.task) for contest in places)
        return [[contest for contest in places if (contest.base, contest.task) == both] for both in shared]

    def room(self, contest: Contest) -> int:
        """Return the number of runs that the budget has room for.

        Raises:
            BadSpec: it is 0.
            LabError: base or rows cannot be read.
        """
        first = self.points(contest, [{}])[0].spec
        if not (found := self.search.count(first)):
            cost = training_cost(first)
            raise BadSpec(
                f"The budget of {self.search.budget} has no room for one run of {contest.words}, which takes "
                f"{cost.tokens:,.0f} tokens and {cost.flops:.3g} FLOPs. Raise it, or lower train.max_steps."
            )
        return found

    def searched(self, contest: Contest) -> list[Point]:
        """Return the runs of the search of a place, without scores.

        Raises:
            BadSpec: some draws are no valid spec, or the budget has no room for one.
            LabError: base or rows cannot be read.
        """
        return self.quiet(contest, self.search.settings(self.ranges(contest.method), self.room(contest)))

    def quiet(self, contest: Contest, settings: Sequence[Changes]) -> list[Point]:
        """Return the runs of some settings, without scores."""
        quiet: Changes = {"eval.tasks": [], "seed": self.search.seed}
        return self.points(contest, [setting | quiet for setting in settings])

    def finals(self, contest: Contest, best: Changes) -> list[Point]:
        """Return the runs of a place that are scored: its best setting with every seed."""
        setting = {name: best[name] for name in self.ranges(contest.method) if name in best}
        return self.points(contest, [setting | self._asked() | {"seed": seed} for seed in self.seeds])

    def bare(self, base: str) -> Point:
        """Return the run that scores a bare base."""
        fields = {**self.spec, "base": base, "adapter": None}
        asked = self._asked() | {"eval.group": None}  # a bare base has no parts
        return Point({"base": base, "adapter": None}, RunSpec.parse(change(fields, asked)))

    def _asked(self) -> Changes:
        tasks = RunSpec.parse({**self.spec, "adapter": None}).eval.tasks
        return {"eval.tasks": [*tasks, *self.retained]} if self.retained else {}

    def points(self, contest: Contest, several: Sequence[Changes]) -> list[Point]:
        """Return the runs of a place with these changes, to which its method is added; of equal ones the first.

        Raises:
            BadSpec: some are no valid spec.
        """
        method, found, faults = self.methods[contest.method], dict[str, Point](), dict[str, str]()
        data = {f"data.{name}": value for name, value in self._data()[contest.task].items()}
        own: Changes = {"base": contest.base, **data, **method.fields}
        called = contest.words if len(self.bases) > 1 or len(self.tasks) > 1 else contest.method
        for changes in several:
            try:
                fields = change({**self.spec, "adapter": _written(method.adapter)}, own | changes)
                spec = RunSpec.parse(fields)
            except LabError as error:
                faults[f"{contest.words}, {describe_changes(changes)}"] = str(error)
            else:
                found.setdefault(spec.id, Point({"method": called} | changes, spec))
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
        tokens: number of tokens that it has learnt from.
        ended: step at which a rule has ended it; None for a whole run.
    """

    contest: Contest
    changes: Changes
    run: Run
    loss: float
    tokens: int
    ended: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a benchmark has found.

    Attributes:
        benchmark: what was asked.
        trials: of the search, in order of their places.
        finals: the scored runs of each place, by seed; empty where all trials have failed.
        unfinished: why runs have not ended, by run id.
        bare: the run that scores each base without an adapter.
    """

    benchmark: Benchmark
    trials: tuple[Trial, ...]
    finals: Mapping[Contest, tuple[Run, ...]]
    unfinished: Mapping[str, str]
    bare: Mapping[str, Run] = field(default_factory=dict)

    def best(self, contest: Contest) -> Trial | None:
        """Return the trial of a place with the lowest loss; None if all have failed."""
        own = [trial for trial in self.trials if trial.contest == contest and trial.ended is None]
        own = [trial for trial in own if math.isfinite(trial.loss)]
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

    Finished runs are read, so that the same call resumes an interrupted benchmark. The bare bases are scored as well.
    With `stop` set from the start, nothing is done: the outcome is what the records say.

    Args:
        what: the benchmark.
        root: folder of all runs.
        executor: where the runs are done; default: in this process.
        stop: set it from another thread to start no further runs.
        on_update: called with the runs of a stage while they are done.

    Raises:
        BadSpec: a setting is invalid; nothing was started.
        LabError: a model, rows or the executor are at fault, or Optuna is not installed.
    """
    work = _Work(what, Path(root), executor, stop or threading.Event(), on_update)
    places = what.contests()
    bare = {base: what.bare(base) for base in dict.fromkeys(contest.base for contest in places)}
    finals = {contest: what.finals(contest, {}) for contest in places}
    work.check([*(point for points in finals.values() for point in points), *bare.values()])
    for contest in {(c.base, c.task): c for c in places}.values() if not work.stop.is_set() else ():
        _check_rows(contest, finals[contest][0].spec)
    trials = work.by_turns() if what.search.by == "tpe" else work.at_once()
    outcome = Outcome(what, tuple(trials), {}, work.unfinished)
    best = {contest: trial for contest in places if (trial := outcome.best(contest))}
    if work.stop.is_set() and any(trial.ended is None and not _over(trial.run) for trial in trials):
        return outcome
    scored = {contest: what.finals(contest, trial.changes) for contest, trial in best.items()}
    work.do([*bare.values(), *(point for points in scored.values() for point in points)])
    done = {contest: tuple(work.run(point) for point in points) for contest, points in scored.items()}
    return Outcome(what, tuple(trials), done, work.unfinished, {base: work.run(p) for base, p in bare.items()})


def _check_rows(contest: Contest, spec: RunSpec) -> None:
    """Refuse rows that a base cannot be trained or scored on, and a test set that is also searched on."""
    try:
        rows = read_rows(spec)
        check_rows(spec, rows, blueprint(*spec.base_parts))
    except LabError as error:
        raise BadSpec(f"{contest.task} over {contest.base}: {error}") from error
    for name, asked in rows.test.items():
        if both := overlap(rows.train[: spec.data.validation], asked)["exact"]:
            raise BadSpec(
                f"{both} of the {len(asked)} test questions of {name} are among the held-out rows of {contest.task}, "
                "on which settings are searched. Use another test set, or other training rows."
            )


@dataclass
class _Work:
    """Does the runs of a benchmark; see `benchmark` for the first parameters."""

    what: Benchmark
    root: Path
    executor: Executor | None
    stop: threading.Event
    on_update: Listener | None
    unfinished: dict[str, str] = field(default_factory=dict)

    def run(self, point: Point) -> Run:
        """Return the record of a run."""
        return Run(self.root / point.spec.id)

    def check(self, points: Sequence[Point]) -> None:
        """Check runs before the first one; see `check_points`."""
        if not self.stop.is_set():
            check_points(points, self.root)

    def do(self, points: Sequence[Point]) -> None:
        """Do runs, or continue those that have paused; none if a stop is requested."""
        chosen = list({point.spec.id: point for point in points}.values())
        if not chosen or self.stop.is_set():
            return
        ended = sweep(_Fixed(chosen), root=self.root, executor=self.executor, stop=self.stop, on_update=self.on_update)
        for (_, run, end), point in zip(ended, chosen, strict=True):
            paused = point.spec.train.pause_at
            if run.done or (paused and _look(run, paused)):
                self.unfinished.pop(run.id, None)
            else:
                self.unfinished[run.id] = end.reason or end.name

    def at_once(self) -> list[Trial]:
        """Do a search whose settings are known, and end runs at the looks of its rule."""
        places = {contest: self.what.searched(contest) for contest in self.what.contests()}
        self.check([point for points in places.values() for point in points])
        left, ended = dict(places), dict[tuple[Contest, str], int]()
        for step, level in self.what.looks.items() if self.what.search.rule != "none" else ():
            self.do([_paused(p, step) for points in left.values() for p in points if not _look(self.run(p), step)])
            runs = [self.run(point) for points in left.values() for point in points]
            if self.stop.is_set() and not all(_look(run, step) or _over(run) for run in runs):
                break
            for contest, points in left.items():
                seen = {p.spec.id: look for p in points if (look := _look(self.run(p), step))}
                kept = survivors(self.what.search.rule, seen, level)
                ended |= {(contest, p.spec.id): step for p in points if p.spec.id in seen and p.spec.id not in kept}
                left[contest] = [p for p in points if p.spec.id in kept]
        self.do([point for points in left.values() for point in points])
        return [
            self._trial(contest, point, ended.get((contest, point.spec.id)))
            for contest, points in places.items()
            for point in points
        ]

    def by_turns(self) -> list[Trial]:
        """Do a search in which each setting follows from the losses before; the methods take their turns together."""
        rooms = {contest: self.what.room(contest) for contest in self.what.contests()}
        askers = {
            contest: Asker(self.what.ranges(contest.method), self.what.search.seed)
            for contest in rooms
            if self.what.ranges(contest.method)
        }
        trials = dict[tuple[Contest, str], Trial]()
        for turn in range(max(rooms.values())):
            asked = {}
            for contest in [contest for contest, room in rooms.items() if turn < room]:
                changes, tell = askers[contest].ask() if contest in askers else ({}, None)
                asked[contest] = self.what.quiet(contest, [changes])[0], tell
            self.do([point for point, _ in asked.values()])
            if self.stop.is_set() and not all(_over(self.run(point)) for point, _ in asked.values()):
                break
            for contest, (point, tell) in asked.items():
                trial = trials[contest, point.spec.id] = self._trial(contest, point, None)
                if tell:
                    tell(trial.loss)
        return [trial for contest in rooms for (of, _), trial in trials.items() if of == contest]

    def _trial(self, contest: Contest, point: Point, ended: int | None) -> Trial:
        run, last = self.run(point), ended or math.inf  # another benchmark may have done a whole run
        losses = [e["loss"] for e in run.events("Validated") if e["step"] <= last] if run.done or ended else []
        tokens = [event["tokens"] for event in run.events("Step") if event["step"] <= last]
        return Trial(contest, point.changes, run, min(losses, default=math.inf), max(tokens, default=0), ended)


def _paused(point: Point, step: int) -> Point:
    train = point.spec.train.model_copy(update={"pause_at": step})
    return Point(point.changes, point.spec.model_copy(update={"train": train}))


def _look(run: Run, step: int) -> Look | None:
    """Return what a run was at the validation after a step; None if it has not come so far."""
    found = next((event for event in run.events("Validated") if event["step"] == step), None)
    return Look(found["loss"], found["right"]) if found else None


def _over(run: Run) -> bool:
    """Return whether a run has ended, well or not."""
    return run.done or state(run).name == "failed"


def _written(adapter: dict[str, Any] | str) -> dict[str, Any]:
    return {"type": adapter} if isinstance(adapter, str) else adapter
