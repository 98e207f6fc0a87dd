"""Time from Start to the first step and from an edit to its estimate, with and without a waiting process, in turns.

python benchmarks/warm_start.py [ROUNDS]
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from llm_adapters_lab.runs.background import follow, stop
from llm_adapters_lab.runs.processes import command
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import process_of
from widgets.kit import warm


def cpu(pid: int) -> float:
    """Return the seconds of computing of a process and of its children that have ended."""
    return sum(psutil.Process(pid).cpu_times()[:4])


def ready() -> float:
    """Start a process that waits, and return what loading has cost it."""
    process = warm.prepare()
    assert process.stdout
    select.select([process.stdout], [], [])
    memory = psutil.Process(process.pid).memory_full_info()
    print(f"waiting: {memory.uss / 1e6:.0f} MB of its own, {memory.rss / 1e6:.0f} MB resident")
    return cpu(process.pid)


def start(spec: RunSpec, waits: bool) -> tuple[float, float]:
    """Return wall time and computing from Start to the first step."""
    warm.discard()
    before = ready() if waits else 0.0
    with tempfile.TemporaryDirectory() as root:
        began = time.perf_counter()
        run = warm.launch(spec, root)
        process = process_of(run)
        assert process
        for event in follow(run, every=0.02):
            if event["event"] == "Step":
                took = time.perf_counter() - began, cpu(process["pid"]) - before
                stop(run)
                break
        for _ in follow(run):
            pass  # until it has ended
    return took


def edit(path: Path, waits: bool) -> tuple[float, float]:
    """Return wall time and computing from an edit to its estimate."""
    process = warm.prepare() if waits else None
    began, before = time.perf_counter(), cpu(process.pid if process else os.getpid())
    if waits:
        code, *_ = asyncio.run(warm.answer("doctor", str(path), "--json"))
    else:
        line, environment = command("doctor", str(path), "--json")
        code = os.waitstatus_to_exitcode(os.spawnve(os.P_WAIT, line[0], line, environment) << 8)
    assert code == 0
    took = time.perf_counter() - began
    time.sleep(0.5)  # until the copy that has answered is counted
    return took, cpu(process.pid if process else os.getpid()) - before


def main() -> None:
    """Print a line for each measurement, and the medians."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    spec = RunSpec.load(Path("quickstart"))
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec.model_dump(mode="json")))
        for number in range(rounds):
            changed = spec.model_copy(update={"seed": number})
            for waits in (False, True):
                how = "waiting" if waits else "new"
                found.setdefault(f"Start to step, {how} process", []).append(start(changed, waits))
            print(f"loading took {ready():.2f} s of computing")
            for waits in (False, True):
                how = "waiting" if waits else "new"
                found.setdefault(f"edit to estimate, {how} process", []).append(edit(path, waits))
    for name, pairs in found.items():
        wall, computing = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name}: {wall:.2f} s, of computing {computing:.2f} s", [tuple(round(x, 2) for x in p) for p in pairs])


if __name__ == "__main__":
    main()
