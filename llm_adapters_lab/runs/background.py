"""Launch: runs in a process of their own, which goes on when the page, notebook or kernel that began it is gone.

The process is the command line's `run`, so it leaves the same record as `run(spec)`. What is known of it stands beside
the records, in files of

<root>/.processes/<id>.json         pid, host and start of the process; whether it was asked to stop
                  <id>.spec.json    what it was asked to do
                  <id>.log          what it has printed
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.files import write_atomically
from llm_adapters_lab.runs.event_log import Place, last_event, last_lines, news
from llm_adapters_lab.runs.preflight import check_spec
from llm_adapters_lab.runs.processes import command, exit_code, lives, spawn
from llm_adapters_lab.runs.record import Run, find_run
from llm_adapters_lab.runs.recovery.lock import hold, holder
from llm_adapters_lab.runs.spec import RunSpec

Name = Literal["finished", "running", "stopping", "stopped", "failed", "dead", "unfinished"]
SILENT = 600.0
"""Seconds without an event after which a process on another host, which cannot be asked, is taken for dead."""
_ENDS: dict[str, Name] = {"Finished": "finished", "Stopped": "stopped", "Failed": "failed"}


class State(NamedTuple):
    """How a run stands.

    Attributes:
        name: "running" and "stopping" while its process works; "dead" when that is gone without a word; "unfinished"
            when no process of it is known.
        reason: the error, or why it is so; not escaped.
    """

    name: Name
    reason: str = ""

    @property
    def works(self) -> bool:
        """Whether its process is at work."""
        return self.name in ("running", "stopping")


def launch(spec: RunSpec, root: str | Path = "runs", fresh: bool = False) -> Run:
    """Start a run in a process of its own and return at once; follow it with `follow` and `state`.

    A run that is finished is not repeated, and one that works, whoever started it, is not started a second time. One
    that was interrupted goes on, as with `run`.

    Args:
        spec: what to do.
        root: folder of all runs.
        fresh: do it again even if there is a finished record.

    Raises:
        LabError: the spec cannot be run; no process is started.
    """
    run = Run(Path(root).resolve() / spec.id)
    if state(run).works or (run.done and not fresh):
        return run
    if spec.adapter and get_adapter(spec.adapter.type).cls.__module__ == "__main__":
        here = f"{spec.adapter.type} is defined in this notebook or script, where another process cannot find it."
        raise BadSpec(f"{here} Call run(spec) here, or put it into a package with an entry point.")
    check_spec(spec)
    beside(run, "json").parent.mkdir(parents=True, exist_ok=True)
    with hold(beside(run, "lock")):
        if not state(run).works:
            _start(run, spec, fresh)
    return run


def state(run: Run) -> State:
    """Say how a run stands; little is read, however long its log is."""
    process = _process(run)
    works = process is not None and _works(run, process)  # asked before the log is read, which then is complete
    if not works and holder(run.lock):
        return State("running")  # started at the command line or in a notebook cell
    last = last_event(run.log) or {}
    end = _ENDS.get(last.get("event", ""))
    if process is None:
        if run.done:
            return State("finished")
        return State(end, _why(last)) if end else State("unfinished", "No process of it is known here.")
    begins = _log_stat(run) == process["log"]
    if end and not begins:
        # A second interrupt reaches the run as an error.
        hurried = process["stop"] and last.get("error", "").startswith("KeyboardInterrupt")
        return State("stopped" if hurried else end, _why(last))
    if works:
        if process["stop"]:
            return State("stopping", "It ends after the step it is at.")
        return State("running", "Libraries, rows and weights are being loaded." if begins or not last else "")
    return State("finished") if run.done and not begins else _gone(run, process, begins)


def stop(run: Run, now: bool = False) -> State:
    """Ask the process of a run to stop after the step it is at; asking twice is asking once.

    Args:
        run: does nothing if it is not at work.
        now: do not wait for the end of the step.

    Raises:
        LabError: the process is on another host, or was not launched.
    """
    found, process = state(run), _process(run)
    if not found.works:
        return found
    if (process is None or not _works(run, process)) and (other := holder(run.lock)):
        raise LabError(f"The run {run.id} was not started from here. Stop it where it was: kill -INT {other['pid']}")
    if process is None or (process["stop"] and not now):
        return found
    if process["host"] != platform.node():
        raise LabError(f"The run {run.id} works on {process['host']}. Stop it there: kill {process['pid']}")
    _write(run, "json", process | {"stop": True})
    # Nobody else can get this pid between the look in `state` and here, but the process may have ended.
    with contextlib.suppress(ProcessLookupError):
        os.kill(process["pid"], signal.SIGTERM)  # who was started by a script in its background ignores SIGINT
    return state(run)


def follow(run: Run, since: Place | None = None, every: float = 0.2) -> Iterator[dict[str, Any]]:
    """Yield the events of a run as they come, until it no longer works.

    Args:
        run: what `launch` has returned; that of another process will do.
        since: leave out what lies before; see `news`.
        every: seconds between two looks.
    """
    place = since
    while True:
        works = state(run).works  # asked before the log is read, so that nothing said before the end is missed
        process = _process(run)
        if works and process and process["log"] and _log_stat(run) == process["log"]:
            time.sleep(every)  # these are events of an earlier attempt
            continue
        found = news(run.log, place)
        yield from found.events
        place = found.place
        if not found.more:
            if not works:
                return
            time.sleep(every)


def spec_of(name: str, root: str | Path = "runs") -> RunSpec:
    """Return the spec of a run by its id or the beginning of one, also while its record has none yet.

    Raises:
        BadSpec: there is no such run.
    """
    path = beside(Run(Path(root).resolve() / name), "spec.json")
    known = Path(name).name == name and os.path.isfile(path)  # nothing beyond the root
    return RunSpec.load(path) if known else find_run(name, root).spec


def working(root: str | Path = "runs") -> list[Run]:
    """Return the runs whose process is at work, that which was started last first."""
    folder = Path(root).resolve()
    asked = [Run(folder / path.name.removesuffix(".spec.json")) for path in folder.glob(".processes/*.spec.json")]
    begun = [(process["time"], run) for run in asked if (process := _process(run)) and lives(process) is not False]
    return [run for _, run in sorted(begun, key=lambda pair: -pair[0]) if state(run).works]


def beside(run: Run, kind: str) -> Path:
    """Return the place of what is known of a run's process: kind is "json", "spec.json" or "log"."""
    return run.folder.parent / ".processes" / f"{run.id}.{kind}"


