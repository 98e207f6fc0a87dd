"""Index of all runs under a root, in any state: read, filter, sort, group and delete."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

from llm_adapters_lab.errors import BadSpec, LabError, choices
from llm_adapters_lab.results.appearance import SHORT, spec_fields
from llm_adapters_lab.runs.marks import Marks, marks
from llm_adapters_lab.runs.record import Run, note
from llm_adapters_lab.runs.recovery.lock import hold
from llm_adapters_lab.runs.status import SILENT, Name, State, beside, spec_of, state

_RECORD = ("spec.json", "events.jsonl", "summary.json")
_PROCESS = ("queued", "json", "spec.json", "log", "stage")
_UNKNOWN = State("unfinished")
_OPERATOR = r"(?:>=|<=|!=|=|>|<)"
_TERM = re.compile(rf"([\w.]+)({_OPERATOR})(.*)", re.DOTALL)
_COMMA = re.compile(rf",(?=[\w.]+{_OPERATOR})")  # as in adapter=lora,rank=8, but not in at=q,v
_HEADS = {short: key for key, short in SHORT.items()} | {"params": "trainable", "mean": "accuracy", "time": "seconds"}
"""What the table of runs calls a field."""


@dataclass(frozen=True)
class Entry:
    """One run as a row.

    Attributes:
        run: the record; its folder may not exist yet.
        state: of the run.
        begun: when its spec was written, in seconds since 1970.
        fields: of its spec by dotted key, and "state"; empty if the spec cannot be read.
        trainable: number of trained parameters; None until it is finished.
        results: scores by task, as in the summary.
        train: summary of the training; empty if nothing was trained.
        leaks: what `comparison.leak` reads, as in the summary.
        note: what a person has written about it.
        marks: star, tags and baseline.
        fault: why it cannot be read; "" if it can.
    """

    run: Run
    state: State = _UNKNOWN
    begun: float = 0.0
    fields: Mapping[str, Any] = field(default_factory=dict)
    trainable: int | None = None
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    leaks: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    marks: Marks = field(default_factory=Marks)
    fault: str = ""

    @property
    def id(self) -> str:
        """The run id."""
        return self.run.id

    @property
    def scores(self) -> dict[str, float]:
        """Accuracy, 0..1, by task."""
        return {task: score["accuracy"] for task, score in self.results.items()}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it was scored on."""
        return tuple(self.results)

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy over its tasks, 0..1; None if nothing was scored."""
        return math.fsum(self.scores.values()) / len(self.results) if self.results else None

    @cached_property
    def values(self) -> dict[str, Any]:
        """Everything that can be filtered and sorted by: the fields, and what the run came to."""
        known = {"id": self.id, "begun": self.begun, "trainable": self.trainable, "accuracy": self.accuracy}
        known |= {"loss": self.train.get("loss_last"), "seconds": self.train.get("seconds")}
        known |= {"star": self.marks.star, "tag": self.marks.tags, "baseline": self.marks.baseline}
        return {**self.fields, **{key: value for key, value in known.items() if value is not None}}

    @cached_property
    def text(self) -> str:
        """What words of a filter are searched in, in lower case."""
        fault = ["unreadable", self.fault] if self.fault else []
        parts = [self.id, self.note, *self.marks.tags, *fault, *map(words, self.fields.values())]
        return "\n".join(parts).casefold()


class Group(NamedTuple):
    """Runs that have the same value in a field.

    Attributes:
        value: in words; "" if the spec has no such field.
        entries: in the order they were given.
        accuracy: mean over its scored runs; None if there are none.
        alike: whether all of these were scored on the same tasks, so that the mean is meaningful.
    """

    value: str
    entries: list[Entry]
    accuracy: float | None
    alike: bool


def entries(root: str | Path = "runs") -> list[Entry]:
    """Return all runs under a root, newest first: finished, running, only launched, and unreadable ones."""
    top = Path(root).resolve()
    folders = {path.parent.name for name in _RECORD for path in top.glob(f"*/{name}")}
    launched = {path.name.removesuffix(".spec.json") for path in top.glob(".processes/*.spec.json")}
    found = [entry(Run(top / name)) for name in sorted(folders | launched)]
    return sorted(found, key=lambda entry: entry.begun, reverse=True)


def matching(rows: Sequence[Entry], text: str) -> list[Entry]:
    """Return the rows that meet every term of a filter.

    Args:
        rows: to choose from.
        text: terms separated by blanks, or by commas where a field follows: words, found in id, state, note, tags and
            the values of the spec, and ``field=value`` with any of = != < <= > >=. The last part of a field's name is
            enough if it is unambiguous. Case does not matter. Quotes keep blanks together.

    Raises:
        BadSpec: no row has a field, a name is ambiguous, words are to be compared with < or >, or there is no such
            operator or state.
    """
    try:
        terms = [term for part in shlex.split(text) for term in _COMMA.split(part.rstrip(","))]
    except ValueError:  # an open quote
        terms = text.split()
    known = list(dict.fromkeys(key for row in rows for key in row.values))
    for term in filter(None, terms):
        if (found := _TERM.fullmatch(term)) and rows:
            key, (_, operator, wanted) = full_name(found[1], known), found.groups()
            if wanted[:1] in tuple("=<>!"):
                raise BadSpec(f"{term!r}: fields compare with one of = != < <= > >=.")
            if key == "state" and wanted.casefold() not in get_args(Name):
                raise BadSpec(f"{term!r}: there is no such state. {choices(wanted, get_args(Name))}")
            rows = [row for row in rows if key in row.values and _holds(row.values[key], operator, wanted)]
        else:
            rows = [row for row in rows if term.casefold() in row.text]
    return list(rows)


def full_name(name: str, known: Sequence[str]) -> str:
    """Return the dotted key that a name, or the last part of one, stands for.

    Raises:
        BadSpec: there is none, or there are several.
    """
    if name in known or f"{name}.type" in known:
        return name if name in known else f"{name}.type"
    ends = [key for key in known if key.endswith(f".{name}")]
    if not ends and _HEADS.get(name) in known:
        return _HEADS[name]
    if len(ends) > 1:
        raise BadSpec(f"{name!r} may be {' or '.join(ends)}. Write one of them in full.")
    if not ends:
        raise BadSpec(f"No run has a field {name!r}. {choices(name, {key.rpartition('.')[2] for key in known})}")
    return ends[0]


def by_field(rows: Sequence[Entry], name: str) -> Callable[[Entry], Any]:
    """Return a key for `ordered`: the value of a field, numbers before words, None if a row has no such field.

    Raises:
        BadSpec: no row has the field, or its name is ambiguous.
    """
    key = full_name(name, list(dict.fromkeys(key for row in rows for key in row.values))) if rows else name
    return lambda row: _rank(words(row.values[key])) if row.values.get(key) is not None else None


def ordered(rows: Sequence[Entry], key: Callable[[Entry], Any], down: bool = False) -> list[Entry]:
    """Return rows sorted by `key`; those for which it gives None come last in either direction."""
    known = [row for row in rows if key(row) is not None]
    return sorted(known, key=key, reverse=down) + [row for row in rows if key(row) is None]


def grouped(rows: Sequence[Entry], name: str) -> list[Group]:
    """Return rows by the value of a field, numbers before words and rows without such a field last."""
    together: dict[str, list[Entry]] = {}
    for row in rows:
        together.setdefault(words(row.fields[name]) if name in row.fields else "", []).append(row)
    groups = []
    for value in sorted(together, key=_rank):
        scored = [(row.accuracy, row.tasks) for row in together[value] if row.accuracy is not None]
        mean = math.fsum(accuracy for accuracy, _ in scored) / len(scored) if scored else None
        groups.append(Group(value, together[value], mean, len({tasks for _, tasks in scored}) <= 1))
    return groups


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
        LabError: there is no such run, or it is or may be running.
    """
    if not any((run.folder / name).exists() for name in _RECORD) and not beside(run, "spec.json").exists():
        raise BadSpec(f"There is no run {run.id} under {run.folder.parent}.")
    beside(run, "lock").parent.mkdir(exist_ok=True)
    with hold(beside(run, "lock")):
        _refuse_running(run)
        if run.folder.is_symlink():
            run.folder.unlink()
        elif run.folder.exists():
            run.clear()  # first: what is left of a record, if this is interrupted, must not look finished
            shutil.rmtree(run.folder)
        for kind in _PROCESS:
            beside(run, kind).unlink(missing_ok=True)


