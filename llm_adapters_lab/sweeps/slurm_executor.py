"""Slurm: every run of a sweep as a job of its own, through submitit; sbatch reads SBATCH_PARTITION and its like.

A job that is preempted or comes to its time limit is put into the queue again, and its run goes on after its last
checkpoint. The jobs end with the sweep: the runs are saved, and the same command takes them up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.background import State
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.remote import SAVING, Order, carry_out, marked, versions


class Slurm:
    """Submits every run; `engine` is that of submitit, "local" for processes of this machine."""

    def __init__(
        self, jobs: int = 1000, cpus: int = 1, gpus: int = 0, hours: float = 24, engine: str = "slurm"
    ) -> None:
        """Ask for so many processors, GPUs and hours for each run, and have at most so many jobs in the queue."""
        if jobs < 1 or cpus < 1 or gpus < 0 or gpus != int(gpus):
            raise BadSpec(f"jobs = {jobs}, cpus = {cpus}, gpus = {gpus}: Slurm gives whole ones, one job at least.")
        self.jobs, self.cpus, self.gpus, self.minutes, self.engine = jobs, cpus, int(gpus), int(60 * hours), engine
        self._mark, self._tasks = Path(), dict[str, Any]()
        self._submit: Any = None

    @contextmanager
    def opened(self, root: Path, specs: Sequence[RunSpec]) -> Iterator[None]:
        """Find Slurm; in the end stop what is still at work, saved."""
        try:
            import submitit

            executor = submitit.AutoExecutor(root / ".slurm", self.engine)
        except ImportError:
            raise BadSpec("submitit is not installed here: pip install 'llm-adapters-lab[slurm]'.") from None
        except RuntimeError as error:
            raise BadSpec(f"There is no Slurm on this machine: {error} Use another executor.") from None
        asked = {"timeout_min": self.minutes, "cpus_per_task": self.cpus, "gpus_per_node": self.gpus}
        executor.update_parameters(name="lab", **asked)
        with marked(root) as self._mark:
            self._submit = executor.submit
            try:
                yield
            finally:
                (self._mark / "stop").touch()
                until = time.monotonic() + SAVING
                while any(not job.done() for job in self._tasks.values()) and time.monotonic() < until:
                    time.sleep(1)
                for job in self._tasks.values():
                    job.cancel(check=False)

    def start(self, spec: RunSpec, root: Path, look: Callable[[], None], stop: threading.Event) -> None:
        """Put a run into the queue and return at once."""
        order = Order(spec.model_dump(mode="json"), str(root), self._mark.name, versions(), self.cpus)
        self._tasks[spec.id] = self._submit(_Work(), order)

    def state(self, run: Run) -> State:
        """Say how a run stands; one that others work on is waited for in its job."""
        job = self._tasks.get(run.id)
        if job is None or run.done:
            return State("finished" if run.done else "unfinished")
        if not job.done():
            return State("running", "" if run.lock.exists() else f"Slurm: {job.state}".lower())
        return State("failed", str(error).strip()) if (error := job.exception()) else State("stopped")


class _Work:
    def __call__(self, order: Order) -> None:
        carry_out(order)

    def checkpoint(self, order: Order) -> Any:
        """Say what is put into the queue again: the same, since the run itself knows how far it is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, order)
