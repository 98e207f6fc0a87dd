"""Sweeps on a real Ray cluster of two nodes on this machine: killed, silent and differing nodes."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray_nodes import ALONE, ROOT, Nodes
from records import timeless
from safetensors.torch import load_file, save_file

from llm_adapters_lab import __version__
from llm_adapters_lab.errors import BadSpec, ClusterError, LabError
from llm_adapters_lab.models.source import NANO
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.sweeps import ray_executor
from llm_adapters_lab.sweeps.executors import Local
from llm_adapters_lab.sweeps.ray_executor import Ray
from llm_adapters_lab.sweeps.spec import Sweep
from llm_adapters_lab.sweeps.sweeping import SweepRun, records, sweep
from llm_adapters_lab.training import checkpoints

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: make cluster-test"
)
SEEDS, STEPS = [0, 1, 2], 60
SMALL: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4, "dropout": 0.1},
    "data": {"task": "mini-math", "rows": 12},
    "train": {"batch": 8, "max_steps": STEPS, "epochs": 99.0, "checkpoint_every": 2},
    "eval": {"tasks": ["mini-bool"], "rows": 6, "batch": 2, "max_new_tokens": 4, "likelihood": False},
}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A cluster of which no process is left after the tests."""
    with Nodes(tmp_path_factory.mktemp("nodes")) as made:
        yield made
        left = psutil.Process(made.process.pid).children(recursive=True)
    assert len(left) >= 3
    _, alive = psutil.wait_procs(left, timeout=20)
    assert not alive
    assert made.process.returncode == 0


def until(true: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 240.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found


@contextmanager
def started(nodes: Nodes, file: Path, root: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start a sweep, and kill it at the end in any case."""
    command = [sys.executable, "-P", "-m", "llm_adapters_lab", "sweep", str(file), "--executor", "ray"]
    command += ["--root", str(root), *words]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=nodes.environment, cwd=root.parent, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "some.yaml"
    path.write_text(yaml.safe_dump({"spec": {**SMALL, **changes}, "seeds": SEEDS}), encoding="utf-8")
    return path


@pytest.fixture
def here(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect this process to the cluster, which avoids importing torch again."""
    monkeypatch.chdir(tmp_path.parent)  # the nodes import from the working directory of the caller
    for name in (*ALONE, "RAY_ADDRESS", "HOME"):
        monkeypatch.setenv(name, nodes.environment[name])


def refused(root: Path, error: type[LabError], message: str, where: Ray | None = None) -> None:
    """Check that a sweep fails soon with a message, and leaves nothing."""
    began = time.monotonic()
    with pytest.raises(error, match=message):
        sweep(Sweep.parse({"spec": SMALL, "seeds": SEEDS}), root=root, executor=where or Ray())
    assert time.monotonic() - began < 30
    assert [path.name for path in root.iterdir()] == [".nodes"]
    assert not list((root / ".nodes").iterdir())


def test_after_a_node_is_killed_nothing_is_lost_or_repeated(nodes: Nodes, tmp_path: Path) -> None:
    file, root = written(tmp_path), tmp_path / "runs"
    ids = [spec.id for spec in Sweep.load(file).specs()]
    other = nodes.add()

    def there() -> Run | None:
        """Return the run on the other node once it has taken some steps."""
        for run in map(Run, (root / name for name in ids)):
            held = run.lock.read_text() if run.lock.exists() else ""
            if held and psutil.Process(json.loads(held)["pid"]).ppid() == other["raylet"]:
                steps = sum(1 for _ in run.events("Step"))
                return run if steps > 10 else None
        return None

    with started(nodes, file, root) as process:
        struck = until(there, process)
        worker = psutil.Process(json.loads(struck.lock.read_text())["pid"])
        before = sum(1 for _ in struck.events("Step"))
        assert before < STEPS and not struck.done
        nodes.kill(other["node"])
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0, out + error
        worker.wait(10)

    local = records(sweep(Sweep.load(file), root=tmp_path / "local", executor=Local()))
    assert [timeless(Run(root / run.id)) for run in local] == [timeless(run) for run in local]
    for run in map(Run, (root / name for name in ids)):
        resumed = list(run.events("Resumed"))
        assert len(list(run.events("Started"))) == 1
        assert [e["step"] for e in run.events("Step")] == list(range(1, STEPS + 1))
        assert len(resumed) == (run.id == struck.id)
        if resumed:
            assert resumed[0]["step"] >= before - 4  # two checkpoints of two steps
    assert not list(root.glob(".nodes/*"))


@pytest.mark.usefixtures("here")
def test_stopped_runs_are_saved(tmp_path: Path) -> None:
    stop = threading.Event()

    def look(standings: Sequence[SweepRun]) -> None:
        if any(sum(1 for _ in s.run.events("Step")) > 4 for s in standings):
            stop.set()

    what = Sweep.parse({"spec": SMALL, "seeds": SEEDS})
    ended = sweep(what, root=tmp_path, executor=Ray(), stop=stop, on_update=look)
    assert "stopped" in {s.state.name for s in ended} <= {"stopped", "unfinished"}
    begun = [s.run for s in ended if list(s.run.events("Step"))]
    assert begun and all(checkpoints.steps(run.folder) for run in begun)
    assert all(list(run.events("Stopped")) for run in begun)


@pytest.mark.usefixtures("here")
def test_resources_that_no_node_has_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, BadSpec, "No node has 64 processors and 1 GPUs for a run; the nodes have 1 and 0", Ray(9, 64, 1))


@pytest.mark.usefixtures("here")
def test_an_unreachable_cluster_is_reported_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    refused(tmp_path, ClusterError, "cluster at 127.0.0.1:1 cannot be reached: .*refused")


@pytest.mark.usefixtures("here")
def test_a_node_with_another_version_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    other, root = tmp_path / "other", tmp_path / "runs"
    shutil.copytree(ROOT / "llm_adapters_lab", other / "llm_adapters_lab", ignore=shutil.ignore_patterns("nano"))
    (other / "llm_adapters_lab" / "_version.py").write_text('__version__ = "0.0.9"\n', encoding="utf-8")
    with nodes.another(PYTHONPATH=str(other)):
        refused(root, ClusterError, f"has llm_adapters_lab 0.0.9, not {__version__}. Install the same there")


@pytest.mark.usefixtures("here")
def test_a_node_that_does_not_answer_is_named(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "NODE_TIMEOUT", 10.0)
    with nodes.another() as node:
        os.kill(node["raylet"], signal.SIGSTOP)
        refused(tmp_path, ClusterError, "No answer from 127.0.0.1.* within 10 s")


@pytest.mark.usefixtures("here")
def test_a_base_that_differs_between_nodes_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    homes = Path(nodes.environment["HOME"]), tmp_path / "home"
    for home in homes:
        shutil.copytree(NANO, home / "base")
    weights = load_file(homes[1] / "base" / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, homes[1] / "base" / "model.safetensors", metadata={"format": "pt"})
    what = Sweep.parse({"spec": {**SMALL, "base": "~/base"}, "seeds": [0, 1]})
    with nodes.another(HOME=str(homes[1])):
        ended = sweep(what, root=tmp_path / "runs", executor=Ray())
    states = {s.state.name: s.state.reason for s in ended}
    assert set(states) == {"finished", "failed"}
    assert "The base ~/base on the node" in states["failed"] and "has other weights" in states["failed"]
    (failed,) = (s.run for s in ended if s.state.name == "failed")
    assert not list(failed.events("Step"))
