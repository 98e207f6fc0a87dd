"""Archive: all runs under a root, in whatever state, as plain rows to filter, sort and group; and how to delete one."""

from __future__ import annotations

import contextlib
import math
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from llm_adapters_lab.errors import BadSpec, LabError, choices
from llm_adapters_lab.results.comparison import mean_accuracy, spec_fields
from llm_adapters_lab.runs.background import SILENT, State, beside, spec_of, state
from llm_adapters_lab.runs.record import Run, note
from llm_adapters_lab.runs.recovery.lock import hold

_RECORD = ("spec.json", "events.jsonl", "summary.json")
_PROCESS = ("json", "spec.json", "log")
_UNKNOWN = State("unfinished")


@dataclass(frozen=True)
class Entry:
    """One run as a row.

    Attributes:
        run: the record; its folder may not be there yet.
        state: how it stands.
        begun: when its spec was written, in seconds since 1970.
        fields: of its spec by dotted key, and "state"; nothing else where the spec cannot be read.
        trainable: trained parameters; None until it is finished.
        accuracy: mean over its tasks, 0..1; None where nothing was scored.
        tasks: it was scored on.
        note: what a person has written about it.
        fault: why it cannot be read; "" if it can.
    """

    run: Run
    state: State = _UNKNOWN
    begun: float = 0.0
    fields: Mapping[str, Any] = field(default_factory=dict)
    trainable: int | None = None
    accuracy: float | None = None
    tasks: tuple[str, ...] = ()
    note: str = ""
    fault: str = ""

    @property
    def id(self) -> str:
        """The run id."""
        return self.run.id


class Group(NamedTuple):
    """Runs that have the same value in a field.

    Attributes:
        value: in words; "" where the spec has no such field.
        entries: in the order they were given.
        accuracy: mean over its runs that were scored; None where there is none.
        alike: whether all of these were scored on the same tasks, so that the mean says something.
    """

    value: str
    entries: list[Entry]
    accuracy: float | None
    alike: bool


def entries(root: str | Path = "runs") -> list[Entry]:
    """Return all runs under a root, newest first: finished, at work, only launched, and those that cannot be read."""
    top = Path(root).resolve()
    folders = {path.parent.name for name in _RECORD for path in top.glob(f"*/{name}")}
    launched = {path.name.removesuffix(".spec.json") for path in top.glob(".processes/*.spec.json")}
    found = [_entry(Run(top / name)) for name in sorted(folders | launched)]
    return sorted(found, key=lambda entry: entry.begun, reverse=True)


def matching(rows: Sequence[Entry], text: str) -> list[Entry]:
    """Return the rows that have everything a text asks for.

    Args:
        rows: to choose from.
        text: words, found in id, state, note and anywhere in the values of the spec, and terms ``field=value``; a
            field may be named by its last part where that is unique. Case does not matter. Quotes keep blanks together.

    Raises:
        BadSpec: no row has a field, or several fields end in that name.
    """
    try:
        terms = shlex.split(text)
    except ValueError:  # a quote that is still open
        terms = text.split()
    known = list(dict.fromkeys(key for row in rows for key in row.fields))
    for term in terms:
        name, equals, wanted = term.partition("=")
        if equals and rows:
            key = _key(name, known)
            rows = [row for row in rows if key in row.fields and _is(row.fields[key], wanted)]
        else:
            rows = [row for row in rows if term.casefold() in _text(row)]
    return list(rows)


def ordered(rows: Sequence[Entry], key: Callable[[Entry], Any], down: bool = False) -> list[Entry]:
    """Return rows sorted by what `key` gives; those for which it gives None come last either way."""
    known = [row for row in rows if key(row) is not None]
    return sorted(known, key=key, reverse=down) + [row for row in rows if key(row) is None]


def grouped(rows: Sequence[Entry], name: str) -> list[Group]:
    """Return rows by the value of a field, numbers before words and rows without such a field last."""
    groups: dict[str, list[Entry]] = {}
    for row in rows:
        groups.setdefault(words(row.fields[name]) if name in row.fields else "", []).append(row)
    return [_group(value, groups[value]) for value in sorted(groups, key=_rank)]


