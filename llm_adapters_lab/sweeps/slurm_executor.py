"""Slurm: every run of a sweep as a separate job, through submitit; sbatch reads SBATCH_PARTITION and the like.

A job that is preempted or reaches its time limit is queued again, and its run resumes from the last checkpoint. The
jobs end with the sweep: the runs are saved, and the same command resumes them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import State
from llm_adapters_lab.sweeps.nodes import SAVE_TIMEOUT, Job, marked_root, versions
from llm_adapters_lab.sweeps.remote import run_job


class Slurm:
    """Submits every run; `engine` is that of submitit ("local": processes on this machine)."""

    def __init__(
        self, jobs: int = 1000, cpus: int = 1, gpus: int = 0, hours: float = 24, engine: str = "slurm"
    ) -> None:
        """Queue at most `jobs` jobs; each asks for processors, GPUs and hours."""
        if jobs < 1 or cpus < 1 or gpus < 0 or gpus != int(gpus):
            raise BadSpec(
                f"jobs = {jobs}, cpus = {cpus}, gpus = {gpus}: give whole numbers of at least 1, 1 and 0 for Slurm."
            )
        self.jobs, self.cpus, self.gpus, self.minutes, self.engine = jobs, cpus, int(gpus), int(60 * hours), engine
        self._mark, self._jobs = Path(), dict[str, Any]()
        self._submit: Any = None

    @contextmanager
    def opened(self, root: Path, specs: Sequence[RunSpec]) -> Iterator[None]:
        """Find Slurm; at the end, stop and save what is still running."""
        try:
            import submitit

            executor = submitit.AutoExecutor(root / ".slurm", self.engine)
        except ImportError:
            raise BadSpec("submitit is not installed here: pip install 'llm-adapters-lab[slurm]'.") from None
        except RuntimeError as error:
            raise BadSpec(f"There is no Slurm on this machine: {error} Use another executor.") from None
        executor.update_parameters(
            name="lab", timeout_min=self.minutes, cpus_per_task=self.cpus, gpus_per_node=self.gpus
        )
        with marked_root(root) as self._mark:
            self._submit = executor.submit
            try:
                yield
            finally:
                (self._mark / "stop").touch()
                until = time.monotonic() + SAVE_TIMEOUT
                while any(not job.done() for job in self._jobs.values()) and time.monotonic() < until:
                    time.sleep(1)
                for job in self._jobs.values():
                    job.cancel(check=False)

    def start(self, spec: RunSpec, root: Path, poll: Callable[[], None], stop: threading.Event) -> None:
        """Queue a run and return at once."""
        job = Job(spec.model_dump(mode="json"), str(root), self._mark.name, versions(), self.cpus)
        self._jobs[spec.id] = self._submit(_Task(), job)

    def state(self, run: Run) -> State:
        """Return the state of a run; if another process works on it, its job waits for that."""
        job = self._jobs.get(run.id)
        if job is None or run.done:
            return State("finished" if run.done else "unfinished")
        if not job.done():
            return State("running", "" if run.lock.exists() else f"Slurm: {job.state}".lower())
        return State("failed", str(error).strip()) if (error := job.exception()) else State("stopped")


class _Task:
    def __call__(self, job: Job) -> None:
        run_job(job)

    def checkpoint(self, job: Job) -> Any:
        """Return what to queue again after a preemption: the same job, since the run resumes by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)
