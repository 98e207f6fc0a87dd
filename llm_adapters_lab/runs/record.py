"""Run: the folder a run leaves behind, and the only thing that curves, tables and reports read.

<root>/<id>/spec.json           what was asked for
            hashes.json         of the base and the rows it began with
            events.jsonl        what happened, one line per event
            checkpoints/        a training that has not ended, see `checkpoint`
            trackers/           what trackers of the spec have written
            adapter/            adapter.safetensors and adapter.json
            train.json          how training went; its presence means that the adapter is complete
            predictions.jsonl   every answer that was scored
            summary.json        the result; its presence means that the run is complete
            note.txt            what a person has written about it; kept when the run is done again
            lock                the process that works on it

A process may die at any moment: what is in one piece is written beside its place, flushed and renamed; what grows line
by line may end in a torn line, which no reader minds and the next attempt takes away.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import BadSpec, CannotWrite, choices
from llm_adapters_lab.events import Event
from llm_adapters_lab.files import PART, _lines, _rewrite, append_line, write_atomically
from llm_adapters_lab.runs.event_log import last_event
from llm_adapters_lab.runs.spec import RunSpec

_SCORING = ("Scoring", "Scored", "Finished", "Stopped", "Failed")


@dataclass(frozen=True)
class Run:
    """A run on disk; every property reads the folder afresh.

    Attributes:
        folder: of the run; its name is the run id.
    """

    folder: Path

    @property
    def id(self) -> str:
        """The run id."""
        return self.folder.name

    @property
    def spec(self) -> RunSpec:
        """What was asked for."""
        try:
            return RunSpec.parse(json.loads((self.folder / "spec.json").read_text(encoding="utf-8")))
        except ValueError as error:  # of JSON, or a BadSpec: written by another version, or by hand
            raise BadSpec(f"{self.folder / 'spec.json'} is no spec this version understands: {error}") from None

    @property
    def done(self) -> bool:
        """Whether the run is complete."""
        return (self.folder / "summary.json").is_file()

    @property
    def lock(self) -> Path:
        """The file that the process at work on the run holds, see `processes.hold`."""
        return self.folder / "lock"

    @property
    def log(self) -> Path:
        """The log of events."""
        return self.folder / "events.jsonl"

    @property
    def summary(self) -> dict[str, Any]:
        """The result, or for an unfinished run only its id and status."""
        try:
            return json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        except FileNotFoundError:
            last = last_event(self.log) or {}
            failed = last.get("event") == "Failed"
            status = "failed" if failed else "stopped" if last.get("event") == "Stopped" else "unfinished"
            known = ("error", "stage", "step", "advice", "traceback") if failed else ()
            return {"id": self.id, "status": status} | {key: last[key] for key in known if key in last}

    def events(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """Yield the events so far, all or those of the given class names; a torn last line is left out."""
        yield from (e for e in _lines(self.log, kinds) if not kinds or e["event"] in kinds)

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Yield every scored answer, with the keys that `evaluate` gives it."""
        yield from _lines(self.folder / "predictions.jsonl")

    def is_of(self, spec: RunSpec) -> bool:
        """Say whether this is a record of that very spec, up to settings that change no result."""
        try:
            return self.spec.canonical() == spec.canonical()
        except (OSError, BadSpec):
            return False

    def is_trained(self, spec: RunSpec) -> bool:
        """Say whether this is a run of that very spec that has nothing but its scoring left."""
        return self.is_of(spec) and (spec.adapter is None or (self.folder / "train.json").is_file())

    def clear(self) -> None:
        """Make the folder, and take out what an earlier attempt has left: the run starts from the beginning."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The result first: what is left when this is interrupted must not look like more than it is.
        for name in ("summary.json", "train.json", "hashes.json", "events.jsonl", "predictions.jsonl"):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("adapter", "checkpoints"):
            if (self.folder / name).is_dir():
                shutil.rmtree(self.folder / name)
        shutil.rmtree(self.folder / "trackers", ignore_errors=True)  # one that is late may still write

    def mend(self) -> None:
        """Make the logs of a run interrupted in its scoring fit to be continued, as if it had not been.

        Whole lines only, the last answer to each row, and of the scoring nothing, which is told again.
        """
        _rewrite(self.log, (e for e in self.events() if e["event"] not in _SCORING))
        self.keep_last_answers()

    def keep_last_answers(self) -> None:
        """Take away every answer that was given again, in place of which the last one then stands."""
        answers = {(p["task"], p["id"]): p for p in self.predictions()}
        _rewrite(self.folder / "predictions.jsonl", answers.values())

    def cut(self, size: int) -> None:
        """Take away what was said after the first so many bytes of the log."""
        os.truncate(self.log, size)

    def sweep(self) -> None:
        """Take away files that a process was killed over while it wrote them."""
        for path in list(self.folder.glob(f"**/*{PART}")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def append(self, event: Event) -> None:
        """Add an event to the log."""
        append_line(self.log, event.to_json())

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the record in one piece: readers see the old file or the new one."""
        write_atomically(self.folder / name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def list_runs(root: str | Path = "runs") -> list[Run]:
    """Return all runs under a root, oldest first; links that lead out of it are passed over."""
    folders = [p.parent for p in Path(root).glob("*/spec.json") if not p.parent.is_symlink()]
    return [Run(f) for f in sorted(folders, key=lambda f: (f / "spec.json").stat().st_mtime)]


def find_run(name: str, root: str | Path = "runs") -> Run:
    """Return the run whose id is or starts with `name`.

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
        raise BadSpec(f"Several runs under {root} begin with {name!r}: {', '.join(matching)}.")
    hint = choices(name, known) if known else "There are none yet; start one with `run`."
    raise BadSpec(f"There is no run {name!r} under {root}. {hint}")


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to, or made.

    Raises:
        CannotWrite: it is a link, or it or what it would be in is read-only.
    """
    if folder.is_symlink():
        raise CannotWrite(
            f"{folder} is a link, and nothing is written beyond it. Move what it leads to into its place."
        )
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not os.access(there, os.W_OK | os.X_OK):
        raise CannotWrite(f"{there} cannot be written to. Choose another root (--root), or lift the protection.")


def note(run: Run) -> str:
    """Return the note about a run; "" for none."""
    try:
        return (run.folder / "note.txt").read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""


def write_note(run: Run, text: str) -> None:
    """Keep a note about a run, in place of the one before; "" for none.

    Raises:
        BadSpec: the run has no folder.
    """
    if not run.folder.is_dir():
        raise BadSpec(f"The run {run.id} has no folder that could hold a note. It has not begun, or is deleted.")
    write_atomically(run.folder / "note.txt", (text.strip() + "\n").encode())