def words(value: Any) -> str:
    """Return the value of a field as a person would write it; never an empty text."""
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value) or "(empty)"


def delete(run: Run) -> None:
    """Delete a run for good: its record, its adapter, its note and what is known of its process.

    Raises:
        LabError: it is at work, or may be.
    """
    if not any((run.folder / name).exists() for name in _RECORD) and not beside(run, "spec.json").exists():
        raise BadSpec(f"There is no run {run.id} under {run.folder.parent}.")
    beside(run, "lock").parent.mkdir(exist_ok=True)
    with hold(beside(run, "lock")):
        _refuse_at_work(run)
        if run.folder.is_symlink():
            run.folder.unlink()
        elif run.folder.exists():
            run.clear()  # first: what is left of a record, if this is interrupted, must not look finished
            shutil.rmtree(run.folder)
        for kind in _PROCESS:
            beside(run, kind).unlink(missing_ok=True)


def _refuse_at_work(run: Run) -> None:
    found = _UNKNOWN
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # of a broken record
        found = state(run)
    if found.works:
        raise LabError(f"The run {run.id} is {found.name}. Stop it before it is deleted.")
    if found.name == "unfinished" and (quiet := time.time() - _changed(run)) < SILENT:
        raise LabError(
            f"The run {run.id} may be at work in a program that is not known here: its record changed {quiet:.0f} s "
            f"ago. Stop it there, or wait until nothing has changed for {SILENT / 60:.0f} minutes."
        )


def _changed(run: Run) -> float:
    times = [0.0]
    for name in _RECORD:
        with contextlib.suppress(FileNotFoundError):
            times.append((run.folder / name).stat().st_mtime)
    return max(times)


def _entry(run: Run) -> Entry:
    known: dict[str, Any] = {}
    try:
        known["begun"] = _begun(run)
        known["note"] = note(run)
        known["state"] = found = state(run)
        spec = run.spec if (run.folder / "spec.json").exists() else spec_of(run.id, run.folder.parent)
        fields = {**spec_fields(spec), "state": found.name}
        # Of an unfinished run the summary would be made from its whole log.
        summary = run.summary if run.done else {}
        known["tasks"] = tuple(summary.get("scores", {}))
        known["trainable"] = summary.get("trainable_parameters")
        return Entry(run, **known, fields=fields, accuracy=mean_accuracy(run) if known["tasks"] else None)
    except Exception as error:  # one bad folder must not hide the others
        fault = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
        return Entry(run, **known, fault=fault)


def _begun(run: Run) -> float:
    for path in (run.folder / "spec.json", beside(run, "spec.json"), run.folder):
        if path.exists():
            return path.stat().st_mtime
    return 0.0


def _key(name: str, known: Sequence[str]) -> str:
    ends = [key for key in known if key.endswith(f".{name}")]
    if name in known or f"{name}.type" in known:
        return name if name in known else f"{name}.type"
    if len(ends) > 1:
        raise BadSpec(f"{name!r} may be {' or '.join(ends)}. Write one of them in full.")
    if not ends:
        raise BadSpec(f"No run has a field {name!r}. {choices(name, {key.rpartition('.')[2] for key in known})}")
    return ends[0]


def _is(value: Any, wanted: str) -> bool:
    if isinstance(value, list | tuple) and any(_is(item, wanted) for item in value):
        return True
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return math.isclose(value, float(wanted), rel_tol=1e-9)
    return wanted.casefold() in (words(value).casefold(), str(value).casefold())


def _text(row: Entry) -> str:
    fault = ["unreadable", row.fault] if row.fault else []
    return "\n".join([row.id, row.note, *fault, *map(words, row.fields.values())]).casefold()


def _rank(value: str) -> tuple[int, float, str]:
    if not value:
        return 2, 0.0, ""
    with contextlib.suppress(ValueError):
        return 0, float(value), ""
    return 1, 0.0, value


def _group(value: str, rows: list[Entry]) -> Group:
    scored = [row for row in rows if row.accuracy is not None]
    mean = math.fsum(row.accuracy or 0 for row in scored) / len(scored) if scored else None
    return Group(value, rows, mean, len({row.tasks for row in scored}) <= 1)
