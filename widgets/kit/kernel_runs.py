"""Threads: a run in the kernel itself, for who cannot or will not have it in a process of its own.

An adapter that is defined in a cell is known here, and nothing is loaded twice; but the run ends with the kernel. The
thread writes the record and never touches a widget. Its functions stand for those of the same names in `launch`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.runs import background
from llm_adapters_lab.runs.background import State
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.preflight import check_spec
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from widgets.kit.errors import why


@dataclass
class _Work:
    """What is known of a thread: `error` is what it ended with."""

    thread: threading.Thread
    stop: threading.Event
    error: str = ""


_known: dict[Path, _Work] = {}


def launch(spec: RunSpec, root: str | Path = "runs") -> Run:
    """Start a run in a thread and return at once; one that works or is finished is not started again.

    Raises:
        LabError: the spec cannot be run, or another run works in this kernel.
    """
    record = Run(Path(root).resolve() / spec.id)
    if state(record).works or record.done:
        return record
    if other := next((folder.name for folder, work in _known.items() if work.thread.is_alive()), ""):
        raise LabError(
            f"{other} works in this kernel, and both would draw random numbers from one source. Stop it first."
        )
    check_spec(spec)

    def go() -> None:
        try:
            run(spec, root=record.folder.parent, stop=work.stop)
        except Exception as error:
            work.error = why(error)

    work = _known[record.folder] = _Work(threading.Thread(target=go, name=spec.id, daemon=True), threading.Event())
    work.thread.start()
    return record


def state(run: Run) -> State:
    """Say how a run stands, wherever it works."""
    work = _known.get(run.folder)
    if work and work.thread.is_alive():
        return State("stopping", "It ends after the step it is at.") if work.stop.is_set() else State("running")
    found = background.state(run)
    return State("failed", work.error) if work and work.error and found.name == "unfinished" else found


def stop(run: Run, now: bool = False) -> State:
    """Ask a run to stop after the step it is at; a thread cannot be stopped sooner, `now` or not."""
    work = _known.get(run.folder)
    if work is None or not work.thread.is_alive():
        return background.stop(run, now)
    work.stop.set()
    return state(run)
