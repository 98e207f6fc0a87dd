"""Executors: where the runs of a sweep are done."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.runs import background
from llm_adapters_lab.runs.background import State
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.ray_executor import Ray
from llm_adapters_lab.sweeps.slurm_executor import Slurm
from llm_adapters_lab.sweeps.studies import fits, study


class Executor(Protocol):
    """Where runs are done."""

    jobs: int

    def opened(self, root: Path, specs: Sequence[RunSpec]) -> AbstractContextManager[None]:
        """Be ready for work inside `with`, and end there what cannot go on without this process.

        Args:
            root: folder of all runs.
            specs: all that is to be done.

        Raises:
            LabError: there is nothing to work with; no run was started.
        """

    def start(self, spec: RunSpec, root: Path, look: Callable[[], None], stop: threading.Event) -> None:
        """Begin a run, and return before its end or at it.

        Args:
            spec: what to do.
            root: folder of all runs.
            look: called now and then by one that returns at the end only.
            stop: once it is set, such a one ends the run after the step it is at.

        Raises:
            Exception: the run has failed; the others are done all the same.
        """

    def state(self, run: Run) -> State:
        """Say how a run stands."""


class Local:
    """In this process, one after the other."""

    def __init__(self, jobs: int = 1) -> None:
        """Do one run at a time; `jobs` can be nothing else."""
        if jobs != 1:
            raise BadSpec(f"jobs = {jobs}: local does one run at a time. Use the executor process.")
        self.jobs, self.at_work = 1, ""

    def opened(self, root: Path, specs: Sequence[RunSpec]) -> AbstractContextManager[None]:
        """Need nothing."""
        return nullcontext()

    def start(self, spec: RunSpec, root: Path, look: Callable[[], None], stop: threading.Event) -> None:
        """Do a run to its end."""
        self.at_work = spec.id
        try:
            run(spec, root=root, stop=stop, on_event=lambda _: look())
        finally:
            self.at_work = ""

    def state(self, run: Run) -> State:
        """Say how a run stands."""
        return State("running") if run.id == self.at_work else background.state(run)


class Studies:
    """In this process, those that can share a base and its passes trained at once; see `study`.

    Attributes:
        most: adapters that are trained at once.
    """

    most = 8

    def __init__(self, jobs: int = 1) -> None:
        """Do one study at a time; `jobs` can be nothing else."""
        if jobs != 1:
            raise BadSpec(f"jobs = {jobs}: a study is one process. Use the executor process for several.")
        self.jobs = 1
        self.at_work: set[str] = set()
        self._todo: dict[str, RunSpec] = {}

    def opened(self, root: Path, specs: Sequence[RunSpec]) -> AbstractContextManager[None]:
        """Take note of all that is to be done, to choose from for a study."""
        self._todo = {spec.id: spec for spec in specs}
        return nullcontext()

    def start(self, spec: RunSpec, root: Path, look: Callable[[], None], stop: threading.Event) -> None:
        """Do a run to its end, and with it others that have not been started yet and can be trained with it."""
        tried = self._todo.pop(spec.id, None) is None
        if tried and (found := background.state(Run(root / spec.id))).name == "failed":
            raise LabError(found.reason)  # in a study that another one began
        alike = [other for other in self._todo.values() if fits(spec, other) and not Run(root / other.id).done]
        group = [spec, *alike[: self.most - 1]]
        self.at_work = {each.id for each in group}
        for each in group:
            self._todo.pop(each.id, None)
        try:
            study(group, root=root, stop=stop, on_event=lambda record, event: look())
        finally:
            self.at_work = set()
        if (found := background.state(Run(root / spec.id))).name == "failed":
            raise LabError(found.reason)

    def state(self, run: Run) -> State:
        """Say how a run stands."""
        return State("running") if run.id in self.at_work and not run.done else background.state(run)


class Processes:
    """In processes of their own on this machine; they go on when the sweep is gone, and it finds them again.

    They share processors and GPU: with several of them set OMP_NUM_THREADS to the share of processors of each.
    """

    def __init__(self, jobs: int = 1) -> None:
        """Do at most so many runs at a time."""
        if jobs < 1:
            raise BadSpec(f"jobs = {jobs}: at least one run at a time must be allowed.")
        self.jobs = jobs

    def opened(self, root: Path, specs: Sequence[RunSpec]) -> AbstractContextManager[None]:
        """Need nothing."""
        return nullcontext()

    def start(self, spec: RunSpec, root: Path, look: Callable[[], None], stop: threading.Event) -> None:
        """Launch a run and return at once."""
        background.launch(spec, root)

    def state(self, run: Run) -> State:
        """Say how a run stands."""
        return background.state(run)


EXECUTORS: dict[str, Callable[..., Executor]] = {
    "local": Local,
    "process": Processes,
    "study": Studies,
    "ray": Ray,
    "slurm": Slurm,
}
"""By the name that the command line gives them."""


def executor(name: str, **asked: float | None) -> Executor:
    """Return the executor of that name.

    Args:
        name: of `EXECUTORS`.
        asked: what it is made with; what is None is left to it.

    Raises:
        BadSpec: it takes no such thing, or not that much of it.
    """
    given = {key: value for key, value in asked.items() if value is not None}
    if odd := given.keys() - inspect.signature(EXECUTORS[name]).parameters:
        raise BadSpec(f"The executor {name} takes no {', '.join(f'--{key}' for key in sorted(odd))}.")
    return EXECUTORS[name](**given)
