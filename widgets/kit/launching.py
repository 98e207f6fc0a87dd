"""Start runs from a panel: one at once if nothing else works, otherwise through the queue; and whole benchmarks.

A benchmark is a process of its own, which outlives page and kernel. Next to the records lie

<root>/.processes/benchmark-<name>.process.json  its file, its process, and when it was started
                  benchmark-<name>.log           its output
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.files import read_json, write_json
from llm_adapters_lab.runs.event_log import last_lines
from llm_adapters_lab.runs.processes import command, lives, spawn
from llm_adapters_lab.runs.queue import queued
from llm_adapters_lab.runs.record import Run, check_writable
from llm_adapters_lab.runs.recovery.lock import hold
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import state
from llm_adapters_lab.sweeps import queue
from llm_adapters_lab.sweeps.benchmarks import Benchmark
from widgets.kit import kernel_runs, warm
from widgets.kit.workspace import Workspace


def start(specs: Sequence[RunSpec], workspace: Workspace) -> list[Run]:
    """Start runs: a single one at once if no run is active or waits, otherwise one after another through the queue.

    Finished runs are not repeated, active ones are not started twice, and interrupted ones are resumed. Checking a spec
    takes a fraction of a second, so call this by `asyncio.to_thread` for several.

    Args:
        specs: of the runs, in the order in which they are to be started.
        workspace: says where; if its runs are threads of the kernel, there can be only one.

    Returns:
        The record of every spec, in order; `status.state` tells which are finished, active or queued.

    Raises:
        LabError: some cannot be run, or the root cannot be written to; none is started.
    """
    root, wanted = workspace.root, {spec.id: spec for spec in specs}
    runs = [Run(root / name) for name in wanted]
    todo = [spec for run, spec in zip(runs, wanted.values(), strict=True) if not run.done and not state(run).works]
    if not workspace.process:
        if len(todo) > 1:
            raise LabError(
                f"{len(todo)} runs cannot share this kernel. Start one of them, or make the lab without process=False."
            )
        for spec in todo:
            kernel_runs.launch(spec, root)
    elif len(todo) == 1 and not queued(root) and not queue.active(root):
        warm.launch(todo[0], root)
    elif todo:
        queue.enqueue(todo, root)
        keep(workspace)
    return runs


def keep(workspace: Workspace) -> None:
    """Let the queued runs be started, if any waits and no process does that."""
    queue.keep(workspace.root, begin=warm.begin)


def start_now(run: Run) -> None:
    """Start a queued run at once, beside those that are active.

    Raises:
        LabError: its spec cannot be run.
    """
    queue.start_now(run, warm.begin)


def start_benchmark(file: str | Path, root: Path) -> None:
    """Start a benchmark, or continue it, in a process of its own; nothing happens if it is active.

    Raises:
        LabError: the file holds no valid benchmark, or the root cannot be written to.
    """
    name = Benchmark.load(file).name
    check_writable(root)
    beside(root, name, "process.json").parent.mkdir(parents=True, exist_ok=True)
    with hold(beside(root, name, "lock")):
        if not is_active(root, name):
            words = ["benchmark", str(Path(file).resolve()), "--root", str(root), "--executor", "process"]
            process = spawn(*command(*words), beside(root, name, "log"))
            write_json(beside(root, name, "process.json"), process | {"file": str(file), "time": time.time()})


def stop_benchmark(root: Path, name: str) -> None:
    """Let a benchmark start no further runs; active ones continue."""
    if is_active(root, name):
        with suppress(ProcessLookupError):
            os.kill(benchmark_process(root, name)["pid"], signal.SIGTERM)


def benchmark_process(root: Path, name: str = "*") -> dict[str, Any]:
    """Return the process of a benchmark, by default of the one that was started last; {} for none."""
    found = []
    for path in beside(root, name, "process.json").parent.glob(f"benchmark-{name}.process.json"):
        with suppress(LabError):
            found.append(read_json(path))
    return max(found, key=lambda process: process["time"], default={})


def is_active(root: Path, name: str) -> bool:
    """Return whether the process of a benchmark is alive on this machine."""
    process = benchmark_process(root, name)
    return bool(process and lives(process))


def why_ended(root: Path, name: str) -> str:
    """Return the error with which the process of a benchmark has ended; "" for none."""
    said = "\n".join(last_lines(beside(root, name, "log")))
    error = re.search("^error: (.*)", said, re.MULTILINE | re.DOTALL)
    return error[1] if error else ""


def beside(root: Path, name: str, kind: str) -> Path:
    """Return the path of a file about the process of a benchmark; `kind` is "process.json", "lock" or "log"."""
    return root / ".processes" / f"benchmark-{name}.{kind}"
