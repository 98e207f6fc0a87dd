"""The table of runs: which columns there are, the text of each cell, and the widget that shows the rows in sight."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import anywidget
import traitlets

from llm_adapters_lab.results.entry_groups import EntryGroup, field_name
from llm_adapters_lab.results.formatting import NONE, ago, clock, count, date, interval, percent
from llm_adapters_lab.results.run_index import Entry, words
from widgets.kit.elements import static
from widgets.kit.status import SIGNS

GROUP = "+"
"""What the id of a row begins with that stands for several seeds."""
BAD = ("unreadable", "failed", "dead")
_HEAD, _CELL, _PADDING, _WIDEST, _NARROWEST = 8.2, 8.2, 17, 150, 44
"""Widths in pixels: of a character in the head and in a cell, of what is around a text, and of a column."""
_TASK = "task:"


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: dotted key of a field of the spec, "task:" with the name of a task, or one of `_RESULTS`.
        label: its head.
        tip: what it holds.
        number: whether it is right-aligned, and sorted in descending order first.
        best: "high" or "low" if the best value is marked; else "".
    """

    key: str
    label: str
    tip: str
    number: bool = False
    best: str = ""


_RESULTS = {
    "trainable": Column("trainable", "params", "Trainable parameters", True),
    "accuracy": Column("accuracy", "mean %", "Mean accuracy", True, "high"),
    "interval": Column("interval", "95 %", "95 % interval of the mean accuracy, over other questions", True),
    "loss_last": Column("loss_last", "loss", "Train loss of the last step, in nats", True, "low"),
    "seconds": Column("seconds", "time", "Duration of the training", True),
    "tokens_per_second": Column("tokens_per_second", "tokens/s", "Tokens per second in training", True, "high"),
    "peak_memory_bytes": Column("peak_memory_bytes", "memory", "Peak memory in MB", True, "low"),
    "begun": Column("begun", "started", "When the run was started", True),
    "state": Column("state", "state", "State of the run"),
    "note": Column("note", "note", "What somebody wrote about the run"),
    "id": Column("id", "id", "Run id"),
}
_ALWAYS = ("loss_last", "seconds", "begun")
MAX_TASKS = 6
"""Maximum number of tasks that have a column by default."""


def columns(entries: Sequence[Entry], first: Sequence[str], tasks: Sequence[str]) -> dict[str, Column]:
    """Return all columns that runs can have, by key: fields that differ, results, and the other fields.

    Args:
        entries: of the runs.
        first: keys of the fields that differ.
        tasks: what the mean is taken over.
    """
    fields = dict.fromkeys(key for entry in entries for key in entry.fields if key != "state")
    names = [_label(key, fields) for key in fields]
    found = {key: Column(key, _label(key, fields, names), key, _numeric(entries, key)) for key in (*first, *fields)}
    own = {key: found[key] for key in first}
    scored = dict.fromkeys(task for entry in entries for task in entry.results)
    families = {task.partition("-")[0] for task in scored}
    shared = f"{min(families)}-" if len(scored) > 1 and len(families) == 1 else ""
    of_tasks = {
        f"{_TASK}{task}": Column(
            f"{_TASK}{task}", task.removeprefix(shared) + " %" * (not shared), f"Accuracy on {task}", True, "high"
        )
        for task in scored
    }
    tip = f"Mean accuracy over {', '.join(tasks)}; of several seeds: mean ± standard deviation (seeds)"
    results = {"trainable": _RESULTS["trainable"]}
    results |= {"accuracy": Column("accuracy", "mean %" if len(tasks) > 1 else "accuracy %", tip, True, "high")}
    return own | results | of_tasks | {key: own for key, own in _RESULTS.items() if key not in results} | found


def defaults(known: Mapping[str, Column], first: Sequence[str]) -> list[str]:
    """Return the keys of the columns that are shown unless others are chosen; `first` are fields that differ."""
    tasks = [key for key in known if key.startswith(_TASK)]
    shown = tasks if 1 < len(tasks) <= MAX_TASKS else []
    fields = [key for key in first if key != "eval.tasks"]
    return [key for key in (*fields, "trainable", "accuracy", *shown, *_ALWAYS) if key in known]


def text(group: EntryGroup, column: Column, tasks: Sequence[str]) -> tuple[str, str]:
    """Return the text of a cell and its tooltip, "" for none."""
    key, value = column.key, sort_value(group, column, tasks)
    if key == "seed" and len(group.entries) > 1:
        return _seeds(group), ""
    if value is None:
        return ("" if key in ("note", "state") else NONE), ""
    if key in ("accuracy", "interval") or key.startswith(_TASK):
        return _accuracy(group, key, _over(group, key, tasks), tasks)
    if key == "begun":
        return ago(value), date(value)
    shown: dict[str, Callable[[Any], str]] = {
        "trainable": lambda number: count(round(number)),
        "loss_last": lambda number: f"{number:.3f}",
        "seconds": clock,
        "tokens_per_second": lambda number: count(round(number)),
        "peak_memory_bytes": lambda number: f"{number / 1e6:,.0f}",
    }
    if key in shown:
        several = f"mean of {len(group.scored)} seeds" if len(group.scored) > 1 else ""
        return shown[key](value), f"{value:,.0f}" if key == "trainable" else several
    return (f"{value:.6g}" if isinstance(value, float) else words(value) if value != "" else NONE), ""


