"""Ray: the runs of a sweep on the nodes of a Ray cluster, each with the processors and GPUs it asks for.

Ray places the runs, and starts one again whose node is lost, on another node, up to three times (its `max_retries`);
the run then goes on after its last checkpoint in the root, which all nodes share. Should the lost node be cut off and
work on, the lock of the run keeps the two apart, see `docs/gpu.md`. The runs end with the sweep: they are saved, and
the same command takes them up.

RAY_ADDRESS names the cluster ("auto": one that was begun on this machine). Without it Ray is started here, for this
sweep alone and seen from this machine alone.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import BadSpec, LabError, Unreachable
from llm_adapters_lab.runs.background import State
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.remote import SAVING, SECONDS, Order, carry_out, fit, marked, versions


class Ray:
    """Submits every run to Ray, which has a queue of its own."""

    def __init__(self, jobs: int = 10_000, cpus: int = 1, gpus: float = 0) -> None:
        """Ask for so much for each run.

        Args:
            jobs: most runs that are handed to Ray at a time.
            cpus: processors of a run; it computes with as many threads.
            gpus: GPUs of a run. Half of one lets two runs share it, and its memory.
        """
        if jobs < 1 or cpus < 1 or gpus < 0:
            raise BadSpec(f"jobs = {jobs}, cpus = {cpus}, gpus = {gpus}: give 1 or more, 1 or more, 0 or more.")
        self.jobs, self.cpus, self.gpus = jobs, cpus, gpus
        self._ray: Any = None
        self._mark = Path()
        self._tasks: dict[str, Any] = {}
        self._ended: dict[str, State] = {}

    @contextmanager
    def opened(self, root: Path, specs: Sequence[RunSpec]) -> Iterator[None]:
        """Connect, and look at every node; in the end stop what is still at work, saved.

        Raises:
            Unreachable: there is no cluster, or a node that does not answer or does not see the root.
            NodesDiffer: a node has other versions.
            BadSpec: Ray is not installed, or no node has what a run asks for.
        """
        with marked(root) as self._mark:
            self._ray = _connected()
            try:
                self._check()
                yield
            finally:
                (self._mark / "stop").touch()
                if self._tasks:
                    self._ray.wait([*self._tasks.values()], num_returns=len(self._tasks), timeout=SAVING)
                    for name in [*self._tasks]:
                        self.state(Run(root / name))
                self._tasks.clear()
                self._ray.shutdown()

    def start(self, spec: RunSpec, root: Path, look: Callable[[], None], stop: threading.Event) -> None:
        """Hand a run to Ray and return at once."""
        task = self._ray.remote(carry_out).options(num_cpus=self.cpus, num_gpus=self.gpus, name=spec.id)
        self._tasks[spec.id] = task.remote(self._order(spec.model_dump(mode="json")))

    def state(self, run: Run) -> State:
        """Say how a run stands; one that others work on is waited for on its node."""
        if run.id not in self._tasks:
            return self._ended.get(run.id) or State("finished" if run.done else "unfinished")
        if not self._ray.wait([self._tasks[run.id]], timeout=0)[0]:
            return State("running", "" if run.lock.exists() else "Ray has no room for it yet, or libraries are loaded.")
        task = self._tasks.pop(run.id)
        try:
            self._ray.get(task)
            self._ended[run.id] = State("finished" if run.done else "stopped")
        except LabError as error:  # of this class and of one of Ray's, whose text is its traceback
            self._ended[run.id] = State("failed", str(getattr(error, "cause", error)))
        except self._ray.exceptions.RayTaskError as error:
            self._ended[run.id] = State("failed", f"{type(error.cause).__name__}: {error.cause}")
        except self._ray.exceptions.RayError as error:
            self._ended[run.id] = State("dead", str(error))
        return self._ended[run.id]

    def _order(self, spec: dict[str, Any]) -> Order:
        return Order(spec, str(self._mark.parents[1]), self._mark.name, versions(), self.cpus)

    def _check(self) -> None:
        """Look at every node, within `SECONDS`."""
        nodes = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        room = [(n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0)) for n in nodes.values()]
        if not any(cpus >= self.cpus and gpus >= self.gpus for cpus, gpus in room):
            has = ", ".join(f"{cpus:g} and {gpus:g}" for cpus, gpus in room)
            raise BadSpec(
                f"No node has {self.cpus} processors and {self.gpus:g} GPUs for a run; the nodes have {has}. Ask for "
                "less (--cpus, --gpus), or begin with a larger node."
            )
        on = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        look = self._ray.remote(fit)
        asked = {
            look.options(num_cpus=0, max_retries=0, scheduling_strategy=on(name, soft=False)).remote(self._order({})): n
            for name, n in nodes.items()
        }
        answered, silent = self._ray.wait([*asked], num_returns=len(asked), timeout=SECONDS)
        # A node that Ray gives up in the meantime has answered nothing either.
        silent += [answer for answer in answered if not self._heard(answer, asked[answer])]
        if silent:
            names = ", ".join(asked[answer]["NodeManagerAddress"] for answer in silent)
            raise Unreachable(
                f"No answer within {SECONDS:g} s from {names}: the machine or its storage hangs. Mend it."
            )

    def _heard(self, answer: Any, node: dict[str, Any]) -> bool:
        try:
            self._ray.get(answer)
        except LabError as error:
            cause = getattr(error, "cause", error)
            raise type(cause)(str(cause)) from None
        except self._ray.exceptions.RayTaskError as error:
            where, why = node["NodeManagerAddress"], str(error).strip().splitlines()[-1]
            raise Unreachable(f"The node {where} cannot run the lab: {why}. Install the same there.") from None
        except self._ray.exceptions.RayError:
            return False
        return True


def _connected() -> Any:
    """Return Ray, connected to a cluster."""
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray then listens at 127.0.0.1 alone
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A run that is killed for lack of memory would otherwise be started again for ever.
    os.environ.setdefault("RAY_task_oom_retries", "1")
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise BadSpec(
            "Ray is not installed here: pip install 'llm-adapters-lab[ray]', here and on all nodes."
        ) from None
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "//" not in host:  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        what = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise Unreachable(f"{what} cannot be reached: {error}. See RAY_ADDRESS, and `ray status` there.") from None
    return ray
