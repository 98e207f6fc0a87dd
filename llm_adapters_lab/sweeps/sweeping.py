"""Do all runs of a sweep, on any executor; finished runs are read, and a failing one does not stop the others."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.runs.forecast.duration import Duration, estimate
from llm_adapters_lab.runs.forecast.size import Size, size_of
from llm_adapters_lab.runs.preflight import check_spec
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.status import State, state
from llm_adapters_lab.sweeps.executors import Executor, Local
from llm_adapters_lab.sweeps.spec import Changes, Point, describe_changes, reject

WAITS = State("unfinished", "Waiting to be started.")


class SweepRun(NamedTuple):
    """One run of a sweep and its state.

    Attributes:
        changes: what distinguishes it; see `Point`.
        run: its record, which may not exist yet.
        state: from `Executor.state`.
    """

    changes: Changes
    run: Run
    state: State


Listener = Callable[[Sequence[SweepRun]], None]


class Planned(Protocol):
    """Something that has runs, such as a `Sweep`."""

    def points(self) -> list[Point]:
        """Return the runs."""


def sweep(
    what: Planned,
    *,
    root: str | Path = "runs",
    executor: Executor | None = None,
    stop: threading.Event | None = None,
    on_update: Listener | None = None,
    every: float = 0.5,
) -> list[SweepRun]:
    """Do the runs of a sweep that are not finished; the same call resumes an interrupted sweep.

    Every combination is checked before anything starts, including its model, placement and rows.

    Args:
        what: the sweep.
        root: folder of all runs.
        executor: where the runs are done; default: in this process.
        stop: set it from another thread to start no further runs and stop one in this process.
        on_update: called with all runs at the start, about every `every` seconds, and at the end.
        every: seconds between two updates.

    Returns:
        All runs with their final states; that of a failed one has the reason.

    Raises:
        BadSpec: some combinations are invalid; nothing was started.
        LabError: the executor is not available; nothing was started.
    """
    points = what.points()
    work = _Scheduler(points, executor or Local(), Path(root).resolve(), stop or threading.Event(), on_update, every)
    todo = [point for point in points if point.spec.id in work.waiting]
    check_points(todo, root)
    work.update()
    if work.waiting or work.active():
        with work.executor.opened(work.root, [point.spec for point in todo]):
            work.finish()
    work.update()
    return work.runs()


def check_points(points: Sequence[Point], root: str | Path = "runs") -> None:
    """Check model, placement and rows of every run.

    Raises:
        BadSpec: some cannot be run; the message names the combinations.
    """
    faults: dict[str, str] = {}
    read: set[str] = set()
    for changes, spec in points:
        rows = json.dumps([spec.data.model_dump(), spec.eval.model_dump(), spec.adapter is None])
        try:
            if rows not in read:
                read.add(rows)
                read_rows(spec)
            check_spec(spec, root=root)
        except LabError as error:
            faults[describe_changes(changes)] = str(error)
    reject(faults)


class Cost(NamedTuple):
    """What one run of a sweep would cost; see `SweepRun` for the first attributes.

    Attributes:
        size: parameters, and bytes of weights and optimiser; activations are not included.
        duration: how long it would take alone, and how that is known.
    """

    changes: Changes
    run: Run
    state: State
    size: Size
    duration: Duration


def costs(points: Sequence[Point], root: str | Path = "runs") -> list[Cost]:
    """Estimate what every run of a sweep would cost; nothing is started.

    Raises:
        LabError: a model or an adapter cannot be built.
    """
    found = []
    for changes, spec in points:
        run = Run(Path(root).resolve() / spec.id)
        found.append(Cost(changes, run, state(run), size_of(spec), estimate(spec, root)))
    return found


def progress_printer(say: Callable[[str], None] = print) -> Listener:
    """Return an `on_update` for `sweep` that prints a line whenever the state of a run changes."""
    seen: dict[str, str] = {}

    def update(runs: Sequence[SweepRun]) -> None:
        if any(each.run.id not in seen for each in runs):
            say(f"{len(runs)} runs: {count_states(runs)}")
            seen.update({each.run.id: each.state.name for each in runs})
        for number, (changes, run, (name, reason)) in enumerate(runs, 1):
            if seen[run.id] != name:
                seen[run.id] = name
                why = f": {reason}" if name in ("failed", "dead") else ""
                say(f"{number} of {len(runs)}, {describe_changes(changes)}: {name}{why}")

    return update


def count_states(runs: Sequence[SweepRun]) -> str:
    """Return the number of runs in each state, in words."""
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(each.state.name for each in runs).items()))


def records(runs: Sequence[SweepRun]) -> list[Run]:
    """Return the records of a sweep that must be complete.

    Raises:
        LabError: some runs are not finished; the message says which and why.
    """
    unfinished = [
        f"{describe_changes(changes)}: {name}, {reason}" for changes, run, (name, reason) in runs if not run.done
    ]
    if unfinished:
        raise LabError(f"{len(unfinished)} of {len(runs)} runs are not finished:\n  " + "\n  ".join(unfinished))
    return [each.run for each in runs]


@dataclass
class _Scheduler:
    """Starts the runs of a sweep and follows them; see `sweep` for the parameters."""

    points: Sequence[Point]
    executor: Executor
    root: Path
    stop: threading.Event
    on_update: Listener | None
    every: float
    ended: dict[str, State] = field(default_factory=dict)
    updated: float = 0.0

    def __post_init__(self) -> None:
        self.waiting = {p.spec.id for p in self.points if self.executor.state(self._record(p)).name != "finished"}

    def finish(self) -> None:
        """Start all runs, and follow them until none is active or `stop` is set."""
        while not self.stop.is_set():
            self.start()
            if not self.waiting and not self.active():
                return
            if not self.waiting or self.active() >= self.executor.jobs:
                time.sleep(self.every)
            self.update()

    def start(self) -> None:
        """Start as many runs as the executor takes; those already started elsewhere are only followed."""
        for point in [p for p in self.points if p.spec.id in self.waiting]:
            if self.stop.is_set() or self.active() >= self.executor.jobs:
                return
            self.waiting.discard(point.spec.id)
            found = self.executor.state(self._record(point))
            if found.works or found.name == "finished":
                continue
            try:
                self.executor.start(point.spec, self.root, self.poll, self.stop)
            except Exception as error:
                self.ended[point.spec.id] = State("failed", f"{type(error).__name__}: {error}")

    def active(self) -> int:
        """Return the number of active runs."""
        return sum(each.state.works for each in self.runs())

    def runs(self) -> list[SweepRun]:
        """Return all runs with their states."""
        return [SweepRun(p.changes, record := self._record(p), self._state(record)) for p in self.points]

    def update(self) -> None:
        """Tell the listener about all runs."""
        self.updated = time.monotonic()
        if self.on_update:
            self.on_update(self.runs())

    def poll(self) -> None:
        """Update if the last update was long ago."""
        if time.monotonic() - self.updated >= self.every:
            self.update()

    def _record(self, point: Point) -> Run:
        return Run(self.root / point.spec.id)

    def _state(self, record: Run) -> State:
        if record.id not in self.ended:
            found = self.executor.state(record)
            if found.works:
                return found
            if record.id in self.waiting and found.name != "finished":
                return WAITS
            self.ended[record.id] = found
        return self.ended[record.id]
