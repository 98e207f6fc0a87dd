"""Sweep: do all runs of a sweep, somewhere; what is finished is read, and what fails does not stop the others."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.runs.background import State
from llm_adapters_lab.runs.preflight import check_spec
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.sweeps.executors import Executor, Local
from llm_adapters_lab.sweeps.spec import Changes, Point, Sweep, refuse, words

WAITS = State("unfinished", "Waits for its turn.")


class Standing(NamedTuple):
    """How one run of a sweep stands.

    Attributes:
        changes: what sets it apart; see `Point`.
        run: its record, of which nothing need be there yet.
        state: as of `launch.state`.
    """

    changes: Changes
    run: Run
    state: State


def sweep(
    what: Sweep,
    *,
    root: str | Path = "runs",
    where: Executor | None = None,
    stop: threading.Event | None = None,
    on_look: Callable[[Sequence[Standing]], None] | None = None,
    every: float = 0.5,
) -> list[Standing]:
    """Do the runs of a sweep that are not finished; the same call takes up one that was interrupted.

    Every combination is checked before anything starts, its model, placement and rows included.

    Args:
        what: the sweep.
        root: folder of all runs.
        where: they are done; default: in this process.
        stop: set it from another thread to start nothing more and stop a run of this process.
        on_look: called with all standings when it begins, about every `every` seconds, and at the end.
        every: seconds between two looks.

    Returns:
        How every run stands in the end. One that failed has its reason in its state.

    Raises:
        BadSpec: combinations cannot be run; nothing was started.
        LabError: the executor cannot work; nothing was started.
    """
    points = what.points()
    work = _Work(points, where or Local(), Path(root), stop or threading.Event(), on_look, every)
    check(todo := [point for point in points if point.spec.id in work.waiting])
    work.look()
    if work.waiting or work.at_work():
        with work.where.opened(work.root, [point.spec for point in todo]):
            work.to_the_end()
    work.look()
    return work.standings()


def check(points: Sequence[Point]) -> None:
    """Find what cannot be run: model, placement, rows.

    Raises:
        BadSpec: there is something; the message names the combinations.
    """
    wrong: dict[str, str] = {}
    read: dict[str, str] = {}
    for changes, spec in points:
        rows = json.dumps([spec.data.model_dump(), spec.eval.model_dump(), spec.adapter is None])
        try:
            if rows not in read:
                read[rows] = ""
                read_rows(spec)
            check_spec(spec)
        except LabError as error:
            wrong[words(changes)] = str(error)
    refuse(wrong)


def teller(say: Callable[[str], None] = print) -> Callable[[Sequence[Standing]], None]:
    """Return a listener for `sweep` that says a line for every run whose state has changed."""
    seen: dict[str, str] = {}

    def tell(standings: Sequence[Standing]) -> None:
        if not seen:
            say(f"{len(standings)} runs: {counted(standings)}")
            seen.update({standing.run.id: standing.state.name for standing in standings})
        for number, (changes, record, state) in enumerate(standings, 1):
            if seen[record.id] != state.name:
                seen[record.id] = state.name
                reason = f": {state.reason}" if state.name in ("failed", "dead") else ""
                say(f"{number} of {len(standings)}, {words(changes)}: {state.name}{reason}")

    return tell


def counted(standings: Sequence[Standing]) -> str:
    """Return how many runs are in which state, in words."""
    numbers = Counter(standing.state.name for standing in standings)
    return ", ".join(f"{numbers[name]} {name}" for name in sorted(numbers))


def records(ended: Sequence[Standing]) -> list[Run]:
    """Return the records of a sweep that is wanted as a whole.

    Raises:
        LabError: some runs are not finished; the message says which and why.
    """
    open_ = [f"{words(changes)}: {state.name}, {state.reason}" for changes, record, state in ended if not record.done]
    if open_:
        raise LabError(f"{len(open_)} of {len(ended)} runs are not finished:\n  " + "\n  ".join(open_))
    return [standing.run for standing in ended]


class _Work:
    """What a sweep has to do and how far it is; see `sweep` for the fields."""

    def __init__(
        self,
        points: Sequence[Point],
        where: Executor,
        root: Path,
        stop: threading.Event,
        on_look: Callable[[Sequence[Standing]], None] | None,
        every: float,
    ) -> None:
        self.points, self.where, self.stop, self.on_look, self.every = points, where, stop, on_look, every
        self.root = root.resolve()
        self.ended: dict[str, State] = {}
        self.waiting = {p.spec.id for p in points if where.state(self._record(p)).name != "finished"}
        self._looked = 0.0

    def to_the_end(self) -> None:
        """Start all, and follow until nothing is at work or it is asked to stop."""
        while not self.stop.is_set():
            self.begin()
            if not self.waiting and not self.at_work():
                return
            if not self.waiting or self.at_work() >= self.where.jobs:
                time.sleep(self.every)
            self.look()

    def begin(self) -> None:
        """Start what may be started; what somebody else has started is followed."""
        for point in [p for p in self.points if p.spec.id in self.waiting]:
            if self.stop.is_set() or self.at_work() >= self.where.jobs:
                return
            self.waiting.discard(point.spec.id)
            found = self.where.state(self._record(point))
            if found.works or found.name == "finished":
                continue
            try:
                self.where.start(point.spec, self.root, self.glance, self.stop)
            except Exception as error:
                self.ended[point.spec.id] = State("failed", f"{type(error).__name__}: {error}")

    def at_work(self) -> int:
        """Return how many runs are at work."""
        return sum(standing.state.works for standing in self.standings())

    def standings(self) -> list[Standing]:
        """Return how every run stands."""
        return [Standing(p.changes, record := self._record(p), self._state(record)) for p in self.points]

    def look(self) -> None:
        """Tell how every run stands."""
        self._looked = time.monotonic()
        if self.on_look:
            self.on_look(self.standings())

    def glance(self) -> None:
        """Look, if the last look is long ago."""
        if time.monotonic() - self._looked >= self.every:
            self.look()

    def _record(self, point: Point) -> Run:
        return Run(self.root / point.spec.id)

    def _state(self, record: Run) -> State:
        if record.id not in self.ended:
            found = self.where.state(record)
            if found.works:
                return found
            if record.id in self.waiting and found.name != "finished":
                return WAITS
            self.ended[record.id] = found
        return self.ended[record.id]
