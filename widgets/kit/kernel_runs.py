"""Runs in a thread of the kernel instead of a separate process.

Such runs can use adapters that are defined in a notebook cell, but end with the kernel. The thread writes the record
and never touches a widget. The functions have the same names and signatures as in `runs.background`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.runs import background, status
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.preflight import check_spec
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import State
from widgets.kit.panel import error_text


@dataclass
class _Work:
    """A thread; `error` is the message it ended with."""

    thread: threading.Thread
    stop: threading.Event
    error: str = ""


_known: dict[Path, _Work] = {}


def launch(spec: RunSpec, root: str | Path = "runs") -> Run:
    """Start a run in a thread and return at once; an active or finished run is not started again.

    Raises:
        LabError: the spec cannot be run, or another run is active in this kernel.
    """
    record = Run(Path(root).resolve() / spec.id)
    if state(record).works or record.done:
        return record
    if other := next((folder.name for folder, work in _known.items() if work.thread.is_alive()), ""):
        raise LabError(f"{other} is running in this kernel, and runs cannot share a kernel. Stop it first.")
    check_spec(spec, root=record.folder.parent)

    def target() -> None:
        try:
            run(spec, root=record.folder.parent, stop=work.stop)
        except Exception as error:
            work.error = error_text(error)

    work = _known[record.folder] = _Work(threading.Thread(target=target, name=spec.id, daemon=True), threading.Event())
    work.thread.start()
    return record


def state(run: Run) -> State:
    """Return the state of a run, in this kernel or in another process."""
    work = _known.get(run.folder)
    if work and work.thread.is_alive():
        return State("stopping", "It stops after the current step.") if work.stop.is_set() else State("running")
    found = status.state(run)
    return State("failed", work.error) if work and work.error and found.name == "unfinished" else found


def stop(run: Run, now: bool = False) -> State:
    """Ask a run to stop after the current step; a thread cannot be stopped sooner, whatever `now` is."""
    work = _known.get(run.folder)
    if work is None or not work.thread.is_alive():
        return background.stop(run, now)
    work.stop.set()
    return state(run)
