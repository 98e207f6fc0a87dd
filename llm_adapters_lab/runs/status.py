"""The state of a run, read from its record and from the files that describe its process.

The files about a process that `background.launch` has started lie next to the records:

<root>/.processes/<id>.json         pid, host and start time of the process; whether it was asked to stop
                  <id>.spec.json    the spec it runs
                  <id>.log          its output
                  <id>.stage        what it does before its first event: "rows", then "weights"
                  <id>.queued       its place in the queue, while it waits there; see `queue`
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llm_adapters_lab.runs.event_log import last_event, last_lines
from llm_adapters_lab.runs.processes import exit_code, lives
from llm_adapters_lab.runs.record import Run, find_run
from llm_adapters_lab.runs.recovery.lock import holder
from llm_adapters_lab.runs.spec import RunSpec

Name = Literal["finished", "running", "stopping", "stopped", "failed", "dead", "unfinished", "queued"]
SILENT = 600.0
"""Seconds without an event after which a process on another host is considered dead."""
_ENDS: dict[str, Name] = {"Finished": "finished", "Stopped": "stopped", "Failed": "failed"}


class State(NamedTuple):
    """The state of a run.

    Attributes:
        name: "running" or "stopping" while its process is active; "dead" if the process vanished without an event;
            "unfinished" if no process of it is known; "queued" while it waits to be started, see `queue`.
        reason: the error, or an explanation; not escaped.
    """

    name: Name
    reason: str = ""

    @property
    def works(self) -> bool:
        """Whether its process is active."""
        return self.name in ("running", "stopping")


def state(run: Run) -> State:
    """Return the state of a run. Reads little, however long its log is."""
    process = process_of(run)
    works = process is not None and at_work(run, process)  # asked before the log is read, which is complete then
    if not works and holder(run.lock):
        return State("running")  # started at the command line or in a notebook cell
    if not works and os.path.exists(beside(run, "queued")) and not run.done:
        return State("queued", "It starts when the runs before it have ended.")
    last = last_event(run.log) or {}
    end = _ENDS.get(last.get("event", ""))
    if process is None:
        if run.done:
            return State("finished")
        return State(end, _why(last)) if end else State("unfinished", "No process of this run is known here.")
    begins = log_stat(run) == process["log"]
    if end and not begins:
        # A second interrupt reaches the run as an error.
        hurried = process["stop"] and last.get("error", "").startswith("KeyboardInterrupt")
        return State("stopped" if hurried else end, _why(last))
    if works:
        if process["stop"]:
            return State("stopping", "It stops after the current step.")
        return State("running", "Loading libraries, rows and weights." if begins or not last else "")
    return State("finished") if run.done and not begins else _gone(run, process, begins)


def spec_of(name: str, root: str | Path = "runs") -> RunSpec:
    """Return the spec of a run, given any unambiguous prefix of its id, also before its record holds one.

    Raises:
        BadSpec: there is no such run.
    """
    path = beside(Run(Path(root).resolve() / name), "spec.json")
    known = Path(name).name == name and os.path.isfile(path)  # nothing outside the root
    return RunSpec.load(path) if known else find_run(name, root).spec


def beside(run: Run, kind: str) -> Path:
    """Return the path of a file about a run's process; `kind` is "json", "spec.json", "log", "stage" or "queued"."""
    return run.folder.parent / ".processes" / f"{run.id}.{kind}"


def note_stage(run: Run, stage: str) -> None:
    """Write down what a run that has no events yet is doing, if it has a process of its own."""
    with suppress(OSError):
        if beside(run, "spec.json").exists():
            beside(run, "stage").write_text(stage, encoding="utf-8")


def stage(run: Run) -> str:
    """Return what an active run is doing: "libraries", "rows" or "weights" before its first event, "" afterwards."""
    process = process_of(run)
    if process is None or log_stat(run) != process["log"]:
        return ""
    try:
        return beside(run, "stage").read_text(encoding="utf-8") or "libraries"
    except FileNotFoundError:
        return "libraries"


def at_work(run: Run, process: dict[str, Any]) -> bool:
    """Return whether the process of a run is alive; one on another host counts as alive until it is `SILENT`."""
    alive = lives(process)
    if alive is None:
        stat = log_stat(run)
        last: float = max(process["time"], stat[2] / 1e9 if stat else 0)
        return time.time() - last < SILENT
    return alive


def _gone(run: Run, process: dict[str, Any], begins: bool) -> State:
    """Return the state of a run whose process has ended without an event that says why."""
    if process["stop"]:
        return State("stopped", "It was stopped before it started." if begins else "")
    said = last_lines(beside(run, "log"))
    errors = [i for i, line in enumerate(said) if line.startswith("error: ")]
    if errors:
        return State("failed", "\n".join(said[errors[-1] :]).removeprefix("error: "))
    code = exit_code(process)
    how = f" by signal {-code}" if code is not None and code < 0 else f" with code {code}" if code else ""
    words = f"Its process {process['pid']} on {process['host']} ended{how} without an event"
    words += ". It was killed, perhaps for lack of memory, or the machine restarted." if not said else ". Its log:"
    return State("dead", "\n".join([words, *said]))


def _why(event: dict[str, Any]) -> str:
    stage = f" while {event['stage']}" if event.get("stage") else ""
    if "error" in event:
        return "\n".join(filter(None, [f"{event['error']} ({event['stage']})", event.get("advice", "")]))
    return f"Stopped{stage}." if stage else ""


def process_of(run: Run) -> dict[str, Any] | None:
    """Return the description of the process that was launched for a run; None if none was."""
    try:
        process: dict[str, Any] = json.loads(beside(run, "json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return process


def log_stat(run: Run) -> list[int] | None:
    """Return inode, size and modification time of the log, which change with every event; None without a log."""
    try:
        stat = (run.folder / "events.jsonl").stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns]


def resumes_at(run: Run, spec: RunSpec) -> str:
    """Return in words where an unfinished run resumes when its spec is run again."""
    if run.is_trained(spec):
        return "with scoring"
    kept = [int(path.name) for path in run.folder.glob("checkpoints/[0-9]*") if path.name.isdigit()]
    return f"after step {max(kept)}" if kept else "at the beginning"