def sort_value(group: EntryGroup, column: Column, tasks: Sequence[str]) -> Any:
    """Return the value of a cell as it is compared; None if there is none."""
    key, first = column.key, group.entries[0]
    if key in ("accuracy", "interval") or key.startswith(_TASK):
        return group.mean(_over(group, key, tasks))
    if key in ("trainable", "loss_last", "seconds", "tokens_per_second", "peak_memory_bytes"):
        return group.value(key)
    if key == "begun":
        return max(entry.begun for entry in group.entries)
    if key in ("note", "id"):
        return getattr(first, key) or None
    return state(first) if key == "state" else first.fields.get(key)


def ordered(groups: Sequence[EntryGroup], column: Column | None, down: bool, tasks: Sequence[str]) -> list[EntryGroup]:
    """Return groups by the values of a column, or by name; those without a value come last in either direction."""
    values = {group.id: group.name if column is None else sort_value(group, column, tasks) for group in groups}
    known = [group for group in groups if values[group.id] is not None]
    return sorted(known, key=lambda group: _rank(values[group.id]), reverse=down) + [
        group for group in groups if values[group.id] is None
    ]


def best(groups: Sequence[EntryGroup], shown: Sequence[Column], tasks: Sequence[str]) -> dict[str, list[int]]:
    """Return in which columns each group has the best value, as shown, by the id of its row."""
    found: dict[str, list[int]] = {}
    for place, column in enumerate(shown):
        values = {row_id(g): sort_value(g, column, tasks) for g in groups if g.scored} if column.best else {}
        known = {key: float(value) for key, value in values.items() if value is not None}
        if len(known) < 2 or max(known.values()) - min(known.values()) < 1e-9:
            continue
        top = max(known.values()) if column.best == "high" else min(known.values())
        for key, value in known.items():
            if abs(value - top) < 1e-9:
                found.setdefault(key, []).append(place)
    return found


def row(group: EntryGroup, shown: Sequence[Column], tasks: Sequence[str]) -> dict[str, Any]:
    """Return a row as plain data."""
    first, cells = group.entries[0], [text(group, column, tasks) for column in shown]
    several = len(group.entries) > 1
    states = dict.fromkeys(state(entry) for entry in group.entries)
    odd = [name for name in states if name != "finished"]
    reasons = [entry.fault or (entry.state.reason if state(entry) in BAD else "") for entry in group.entries]
    notes = [entry.note for entry in group.entries if entry.note]
    return {
        "name": group.name,
        "title": f"{len(group.entries)} seeds" if several else first.id,
        "cells": [cell for cell, _ in cells],
        "tips": {place: tip for place, (_, tip) in enumerate(cells) if tip},
        "members": list(group.ids),
        "group": several,
        "sign": "".join(SIGNS.get(name, "✗") for name in odd),
        "state": "; ".join([", ".join(odd), *(reason.partition("\n")[0] for reason in filter(None, reasons))]),
        "bad": any(name in BAD for name in odd),
        "star": all(entry.marks.star for entry in group.entries),
        "baseline": any(entry.marks.baseline for entry in group.entries),
        "tags": list(dict.fromkeys(tag for entry in group.entries for tag in entry.marks.tags)),
        "note": "\n".join(notes),
    }


def row_id(group: EntryGroup) -> str:
    """Return the id of the row of a group: that of its run, or of its first run marked as a group."""
    return f"{GROUP}{group.id}" if len(group.entries) > 1 else group.id


def head(shown: Sequence[Column], rows: Iterable[Mapping[str, Any]], order: Sequence[str]) -> list[dict[str, Any]]:
    """Return columns as plain data, with their widths and the rank in which they give way on a narrow page."""
    widths = [len(column.label) * _HEAD for column in shown]
    for one in rows:
        widths = [max(width, len(cell) * _CELL) for width, cell in zip(widths, one["cells"], strict=True)]
    widths = [round(min(_WIDEST, max(_NARROWEST, width + _PADDING))) for width in widths]
    return [
        asdict(column) | {"width": width, "rank": order.index(column.key) if column.key in order else len(order)}
        for column, width in zip(shown, widths, strict=True)
    ]


