"""The record of a run: a folder, from which all curves, tables and reports are made.

<root>/<id>/spec.json           the spec
            hashes.json         hashes of the base and the rows it started with
            events.jsonl        the event log, one line per event
            checkpoints/        of an unfinished training, see `training.checkpoints`
            trackers/           files of the experiment trackers
            adapter/            adapter.safetensors and adapter.json
            train.json          summary of the training; its presence means that the adapter is complete
            predictions.jsonl   every scored answer
            summary.json        the result; its presence means that the run is complete
            note.txt            a note written by a person; kept when the run is repeated
            marks.json          star, tags and baseline, see `marks`; kept as well
            lock                identifies the process that works on it

A process may die at any moment. Whole files are written to a temporary file, flushed and renamed; files that grow line
by line may end in an incomplete line, which readers ignore and the next attempt removes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from llm_adapters_lab.errors import BadSpec, CannotWrite, choices, listed
from llm_adapters_lab.events import Event
from llm_adapters_lab.files import PART, _lines, _rewrite, append_line, write_atomically, write_json
from llm_adapters_lab.privacy import to_write
from llm_adapters_lab.runs.event_log import last_event
from llm_adapters_lab.runs.spec import RunSpec

_SCORING = ("Scoring", "Scored", "ReadText", "Finished", "Stopped", "Failed")


@dataclass(frozen=True)
class Run:
    """A run on disk; every property reads the folder again.

    Attributes:
        folder: of the run, named after its id.
    """

    folder: Path

    @property
    def id(self) -> str:
        """The run id."""
        return self.folder.name

    @property
    def spec(self) -> RunSpec:
        """The spec; it is refused if another one has been written in its place."""
        path = self.folder / "spec.json"
        try:
            spec = RunSpec.parse(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:  # invalid JSON or spec, from another version or edited by hand
            raise BadSpec(f"{path} is not a spec this version understands: {error}") from None
        if spec.id != self.id and spec.id != self.summary.get("id"):  # a finished record may be renamed
            raise BadSpec(f"{path} was edited: it is the spec of {spec.id}. Undo that, or put it elsewhere and run it.")
        return spec

    @property
    def done(self) -> bool:
        """Whether the run is complete."""
        return (self.folder / "summary.json").is_file()

    @property
    def lock(self) -> Path:
        """The lock file of the run, see `recovery.lock`."""
        return self.folder / "lock"

    @property
    def log(self) -> Path:
        """The event log."""
        return self.folder / "events.jsonl"

    @property
    def summary(self) -> dict[str, Any]:
        """The result; for an unfinished run only its id and status, and the error if it failed."""
        path = self.folder / "summary.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or not {"id", "status"} <= found.keys():
                raise ValueError("it holds no result of a run")
            return found
        except (ValueError, RecursionError) as error:
            advice = "Repeat the run with --fresh (fresh=True), or delete its folder."
            raise BadSpec(f"{path} is damaged: {error}. {advice}") from None
        except FileNotFoundError:
            last = last_event(self.log) or {}
            failed = last.get("event") == "Failed"
            status = "failed" if failed else "stopped" if last.get("event") == "Stopped" else "unfinished"
            known = ("error", "stage", "step", "advice", "traceback") if failed else ()
            return {"id": self.id, "status": status} | {key: last[key] for key in known if key in last}

    def events(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """Yield the logged events, all or those of the given classes; an incomplete last line is left out."""
        yield from (e for e in _lines(self.log, kinds) if not kinds or e["event"] in kinds)

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Yield every scored answer, with the keys of `evaluate`."""
        yield from _lines(self.folder / "predictions.jsonl")

    def answers(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the scored answers of a finished run by task and id.

        Raises:
            BadSpec: they are not those that its summary counts.
        """
        found = {(p["task"], p["id"]): p for p in self.predictions()}
        for task, score in self.summary.get("scores", {}).items():
            own = [bool(p["correct"]) for p in found.values() if p["task"] == task]
            if (len(own), sum(own)) != (score["total"], score["correct"]):
                held = f"{self.id}: predictions.jsonl holds {len(own)} of {score['total']} answers to {task}"
                right = f"{sum(own)} of them right; its summary counts {score['correct']} right"
                raise BadSpec(f"{held}, {right}. Repeat the run with --fresh (fresh=True).")
        return found

    def is_of(self, spec: RunSpec) -> bool:
        """Return whether this is a record of the spec, up to settings that change no result."""
        try:
            return self.spec.canonical() == spec.canonical()
        except (OSError, BadSpec):
            return False

    def is_trained(self, spec: RunSpec) -> bool:
        """Return whether this is a run of the spec whose training is complete."""
        return self.is_of(spec) and (not spec.learns or (self.folder / "train.json").is_file())

    def clear(self) -> None:
        """Create the folder, and remove what an earlier attempt has left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The result first, so that an interrupted removal does not look like a finished run.
        for name in ("summary.json", "train.json", "hashes.json", "events.jsonl", "predictions.jsonl"):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("adapter", "checkpoints"):
            if (self.folder / name).is_dir():
                shutil.rmtree(self.folder / name)
        shutil.rmtree(self.folder / "trackers", ignore_errors=True)  # a late one may still be writing

    def mend(self) -> None:
        """Repair the logs of a run that was interrupted during scoring, so that scoring can be resumed.

        Kept are complete lines, the last answer to each row, and no scoring events, which are logged again.
        """
        _rewrite(self.log, (e for e in self.events() if e["event"] not in _SCORING))
        self.keep_last_answers()

    def keep_last_answers(self) -> None:
        """Remove answers that were given again; the last one is kept."""
        answers = {(p["task"], p["id"]): p for p in self.predictions()}
        _rewrite(self.folder / "predictions.jsonl", answers.values())

    def cut(self, size: int) -> None:
        """Truncate the event log to its first `size` bytes."""
        os.truncate(self.log, size)

    def sweep(self) -> None:
        """Remove temporary files of a process that was killed while writing them."""
        for path in list(self.folder.glob(f"**/*{PART}")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def append(self, event: Event) -> None:
        """Append an event to the log."""
        append_line(self.log, event.to_json())

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the record atomically: readers see either the old or the new one."""
        write_json(self.folder / name, value)


def list_runs(root: str | Path = "runs") -> list[Run]:
    """Return all runs under a root, oldest first; symbolic links are ignored."""
    folders = [p.parent for p in Path(root).glob("*/spec.json") if not p.parent.is_symlink()]
    return [Run(f) for f in sorted(folders, key=lambda f: (f / "spec.json").stat().st_mtime)]


def find_run(name: str, root: str | Path = "runs") -> Run:
    """Return a run by its id, or any unambiguous prefix of it.

    Raises:
        BadSpec: none or several match.
    """
    known = {run.id: run for run in list_runs(root)}
    if name in known:
        return known[name]
    matching = [i for i in known if i.startswith(name)]
    if len(matching) == 1:
        return known[matching[0]]
    if matching:
        raise BadSpec(f"The prefix {name!r} is ambiguous under {root}: {listed(matching, 5, ', ')}. See `list`.")
    hint = choices(name, known) if known else "There are no runs yet; start one with `run`."
    raise BadSpec(f"There is no run {name!r} under {root}. {hint}")


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to or created.

    Raises:
        BadSpec: its name contains a control character, or is too long.
        CannotWrite: it is a symbolic link, or nothing can be made in it or its parent folder.
    """
    to_write(folder)
    if os.path.islink(folder):
        raise CannotWrite(
            f"{folder} is a symbolic link, and nothing is written through it. Replace it by the folder it points to."
        )
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        inside = "" if there == folder.absolute() else f" for {folder}"
        raise CannotWrite(f"{there} is a file where a folder is needed{inside}. Choose another place, or move it.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CannotWrite(f"{there} is not writable. Choose another folder, or change its permissions.")
    try:  # file systems of the kernel, such as /proc, can be written to but take no folder
        os.rmdir(mkdtemp(prefix=".", dir=there))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CannotWrite(
            f"Nothing can be kept in {folder}: no folder can be made in {there} ({reason}). Choose another folder."
        ) from None


def check_new(folder: Path) -> None:
    """Refuse a folder that cannot be created, or is not empty.

    Raises:
        BadSpec: it exists, or its name cannot be that of a folder.
        CannotWrite: see `check_writable`.
    """
    if to_write(folder).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadSpec(f"{folder} exists already. Name a new folder.")
    check_writable(folder.resolve())


def note(run: Run) -> str:
    """Return the note on a run; "" if there is none."""
    try:
        return (run.folder / "note.txt").read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""


def write_note(run: Run, text: str) -> None:
    """Replace the note on a run; "" removes it.

    Raises:
        BadSpec: the run has no folder.
    """
    if not run.folder.is_dir():
        raise BadSpec(f"The run {run.id} has no folder for a note: it has not started, or was deleted.")
    write_atomically(run.folder / "note.txt", (text.strip() + "\n").encode())
