"""What the places of the lab share: the runs under a root, the selected ones, and how to get from place to place.

`RunStore` reads the folder once and afterwards only what has changed, so that a thousand runs cost milliseconds.
`Selection` holds the ids of the runs that Monitor, Compare, Inspect and Playground show.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_adapters_lab.results.appearance import short_names
from llm_adapters_lab.results.run_index import Entry, entry
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec

Stamp = tuple[Any, ...]
_FILES = ("spec.json", "events.jsonl", "summary.json", "note.txt", "marks.json")
_PROCESS = ("json", "spec.json", "queued")


class Observable:
    """Something that tells its observers about every change."""

    def __init__(self) -> None:
        """Start without observers."""
        self._observers: list[Callable[[], object]] = []

    def observe(self, observer: Callable[[], object]) -> None:
        """Call `observer` after every change."""
        self._observers.append(observer)

    def unobserve(self, observer: Callable[[], object]) -> None:
        """Do not call `observer` any more."""
        with suppress(ValueError):
            self._observers.remove(observer)

    def _changed(self) -> None:
        for observer in [*self._observers]:
            observer()


class RunStore(Observable):
    """All runs under a root, as of the last `refresh`.

    Attributes:
        root: folder of all runs.
        entries: by run id, newest first.
        names: a short name for each run, such as "lora r8 q,v s0".
    """

    def __init__(self, root: str | Path = "runs", *, read: bool = True) -> None:
        """Read the folder; without `read`, that is left to the first refresh."""
        super().__init__()
        self.root = Path(root).resolve()
        self.entries: dict[str, Entry] = {}
        self.names: dict[str, str] = {}
        self._stamps: dict[str, Stamp] = {}
        if read:
            self.refresh()

    def refresh(self) -> bool:
        """Read what has changed on disk; return whether anything has, and tell the observers if so."""
        return self._take(self._read())

    async def refresh_soon(self) -> bool:
        """Refresh without blocking the event loop."""
        return self._take(await asyncio.to_thread(self._read))

    def run(self, run_id: str) -> Run:
        """Return the record of a run, whether or not it exists."""
        return Run(self.root / run_id)

    def working(self) -> list[Entry]:
        """Return the active runs, newest first."""
        return [each for each in self.entries.values() if each.state.works]

    def finished(self) -> list[Entry]:
        """Return the finished runs, newest first."""
        return [each for each in self.entries.values() if each.state.name == "finished" and not each.fault]

    def _read(self) -> tuple[dict[str, Stamp], dict[str, Entry]]:
        """Return the stamps of all runs, and the entries of those that are new or have changed."""
        stamps = {run_id: self._stamp(run_id) for run_id in self._ids()}
        active = {run_id for run_id, known in self.entries.items() if known.state.works}
        changed = [i for i, stamp in stamps.items() if i in active or self._stamps.get(i) != stamp]
        return stamps, {run_id: entry(Run(self.root / run_id)) for run_id in changed}

    def _take(self, found: tuple[dict[str, Stamp], dict[str, Entry]]) -> bool:
        stamps, fresh = found
        gone = self.entries.keys() - stamps.keys()
        differ = any(self.entries.get(run_id) != each for run_id, each in fresh.items())
        self._stamps = stamps
        if not gone and not differ:
            return False
        known = {run_id: each for run_id, each in (self.entries | fresh).items() if run_id in stamps}
        self.entries = dict(sorted(known.items(), key=lambda item: item[1].begun, reverse=True))
        self.names = short_names({run_id: each.fields for run_id, each in self.entries.items()})
        self._changed()
        return True

    def _ids(self) -> set[str]:
        found: set[str] = set()
        with suppress(OSError), os.scandir(self.root) as folders:
            found = {item.name for item in folders if item.is_dir() and not item.name.startswith(".")}
        with suppress(OSError), os.scandir(self.root / ".processes") as files:
            found |= {item.name.removesuffix(".spec.json") for item in files if item.name.endswith(".spec.json")}
        return found

    def _stamp(self, run_id: str) -> Stamp:
        folder, beside = self.root / run_id, self.root / ".processes"
        paths = [folder / name for name in _FILES] + [beside / f"{run_id}.{kind}" for kind in _PROCESS]
        return tuple(_stat(path) for path in paths)


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


class Selection(Observable):
    """The ids of the selected runs, in order of selection; the first is what shows only one run."""

    def __init__(self) -> None:
        """Select nothing."""
        super().__init__()
        self._ids: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """The selected runs; setting it tells the observers, if it changes."""
        return self._ids

    @ids.setter
    def ids(self, ids: Iterable[str]) -> None:
        found = tuple(dict.fromkeys(ids))
        if found != self._ids:
            self._ids = found
            self._changed()

    @property
    def first(self) -> str:
        """The first selected run; "" for none."""
        return self._ids[0] if self._ids else ""

    def toggle(self, run_id: str, selected: bool | None = None) -> None:
        """Add a run to the selection or remove it; by default, whichever it is not."""
        others = [known for known in self._ids if known != run_id]
        wanted = run_id not in self._ids if selected is None else selected
        self.ids = [*others, run_id] if wanted else others


@dataclass(frozen=True)
class Question:
    """A question that one place hands to another, such as an item that two runs answer differently.

    Attributes:
        task: name of its task; "" for a text that was typed.
        item: id of the row of that task.
        text: the text, if it was typed.
    """

    task: str = ""
    item: str = ""
    text: str = ""


class Workspace:
    """What all places share.

    Attributes:
        root: folder of all runs.
        process: whether runs are started in processes of their own, or in a thread of the kernel.
        runs: all runs.
        selection: the selected ones.
        question: handed over by the last `go`; None for none.
    """

    def __init__(self, root: str | Path = "runs", *, process: bool = True, read: bool = True) -> None:
        """Select nothing; for `process` see the attribute, for `read` see `RunStore`."""
        self.process = process
        self.runs, self.selection = RunStore(root, read=read), Selection()
        self.root = self.runs.root
        self.question: Question | None = None
        self._guides: list[Callable[[str], object]] = []
        self._cloners: list[Callable[[RunSpec, str], object]] = []

    @classmethod
    def of(cls, given: Workspace | str | Path) -> Workspace:
        """Return a workspace, or a new one for a root: every place works on its own, too."""
        return given if isinstance(given, Workspace) else cls(given)

    def on_go(self, guide: Callable[[str], object]) -> None:
        """Call `guide` with the name of a place that is to be opened."""
        self._guides.append(guide)

    def go(self, place: str, question: Question | None = None) -> None:
        """Open a place ("Setup", "Monitor", "Compare", "Inspect", "Playground"), perhaps with a question."""
        self.question = question
        for guide in self._guides:
            guide(place)

    def on_clone(self, cloner: Callable[[RunSpec, str], object]) -> None:
        """Call `cloner` with a spec that is to become the draft, and the id of the run that it is a copy of."""
        self._cloners.append(cloner)

    def clone(self, spec: RunSpec, parent: str = "") -> None:
        """Make a spec the draft, as a copy of a run."""
        for cloner in self._cloners:
            cloner(spec, parent)