def importance(known: Mapping[str, Column], fields: Sequence[str]) -> list[str]:
    """Return keys of columns, the one that gives way last on a narrow page first.

    Args:
        known: all columns.
        fields: those of fields that differ, the most informative first.
    """
    tasks = [key for key in known if key.startswith(_TASK)]
    first = [key for key in fields if key != "seed"][:3]
    rest = [key for key in fields if key not in first]
    return ["accuracy", *first, "trainable", *tasks, "seed", "loss_last", "seconds", "begun", *rest]


def state(entry: Entry) -> str:
    """Return the state of a run in a word."""
    return "unreadable" if entry.fault else str(entry.state.name)


class RunGrid(anywidget.AnyWidget):
    """The table on the page; of a thousand rows it holds those in sight.

    Attributes:
        columns: from `head`.
        rows: from `row`, by the id of the row; changed by `update`.
        lines: id and depth (0, or 1 for a seed of the group above) of the rows to show, in order.
        selected: ids of the selected runs.
        sort: key of a column, or "name", and whether in descending order.
        unfolded: ids of the groups whose seeds are shown.
        best: from `best`.
        colours: of the rows that are in the figure, by id of the row.
        fit: whether columns give way on a narrow page; else it scrolls.
        empty: what to say if there is no line.
        room: height of the browser's window in pixels; 0 while it is not known.
    """

    _esm = static("run_grid.js")
    _css = static("compare.css")
    columns: Any = traitlets.List().tag(sync=True)
    rows = traitlets.Dict().tag(sync=True)
    lines: Any = traitlets.List().tag(sync=True)
    selected: Any = traitlets.List().tag(sync=True)
    sort = traitlets.List(["accuracy", True]).tag(sync=True)
    unfolded: Any = traitlets.List().tag(sync=True)
    best = traitlets.Dict().tag(sync=True)
    colours = traitlets.Dict().tag(sync=True)
    fit = traitlets.Bool(True).tag(sync=True)
    empty = traitlets.Unicode("").tag(sync=True)
    room = traitlets.Int(0).tag(sync=True)

    def __init__(self, used: Callable[[str, str], object], **traits: Any) -> None:
        """Make an empty table; `used` is called with "open" or "star" and the id of a row."""
        super().__init__(**traits)
        self._used = used
        self.on_msg(self._told)

    def update(self, rows: dict[str, dict[str, Any]]) -> None:
        """Replace the rows; a page that has most of them gets only what has changed."""
        changed = {key: own for key, own in rows.items() if self.rows.get(key) != own}
        gone = [key for key in self.rows if key not in rows]
        if 2 * (len(changed) + len(gone)) > len(rows):
            self.rows = rows
        elif changed or gone:
            # In place, which sends nothing: a page that is opened later gets them all.
            self.rows.update(changed)
            for key in gone:
                del self.rows[key]
            self.send({"rows": changed, "gone": gone})

    def _told(self, _: Any, content: Any, buffers: Any) -> None:
        for kind in ("open", "star"):
            if isinstance(content, dict) and isinstance(content.get(kind), str):
                self._used(kind, content[kind])


def _over(group: EntryGroup, key: str, tasks: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks that an accuracy of a group is the mean of: if it was not asked all, its own."""
    if key.startswith(_TASK):
        return (key.removeprefix(_TASK),)
    if group.asked(tasks) or not group.scored:
        return tuple(tasks)
    return group.scored[0].tasks


def _accuracy(group: EntryGroup, key: str, over: Sequence[str], tasks: Sequence[str]) -> tuple[str, str]:
    means, ends = group.means(over), group.interval(over)
    if key == "interval":
        return interval(*ends).removesuffix(" %"), ""
    tip = f"95 % interval {interval(*ends)}"
    mean = f"{100 * statistics.fmean(means):.1f}"
    if len(means) > 1:
        tip += f"; seeds {', '.join(percent(one) for one in means)}"
        mean += f" ± {100 * statistics.stdev(means):.1f} ({len(means)})" if key == "accuracy" else ""
    if key == "accuracy" and set(over) != set(tasks):
        return f"{mean} *", f"over {', '.join(over)} only; {tip}"
    return mean, tip


def _seeds(group: EntryGroup) -> str:
    found = [entry.fields["seed"] for entry in group.entries]
    return f"{found[0]}–{found[-1]}" if found == list(range(found[0], found[-1] + 1)) else ", ".join(map(str, found))


def _label(key: str, fields: Iterable[str], names: Sequence[str] = ()) -> str:
    label = field_name(key)
    return key.replace(".", " ").replace("_", " ") if names.count(label) > 1 else label


def _numeric(entries: Sequence[Entry], key: str) -> bool:
    values = [entry.fields[key] for entry in entries if entry.fields.get(key) is not None]
    return bool(values) and all(type(value) in (int, float) for value in values)


def _rank(value: Any) -> tuple[int, float, str]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if is_number else (1, 0.0, words(value).casefold())
