"""Ray: the runs of a sweep on the nodes of a Ray cluster, each with the processors and GPUs it asks for.

Ray places the runs. If a node is lost, it restarts the run on another one, up to three times (its `max_retries`), and
the run resumes from its last checkpoint in the root, which all nodes share. If the node was only cut off and still
works, the lock of the run keeps the two apart, see `docs/gpu.md`. The runs end with the sweep: they are saved, and the
same command resumes them.

RAY_ADDRESS names the cluster ("auto": one started on this machine). Without it, Ray is started on this machine for this
sweep only, not reachable from others.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import BadSpec, ClusterError, LabError
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import State
from llm_adapters_lab.sweeps.nodes import NODE_TIMEOUT, SAVE_TIMEOUT, Job, check_node, marked_root, versions
from llm_adapters_lab.sweeps.remote import run_job


class Ray:
    """Submits every run to Ray, which has a queue of its own."""

    def __init__(self, jobs: int = 10_000, cpus: int = 1, gpus: float = 0) -> None:
        """Set the resources of each run.

        Args:
            jobs: maximum number of runs submitted at a time.
            cpus: processors of a run, which are also its number of threads.
            gpus: GPUs of a run. With 0.5, two runs share one, and its memory.
        """
        if jobs < 1 or cpus < 1 or gpus < 0:
            raise BadSpec(f"jobs = {jobs}, cpus = {cpus}, gpus = {gpus}: give at least 1, 1 and 0 for Ray.")
        self.jobs, self.cpus, self.gpus = jobs, cpus, gpus
        self._ray: Any = None
        self._mark = Path()
        self._tasks: dict[str, Any] = {}
        self._ended: dict[str, State] = {}

    @contextmanager
    def opened(self, root: Path, specs: Sequence[RunSpec]) -> Iterator[None]:
        """Connect and check every node; at the end, stop and save what is still running.

        Raises:
            ClusterError: there is no cluster, or a node does not answer, does not see the root or has other versions.
            BadSpec: Ray is not installed, or no node has what a run asks for.
        """
        with marked_root(root) as self._mark:
            self._ray = _connect()
            try:
                self._check_resources()
                self._check_nodes()
                yield
            finally:
                (self._mark / "stop").touch()
                if self._tasks:
                    self._ray.wait([*self._tasks.values()], num_returns=len(self._tasks), timeout=SAVE_TIMEOUT)
                    for name in [*self._tasks]:
                        self.state(Run(root / name))
                self._tasks.clear()
                self._ray.shutdown()

    def start(self, spec: RunSpec, root: Path, poll: Callable[[], None], stop: threading.Event) -> None:
        """Submit a run and return at once."""
        task = self._ray.remote(run_job).options(num_cpus=self.cpus, num_gpus=self.gpus, name=spec.id)
        self._tasks[spec.id] = task.remote(self._job(spec.model_dump(mode="json")))

    def state(self, run: Run) -> State:
        """Return the state of a run; if another process works on it, its node waits for that."""
        if run.id not in self._tasks:
            return self._ended.get(run.id) or State("finished" if run.done else "unfinished")
        if not self._ray.wait([self._tasks[run.id]], timeout=0)[0]:
            return State("running", "" if run.lock.exists() else "Waiting for Ray, or loading libraries.")
        try:
            self._ray.get(self._tasks.pop(run.id))
            ended = State("finished" if run.done else "stopped")
        except LabError as error:  # also of a class of Ray's, whose text is a traceback
            ended = State("failed", str(getattr(error, "cause", error)))
        except self._ray.exceptions.RayTaskError as error:
            ended = State("failed", f"{type(error.cause).__name__}: {error.cause}")
        except self._ray.exceptions.RayError as error:
            ended = State("dead", str(error))
        self._ended[run.id] = ended
        return ended

    def _job(self, spec: dict[str, Any]) -> Job:
        return Job(spec, str(self._mark.parents[1]), self._mark.name, versions(), self.cpus)

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _check_resources(self) -> None:
        free = [(n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0)) for n in self._nodes()]
        if not any(cpus >= self.cpus and gpus >= self.gpus for cpus, gpus in free):
            have = ", ".join(f"{cpus:g} and {gpus:g}" for cpus, gpus in free)
            raise BadSpec(
                f"No node has {self.cpus} processors and {self.gpus:g} GPUs for a run; the nodes have {have}. "
                "Ask for less (--cpus, --gpus), or add a larger node."
            )

    def _check_nodes(self) -> None:
        """Run `check_node` on every node, within `NODE_TIMEOUT`."""
        on, check = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy, self._ray.remote(check_node)
        nodes = {
            check.options(num_cpus=0, max_retries=0, scheduling_strategy=on(node["NodeID"], soft=False)).remote(
                self._job({})
            ): node["NodeManagerAddress"]
            for node in self._nodes()
        }
        answers, silent = self._ray.wait([*nodes], num_returns=len(nodes), timeout=NODE_TIMEOUT)
        for answer in answers:
            try:
                self._ray.get(answer)
            except LabError as error:
                cause = getattr(error, "cause", error)
                raise type(cause)(str(cause)) from None
            except self._ray.exceptions.RayTaskError as error:
                why = str(error).strip().splitlines()[-1]
                raise ClusterError(
                    f"The node {nodes[answer]} cannot run the lab: {why}. Install the same there."
                ) from None
            except self._ray.exceptions.RayError:  # the node was given up in the meantime
                silent.append(answer)
        if silent:
            names = ", ".join(nodes[answer] for answer in silent)
            raise ClusterError(
                f"No answer from {names} within {NODE_TIMEOUT:g} s: the machine or its storage does not respond. "
                "Repair it, or remove it from the cluster."
            )


def _connect() -> Any:
    """Return the module `ray`, connected to a cluster."""
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # makes Ray listen at 127.0.0.1 only
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # By default, a run that is killed for lack of memory is restarted for ever.
    os.environ.setdefault("RAY_task_oom_retries", "1")
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise BadSpec("Ray is not installed: pip install 'llm-adapters-lab[ray]', here and on all nodes.") from None
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "//" not in host:  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        what = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise ClusterError(f"{what} cannot be reached: {error}. See RAY_ADDRESS, and `ray status` there.") from None
    return ray