def _refuse_running(run: Run) -> None:
    found, changed = _UNKNOWN, 0.0
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # of a broken record
        found = state(run)
    if found.works:
        raise LabError(f"The run {run.id} is {found.name}. Stop it before it is deleted.")
    for name in _RECORD:
        with contextlib.suppress(FileNotFoundError):
            changed = max(changed, (run.folder / name).stat().st_mtime)
    if found.name == "unfinished" and (quiet := time.time() - changed) < SILENT:
        raise LabError(
            f"The run {run.id} may be running in a program that is not known here: its record changed {quiet:.0f} s "
            f"ago. Stop it there, or wait until nothing has changed for {SILENT / 60:.0f} minutes."
        )


def entry(run: Run) -> Entry:
    """Return what is known of a run; if it cannot be read, the reason."""
    known: dict[str, Any] = {}
    try:
        places = (run.folder / "spec.json", beside(run, "spec.json"), run.folder)
        known["begun"] = next((path.stat().st_mtime for path in places if path.exists()), 0.0)
        known["note"], known["marks"] = note(run), marks(run)
        known["state"] = found = state(run)
        spec = run.spec if (run.folder / "spec.json").exists() else spec_of(run.id, run.folder.parent)
        known["fields"] = {**spec_fields(spec), "state": found.name}
        # The summary of an unfinished run would be made from its whole log.
        summary = run.summary if run.done else {}
        scores = summary.get("scores", {})
        known["results"] = {task: score for task, score in scores.items() if isinstance(score["accuracy"], float | int)}
        known |= {key: summary.get(key) or {} for key in ("train", "leaks")}
        return Entry(run, **known, trainable=summary.get("trainable_parameters"))
    except Exception as error:  # one bad folder must not hide the others
        return Entry(
            run, **known, fault=str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
        )


def _holds(value: Any, operator: str, wanted: str) -> bool:
    """Return whether a value compares so with what was written; an item of a list is enough."""
    if operator == "!=":
        return not _holds(value, "=", wanted)
    if isinstance(value, list | tuple) and any(_holds(item, operator, wanted) for item in value):
        return True
    try:
        limit = float(wanted)
    except ValueError:
        limit = math.nan
    if math.isnan(limit) and operator != "=":
        raise BadSpec(f"{operator} needs a number; given was {wanted!r}.")
    if not math.isnan(limit) and isinstance(value, int | float) and not isinstance(value, bool):
        if "=" in operator and math.isclose(value, limit, rel_tol=1e-9):
            return True
        return (value > limit and ">" in operator) or (value < limit and "<" in operator)
    named = {words(value).casefold(), str(value).casefold(), *(["null"] if value is None else [])}
    return operator == "=" and wanted.casefold() in named


def _rank(value: str) -> tuple[int, float, str]:
    if not value:
        return 2, 0.0, ""
    with contextlib.suppress(ValueError):
        return 0, float(value), ""
    return 1, 0.0, value
