"""Nodes of a Ray cluster on this machine, in a process of their own: a JSON line in, one out, until stdin ends.

{"add": {environment}} -> {"node": number, "raylet": pid}; {"kill": number}; first of all it says {"address": ...}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
# Ray on this machine alone: it listens at 127.0.0.1, and asks nobody on the web.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
TRIES = 4  # a node that is busy otherwise may miss the 15 s that Ray gives its own parts to start


class Nodes:
    """A cluster, at first of one node with one processor; to be used in `with`."""

    def __init__(self, folder: Path) -> None:
        """Start its head; `folder` holds what its processes print."""
        self.environment = {**os.environ, **ALONE, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.environment |= {"HF_HUB_OFFLINE": "1", "HOME": str(folder / "home")}
        (folder / "home").mkdir()
        self.log = (folder / "nodes.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log},  # type: ignore[arg-type]
            **{"text": True, "env": self.environment, "cwd": folder},  # type: ignore[arg-type]
        )
        self.environment["RAY_ADDRESS"] = self._hear()["address"]

    def __enter__(self) -> Nodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        self.log.close()

    def add(self, **environment: str) -> dict[str, int]:
        """Add a node with one processor; `environment` goes to all that works there."""
        return self._ask({"add": environment})

    @contextmanager
    def another(self, **environment: str) -> Iterator[dict[str, int]]:
        """Have one more node inside `with`."""
        node = self.add(**environment)
        try:
            yield node
        finally:
            self.kill(node["node"])

    def kill(self, node: int) -> None:
        """Kill a node as if its machine had lost power."""
        self._ask({"kill": node})

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise AssertionError(f"the nodes have ended: {Path(self.log.name).read_text()[-2000:]}")


def _patiently(start: Callable[[], Any]) -> Any:
    for left in reversed(range(TRIES)):
        try:
            return start()
        except Exception:
            if not left:
                raise


def _serve() -> None:
    from ray.cluster_utils import Cluster

    plain = {"node_ip_address": "127.0.0.1", "num_cpus": 1, "include_log_monitor": False}
    cluster = Cluster()
    _patiently(lambda: cluster.add_node(**plain, include_dashboard=False))
    print(json.dumps({"address": cluster.address}), flush=True)
    nodes = []
    for line in sys.stdin:
        order = json.loads(line)
        if "add" in order:
            nodes.append(_patiently(lambda fields=order["add"]: cluster.add_node(**plain, env_vars=fields)))
            raylet = nodes[-1].all_processes["raylet"][0].process.pid
            print(json.dumps({"node": len(nodes) - 1, "raylet": raylet}), flush=True)
        else:
            cluster.remove_node(nodes[order["kill"]], allow_graceful=False)
            while nodes[order["kill"]].node_id in {
                n["NodeID"] for n in cluster.global_state.node_table() if n["Alive"]
            }:
                time.sleep(0.1)
            print("{}", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    _serve()
