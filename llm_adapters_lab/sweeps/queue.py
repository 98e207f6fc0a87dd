"""A queue of runs: they are started one after another by a keeper, a process that outlives page, notebook and kernel.

`runs.queue` holds the queue on disk. At most one keeper works on a root; it ends when the queue is empty. If it is
killed, the runs stay in the queue until `keep` starts another.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.runs.background import Begin, launch, working
from llm_adapters_lab.runs.preflight import check_spec
from llm_adapters_lab.runs.processes import command, spawn
from llm_adapters_lab.runs.queue import forget, keeper, keeper_lock, put, queued
from llm_adapters_lab.runs.record import Run, check_writable
from llm_adapters_lab.runs.recovery.lock import hold, holder
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import spec_of, state
from llm_adapters_lab.sweeps.spec import reject


def enqueue(specs: Sequence[RunSpec], root: str | Path = "runs") -> list[Run]:
    """Append runs to the queue; `keep` lets them be started. Finished and active ones are left out.

    Args:
        specs: of the runs, in the order in which they are to be started.
        root: folder of all runs.

    Returns:
        The runs that wait now.

    Raises:
        BadSpec: some cannot be run; none is queued.
        CannotWrite: the root cannot be written to.
    """
    top = Path(root).resolve()
    wanted = {spec.id: spec for spec in specs}
    todo = [s for name, s in wanted.items() if not (run := Run(top / name)).done and not state(run).works]
    check_writable(top)
    faults = {}
    for spec in todo:
        try:
            check_spec(spec, root=top)
        except LabError as error:
            faults[spec.id] = str(error)
    reject(faults)
    return put(todo, top) if todo else []


def keep(root: str | Path = "runs", jobs: int = 1, begin: Begin | None = None) -> None:
    """Let the queued runs be started by a process that outlives this one, if there is none and any run waits.

    Args:
        root: folder of all runs.
        jobs: maximum number of runs at a time.
        begin: as for `launch`.
    """
    top = Path(root).resolve()
    if not queued(top) or keeper(top):
        return
    words = ["queue", "--work", "--root", str(top), "--jobs", str(jobs)]
    log = keeper_lock(top).with_suffix(".log")
    if begin is None or begin(words, log) is None:
        spawn(*command(*words), log)


def work(
    root: str | Path = "runs",
    jobs: int = 1,
    begin: Begin | None = None,
    stop: threading.Event | None = None,
    every: float = 0.2,
) -> None:
    """Start the queued runs until none waits; a failed one does not stop the others.

    Args:
        root: folder of all runs.
        jobs: maximum number of active runs under the root, whoever started them.
        begin: as for `launch`.
        stop: set it from another thread to start no further runs; those that wait stay in the queue.
        every: polling interval in seconds.

    Raises:
        LabError: another process does this already.
    """
    top, stop = Path(root).resolve(), stop or threading.Event()
    while queued(top) and not stop.is_set():  # asked again without the lock: who adds a run looks at the lock
        with hold(keeper_lock(top), seconds=0):
            while (waiting := queued(top)) and not stop.is_set():
                if len(active(top)) < jobs:
                    _start(waiting[0], begin)
                else:
                    stop.wait(every)


def start_now(run: Run, begin: Begin | None = None) -> None:
    """Start a queued run at once, beside those that are active.

    Raises:
        LabError: its spec cannot be run.
    """
    launch(spec_of(run.id, run.folder.parent), run.folder.parent, begin=begin)


def active(root: str | Path = "runs") -> list[Run]:
    """Return the active runs, those in processes of their own first, then those at a command line or in a kernel.

    A run that has ended is not active, although its process holds the lock until it exits.
    """
    top = Path(root).resolve()
    own = working(top)
    locked = (Run(path.parent) for path in sorted(top.glob("*/lock")) if holder(path))
    return [*own, *(run for run in locked if run not in own and state(run).works)]


def _start(run: Run, begin: Begin | None) -> None:
    try:
        # Its own process checks the spec, so that a fault is found where those of other runs are.
        launch(spec_of(run.id, run.folder.parent), run.folder.parent, begin=begin, check=False)
    except (LabError, OSError) as error:
        print(f"{time.strftime('%H:%M:%S')} {run.id}: {error}", file=sys.stderr, flush=True)
    forget(run)  # also if it was active or finished already