def _start(run: Run, spec: RunSpec, fresh: bool) -> None:
    """Start the process; the caller holds the lock."""
    before = _process(run)
    until = time.monotonic() + 60
    while before and lives(before):  # it has ended its run, and now itself
        if time.monotonic() > until:
            raise LabError(f"The process {before['pid']} has ended the run {run.id} but not itself. Kill it first.")
        time.sleep(0.05)
    log, began = _log_stat(run), time.time()
    _write(run, "spec.json", spec.model_dump(mode="json"))
    words = ["run", str(beside(run, "spec.json")), "--root", str(run.folder.parent), "--json"]
    process = spawn(*command(*words, *(["--fresh"] if fresh else [])), beside(run, "log"))
    _write(run, "json", process | {"stop": False, "log": log, "time": began})


def _works(run: Run, process: dict[str, Any]) -> bool:
    alive = lives(process)
    if alive is None:
        stat = _log_stat(run)
        last: float = max(process["time"], stat[2] / 1e9 if stat else 0)
        return time.time() - last < SILENT
    return alive


def _gone(run: Run, process: dict[str, Any], begins: bool) -> State:
    """Say what became of a process that has ended without an event that tells why."""
    if process["stop"]:
        return State("stopped", "It was stopped before it had begun." if begins else "")
    said = last_lines(beside(run, "log"))
    errors = [i for i, line in enumerate(said) if line.startswith("error: ")]
    if errors:
        return State("failed", "\n".join(said[errors[-1] :]).removeprefix("error: "))
    code = exit_code(process)
    how = f" by signal {-code}" if code is not None and code < 0 else f" with code {code}" if code else ""
    words = f"Its process {process['pid']} on {process['host']} ended{how} without a word"
    words += ". It was killed, perhaps for lack of memory, or the machine was restarted." if not said else ". Its log:"
    return State("dead", "\n".join([words, *said]))


def _why(event: dict[str, Any]) -> str:
    stage = f" while {event['stage']}" if event.get("stage") else ""
    if "error" in event:
        return "\n".join(filter(None, [f"{event['error']} ({event['stage']})", event.get("advice", "")]))
    return f"Stopped{stage}." if stage else ""


def _process(run: Run) -> dict[str, Any] | None:
    try:
        process: dict[str, Any] = json.loads(beside(run, "json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return process


def _log_stat(run: Run) -> list[int] | None:
    try:
        stat = (run.folder / "events.jsonl").stat()
    except FileNotFoundError:
        return None
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns]


def _write(run: Run, kind: str, value: Any) -> None:
    write_atomically(beside(run, kind), (json.dumps(value, indent=2) + "\n").encode())
