"""Executors: where the runs of a sweep are done."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.runs.background import launch
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import State, state
from llm_adapters_lab.sweeps.ray_executor import Ray
from llm_adapters_lab.sweeps.slurm_executor import Slurm
from llm_adapters_lab.sweeps.studies import compatible, study


class Executor(Protocol):
    """Where runs are done.

    Attributes:
        jobs: maximum number of runs at a time.
    """

    jobs: int

    def opened(self, root: Path, specs: Sequence[RunSpec]) -> AbstractContextManager[None]:
        """Return a context for all work; its end stops what cannot continue without this process.

        Args:
            root: folder of all runs.
            specs: of all runs to be done.

        Raises:
            LabError: the executor is not available; no run was started.
        """
        return nullcontext()

    def start(self, spec: RunSpec, root: Path, poll: Callable[[], None], stop: threading.Event) -> None:
        """Start a run. Returns at once, or at the end of the run.

        Args:
            spec: of the run.
            root: folder of all runs.
            poll: called every now and then by an executor that returns at the end.
            stop: such an executor ends the run after the current step once it is set.

        Raises:
            Exception: the run has failed; this does not affect the others.
        """

    def state(self, run: Run) -> State:
        """Return the state of a run."""
        return state(run)


class Local(Executor):
    """In this process, one after the other.

    Attributes:
        most: maximum number of runs that are trained at once; see `study`.
    """

    most = 1

    def __init__(self, jobs: int = 1) -> None:
        """Allow one job at a time, the only possible value."""
        if jobs != 1:
            raise BadSpec(
                f"jobs = {jobs}: local and study work in this process, one after the other. "
                "Use the executor process for several at a time."
            )
        self.jobs = 1
        self._active: set[str] = set()
        self._todo: dict[str, RunSpec] = {}

    def opened(self, root: Path, specs: Sequence[RunSpec]) -> AbstractContextManager[None]:
        """Remember all runs, to choose from for a study."""
        self._todo = {spec.id: spec for spec in specs}
        return nullcontext()

    def start(self, spec: RunSpec, root: Path, poll: Callable[[], None], stop: threading.Event) -> None:
        """Do a run to its end, together with others that have not been started and can be trained with it."""
        tried = self._todo.pop(spec.id, None) is None
        if tried and (found := state(Run(root / spec.id))).name == "failed":
            raise LabError(found.reason)  # in a study that was started for another run
        alike = [other for other in self._todo.values() if compatible(spec, other) and not Run(root / other.id).done]
        group = [spec, *alike[: self.most - 1]]
        self._active = {each.id for each in group}
        for each in group:
            self._todo.pop(each.id, None)
        try:
            study(group, root=root, stop=stop, on_event=lambda record, event: poll())
        finally:
            self._active = set()
        if (found := state(Run(root / spec.id))).name == "failed":
            raise LabError(found.reason)

    def state(self, run: Run) -> State:
        """Return the state of a run."""
        return State("running") if run.id in self._active and not run.done else state(run)


class Studies(Local):
    """In this process, up to `most` runs trained at once if they can share a base and its passes; see `study`."""

    most = 8


class Processes(Executor):
    """In separate processes on this machine, which outlive the sweep; repeating the sweep finds them again.

    They share processors and GPU: with several at a time, set OMP_NUM_THREADS to each one's share of the processors.
    """

    def __init__(self, jobs: int = 1) -> None:
        """Allow at most `jobs` runs at a time."""
        if jobs < 1:
            raise BadSpec(f"jobs = {jobs}: at least one run at a time must be allowed.")
        self.jobs = jobs

    def start(self, spec: RunSpec, root: Path, poll: Callable[[], None], stop: threading.Event) -> None:
        """Launch a run and return at once."""
        launch(spec, root)


EXECUTORS: dict[str, Callable[..., Executor]] = {
    "local": Local,
    "process": Processes,
    "study": Studies,
    "ray": Ray,
    "slurm": Slurm,
}
"""The executors by their name on the command line."""


def make_executor(name: str, **options: float | None) -> Executor:
    """Return an executor.

    Args:
        name: a key of `EXECUTORS`.
        options: its parameters; None stands for the default.

    Raises:
        BadSpec: it has no such parameter, or does not accept the value.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if unknown := given.keys() - inspect.signature(EXECUTORS[name]).parameters:
        raise BadSpec(f"The executor {name} takes no {', '.join(f'--{key}' for key in sorted(unknown))}.")
    return EXECUTORS[name](**given)
