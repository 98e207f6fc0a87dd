"""Run: the folder a run leaves behind, and the only thing that curves, tables and reports read.

<root>/<id>/spec.json           what was asked for
            events.jsonl        what happened, one line per event
            adapter/            adapter.safetensors and adapter.json
            train.json          how training went; its presence means that the adapter is complete
            predictions.jsonl   every answer that was scored
            summary.json        the result; its presence means that the run is complete
            note.txt            what a person has written about it; kept when the run is done again
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.events import Event
from llm_adapters_lab.spec import RunSpec


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
    def summary(self) -> dict[str, Any]:
        """The result, or for an unfinished run only its id and status."""
        try:
            summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
            return summary
        except FileNotFoundError:
            last = next((e for e in reversed(list(self.events())) if e["event"] in ("Failed", "Stopped")), None)
            status = "unfinished" if last is None else last["event"].lower()
            return {"id": self.id, "status": status} | ({"error": last["error"]} if last and "error" in last else {})

    @property
    def note(self) -> str:
        """What a person has written about the run; "" for nothing."""
        try:
            return (self.folder / "note.txt").read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return ""

    def write_note(self, text: str) -> None:
        """Keep a note about the run, in place of the one before; "" for none.

        Raises:
            BadSpec: the run has no folder.
        """
        if not self.folder.is_dir():
            raise BadSpec(f"The run {self.id} has no folder that could hold a note. It has not begun, or is deleted.")
        write_atomically(self.folder / "note.txt", (text.strip() + "\n").encode())

    def events(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """Yield the events so far, all or those of the given class names; a torn last line is left out."""
        yield from (e for e in _lines(self.folder / "events.jsonl") if not kinds or e["event"] in kinds)

    def predictions(self) -> Iterator[dict[str, Any]]:
        """Yield every scored answer, with the keys that `evaluate` gives it."""
        yield from _lines(self.folder / "predictions.jsonl")

    def is_trained(self, spec: RunSpec) -> bool:
        """Say whether this is a run of that very spec that has nothing but its scoring left."""
        try:
            return self.spec == spec and (spec.adapter is None or (self.folder / "train.json").is_file())
        except (OSError, ValueError, BadSpec):
            return False

    def clear(self) -> None:
        """Make the folder, and take out what an earlier attempt has left: the run starts from the beginning."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("summary.json", "train.json", "events.jsonl", "predictions.jsonl"):
            (self.folder / name).unlink(missing_ok=True)

    def mend(self) -> None:
        """Make the logs of an interrupted run fit to be continued: whole lines only, the last answer to each row."""
        answers = {(p["task"], p["id"]): p for p in self.predictions()}
        for name, lines in (("events.jsonl", self.events()), ("predictions.jsonl", answers.values())):
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
            path = self.folder / name
            if path.is_file() and path.read_bytes() != content:
                write_atomically(path, content)

    def append(self, event: Event) -> None:
        """Add an event to the log."""
        append_line(self.folder / "events.jsonl", event.to_json())

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the record in one piece: readers see the old file or the new one."""
        write_atomically(self.folder / name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def runs(root: str | Path = "runs") -> list[Run]:
    """Return all runs under a root, oldest first."""
    folders = [p.parent for p in Path(root).glob("*/spec.json")]
    return [Run(f) for f in sorted(folders, key=lambda f: (f / "spec.json").stat().st_mtime)]


def find(name: str, root: str | Path = "runs") -> Run:
    """Return the run whose id is or starts with `name`.

    Raises:
        BadSpec: none or several match.
    """
    known = {run.id: run for run in runs(root)}
    if name in known:
        return known[name]
    matching = [i for i in known if i.startswith(name)]
    if len(matching) == 1:
        return known[matching[0]]
    if matching:
        raise BadSpec(f"Several runs under {root} begin with {name!r}: {', '.join(matching)}.")
    hint = choices(name, known) if known else "There are none yet; start one with `run`."
    raise BadSpec(f"There is no run {name!r} under {root}. {hint}")


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line and hand it to the operating system at once."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it into place."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)  # mkstemp keeps a file to its owner; a record is for colleagues too
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    # As bytes: a line may be torn in the middle of a character.
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                with contextlib.suppress(ValueError):
                    yield json.loads(line)
