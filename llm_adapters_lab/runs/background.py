"""Background runs: each in a process of its own that outlives the page, notebook or kernel that started it.

The process executes the `run` command, so it leaves the same record as `run(spec)`. `status` documents the files that
describe the process.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.files import write_json
from llm_adapters_lab.runs import queue
from llm_adapters_lab.runs.event_log import Cursor, read_new
from llm_adapters_lab.runs.preflight import check_spec
from llm_adapters_lab.runs.processes import Who, command, lives, spawn
from llm_adapters_lab.runs.record import Run, check_writable
from llm_adapters_lab.runs.recovery.lock import hold, holder
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import State, at_work, beside, log_stat, process_of, state

Begin = Callable[[list[str], Path], Who | None]


def launch(
    spec: RunSpec, root: str | Path = "runs", fresh: bool = False, begin: Begin | None = None, check: bool = True
) -> Run:
    """Start a run in a process of its own and return at once; follow it with `follow` and `state`.

    A finished run is not repeated, an active one, whoever started it, is not started twice, and an interrupted one is
    resumed, as with `run`. One that waits in the queue leaves it.

    Args:
        spec: of the run.
        root: folder of all runs.
        fresh: start over even if there is a finished record.
        begin: given the words of the command and the file for its output, executes it in a process that is there
            already, and returns what identifies it, or None.
        check: whether to check the spec here as well as in the process of the run.

    Raises:
        LabError: the spec cannot be run; no process is started.
    """
    run = Run(Path(root).resolve() / spec.id)
    if state(run).works or (run.done and not fresh):
        return run
    if spec.adapter and get_adapter(spec.adapter.type).cls.__module__ == "__main__":
        here = f"{spec.adapter.type} is defined in this notebook or script, where another process cannot find it."
        raise BadSpec(f"{here} Call run(spec) here, or put it in a package with an entry point.")
    if check:
        check_spec(spec, root=run.folder.parent)
    check_writable(run.folder)
    beside(run, "json").parent.mkdir(parents=True, exist_ok=True)
    with hold(beside(run, "lock")):
        if not state(run).works:
            _start(run, spec, fresh, begin)
    return run


def stop(run: Run, now: bool = False) -> State:
    """Ask the process of a run to stop after the current step.

    Args:
        run: one in the queue is removed from it; if it is not active, nothing happens.
        now: do not wait for the end of the step.

    Raises:
        LabError: the process is on another host, or was not started by `launch`.
    """
    found, process = state(run), process_of(run)
    if found.name == "queued":
        queue.remove(run)
        return state(run)
    if not found.works:
        return found
    if (process is None or not at_work(run, process)) and (other := holder(run.lock)):
        raise LabError(f"The run {run.id} was not started here. Stop it where it was started: kill -INT {other['pid']}")
    if process is None or (process["stop"] and not now):
        return found
    if process["host"] != platform.node():
        raise LabError(f"The run {run.id} is active on {process['host']}. Stop it there: kill {process['pid']}")
    write_json(beside(run, "json"), process | {"stop": True})
    # The process may have ended since `state` was asked.
    with contextlib.suppress(ProcessLookupError):
        os.kill(process["pid"], signal.SIGTERM)  # background jobs of a shell script ignore SIGINT
    return state(run)


def follow(run: Run, since: Cursor | None = None, every: float = 0.2) -> Iterator[dict[str, Any]]:
    """Yield the events of a run as they are logged, until it is no longer active.

    Args:
        run: returned by `launch`, here or in another process.
        since: a cursor; earlier events are left out, see `read_new`.
        every: polling interval in seconds.
    """
    cursor = since
    while True:
        works = state(run).works  # asked before the log is read, so that nothing is missed
        process = process_of(run)
        if works and process and process["log"] and log_stat(run) == process["log"]:
            time.sleep(every)  # the log is still that of an earlier attempt
            continue
        found = read_new(run.log, cursor)
        yield from found.events
        cursor = found.cursor
        if not found.more:
            if not works:
                return
            time.sleep(every)


def working(root: str | Path = "runs") -> list[Run]:
    """Return the active runs, latest first."""
    folder = Path(root).resolve()
    asked = [Run(folder / path.name.removesuffix(".spec.json")) for path in folder.glob(".processes/*.spec.json")]
    begun = [(process["time"], run) for run in asked if (process := process_of(run)) and lives(process) is not False]
    return [run for _, run in sorted(begun, key=lambda pair: -pair[0]) if state(run).works]


def _start(run: Run, spec: RunSpec, fresh: bool, begin: Begin | None) -> None:
    """Start the process; the caller holds the lock."""
    before = process_of(run)
    until = time.monotonic() + 60
    while before and lives(before):  # its run has ended, and it is about to exit
        if time.monotonic() > until:
            raise LabError(f"The process {before['pid']} of the run {run.id} does not exit. Kill it first.")
        time.sleep(0.05)
    beside(run, "stage").unlink(missing_ok=True)
    log, began = log_stat(run), time.time()
    write_json(beside(run, "spec.json"), spec.model_dump(mode="json"))
    words = ["run", str(beside(run, "spec.json")), "--root", str(run.folder.parent), "--json"]
    words += ["--fresh"] if fresh else []
    process = (begin and begin(words, beside(run, "log"))) or spawn(*command(*words), beside(run, "log"))
    write_json(beside(run, "json"), process | {"stop": False, "log": log, "time": began})
    queue.forget(run)
