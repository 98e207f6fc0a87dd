"""The queue on disk: which runs wait to be started, and in what order.

A run waits while there is a file `<root>/.processes/<id>.queued`, which holds a number; the lowest is started next. Its
spec is where that of an active run is, so a queue survives whoever filled it and whoever works on it.
`sweeps.queue` fills it and starts the runs.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from llm_adapters_lab.files import write_atomically, write_json
from llm_adapters_lab.runs.processes import Who
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.recovery.lock import holder
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import beside


def queued(root: str | Path = "runs") -> list[Run]:
    """Return the runs that wait to be started, the next one first."""
    top = Path(root).resolve()
    found = [Run(top / path.stem) for path in top.glob(".processes/*.queued")]
    return sorted((run for run in found if not run.done), key=lambda run: (_number(run), run.id))


def put(specs: list[RunSpec], root: str | Path = "runs") -> list[Run]:
    """Append runs to the queue; one that waits already keeps its place."""
    top = Path(root).resolve()
    (top / ".processes").mkdir(parents=True, exist_ok=True)
    waiting = queued(top)
    last = _number(waiting[-1]) if waiting else 0
    runs = [Run(top / spec.id) for spec in specs]
    for number, (spec, run) in enumerate(zip(specs, runs, strict=True), last + 1):
        if run not in waiting:
            write_json(beside(run, "spec.json"), spec.model_dump(mode="json"))
            _place(run, number)
    return runs


def remove(run: Run) -> None:
    """Remove a run from the queue; one that was never started leaves nothing behind."""
    forget(run)
    if not run.folder.exists() and not beside(run, "json").exists():
        beside(run, "spec.json").unlink(missing_ok=True)


def forget(run: Run) -> None:
    """Remove a run from the queue, but keep its spec: it has been started."""
    beside(run, "queued").unlink(missing_ok=True)


def move_up(run: Run) -> None:
    """Let a run of the queue change places with the one before it; of the first one, nothing changes."""
    waiting = queued(run.folder.parent)
    at = waiting.index(run) if run in waiting else 0
    if at:
        before, own = _number(waiting[at - 1]), _number(run)
        _place(run, before)
        _place(waiting[at - 1], own if own > before else before + 1)


def keeper(root: str | Path = "runs") -> Who | None:
    """Return the process that starts the queued runs; None if there is none, and the queue stands still."""
    return holder(keeper_lock(root))


def keeper_lock(root: str | Path) -> Path:
    """Return the lock file of the keeper of a root."""
    return Path(root).resolve() / ".processes" / "queue.lock"


def _number(run: Run) -> int:
    with contextlib.suppress(OSError, ValueError):  # just removed, or damaged
        return int(beside(run, "queued").read_text(encoding="utf-8"))
    return 0


def _place(run: Run, number: int) -> None:
    write_atomically(beside(run, "queued"), str(number).encode())
