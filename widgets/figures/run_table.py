"""The table of runs: pages of rows with controls, under headings if the runs are grouped."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import ipywidgets as W

from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results.formatting import percent
from llm_adapters_lab.results.run_index import Entry, Group, words
from widgets.kit.elements import button, row, show_if
from widgets.kit.panel import Silent
from widgets.kit.status import SIGNS

SORTS: dict[str, Callable[[Entry], Any]] = {
    "started": lambda entry: entry.begun,
    "run": lambda entry: entry.id,
    "state": lambda entry: entry.fields.get("state"),
    "base": lambda entry: entry.fields.get("base"),
    "adapter": lambda entry: words(entry.fields["adapter.type"]) if entry.fields else None,
    "parameters": lambda entry: entry.trainable,
    "accuracy": lambda entry: entry.accuracy,
    "note": lambda entry: entry.note.casefold() or None,
}
DESCENDING = ("started", "accuracy")
"""Columns that are sorted in descending order by default."""
PAGE = 25
"""Rows per page: every row has controls of its own, which a browser has to hold."""
UNREADABLE = "unreadable"
BAD = (UNREADABLE, "failed", "dead")
_COLUMNS = ("state", "base", "adapter", "parameters", "accuracy (tasks)", "started")


class Shared:
    """The layout and styles that all rows share: each would be sent to the page separately."""

    def __init__(self) -> None:
        """Start without styles."""
        self.layout = W.Layout(width="auto", min_width="0")
        self._styles: dict[Any, Any] = {}

    def make(self, kind: Any, **traits: Any) -> Any:
        """Return a widget with the shared layout and style."""
        made = kind(layout=self.layout, **traits | ({"style": self._styles[kind]} if kind in self._styles else {}))
        self._styles.setdefault(kind, made.style)
        return made

    def line(self, first: Any, *rest: Any) -> Any:
        """Return a line of the table."""
        made = W.HBox([first, W.HBox(rest, layout=self.layout)], layout=self.layout)
        made.add_class("lab-run")
        return made


class RunRow(Silent):
    """A row of the table: checkbox, facts, note, and a button to open the run.

    A row always belongs to the same run, so that no late click can reach another one.
    """

    def __init__(self, run_id: str, shared: Shared, used: Callable[[RunRow, str], None]) -> None:
        """Make the controls; `used` is called with the row and the control used: "selected", "note" or "open"."""
        self.id, self._used = run_id, used
        self.selected = shared.make(W.Checkbox, description=run_id, indent=False, tooltip=run_id)
        self.cells = shared.make(W.HTML)
        self.note = shared.make(W.Text, placeholder="note", tooltip=f"note on {run_id}", continuous_update=False)
        self.open = shared.make(W.Button, description="Open", tooltip=f"Show {run_id}")
        self.selected.observe(lambda _: self._report("selected"), "value")
        self.note.observe(lambda _: self._report("note"), "value")
        self.open.on_click(lambda _: self._report("open"))
        self.widget = shared.line(self.selected, self.cells, self.note, self.open)

    def show(self, entry: Entry, selected: bool) -> None:
        """Show the facts about the run."""
        with self.silently():
            self.selected.value, self.note.value = selected, entry.note
        self.cells.value = cells(entry)
        self.open.disabled = bool(entry.fault)

    def close(self) -> None:
        """Close the widgets: a page keeps every widget that is not closed."""
        for part in (self.widget, *self.widget.children, self.cells, self.note, self.open):
            part.close()

    def _report(self, control: str) -> None:
        if not self.quiet:
            self._used(self, control)


def heading(name: str, group: Group) -> Html:
    """Return the heading of a group as markup; `name` is the field by which the runs are grouped."""
    title, count = f"{name} = {group.value}" if group.value else f"without {name}", len(group.entries)
    text = f" · {count} run{'s' * (count != 1)}"
    if group.accuracy is not None:
        text += f" · mean accuracy {percent(group.accuracy)}"
        text += "" if group.alike else " (on different tasks)"
    return el("div", el("b", title), text, role="heading", aria_level="3", class_="lab-group")


def cells(entry: Entry) -> Html:
    """Return the facts about a run as markup."""
    state = UNREADABLE if entry.fault else entry.state.name
    started = time.localtime(entry.begun)
    texts = (
        f"{SIGNS.get(state, '?')} {state}",
        words(entry.fields["base"]) if entry.fields else "",
        words(entry.fields["adapter.type"]) if entry.fields else "",
        "" if entry.trainable is None else f"{entry.trainable:,}",
        "" if entry.accuracy is None else f"{percent(entry.accuracy)} ({len(entry.tasks)})",
        time.strftime("%m-%d %H:%M", started),
    )
    shown = []
    for name, text in zip(_COLUMNS, texts, strict=True):
        full = time.strftime("%Y-%m-%d %H:%M:%S", started) if name == "started" else text
        look = {"class_": "lab-bad"} if name == "state" and state in BAD else {}
        shown.append(el("span", text, title=f"{name}: {full}", **look))
    reason = entry.fault or (entry.state.reason if state in BAD else "")
    why = [el("div", reason.split("\n")[0], class_="lab-note", title=reason)] if reason else []
    return el("div", el("div", *shown, class_="lab-cells"), *why)


class RunTable:
    """Pages of rows: `lines` has the rows on the current `page`, which is counted from 0, by run id."""

    def __init__(self, used: Callable[[RunRow, str], None]) -> None:
        """Make an empty table; `used` is called as described in `RunRow`."""
        self._used = used
        self.lines: dict[str, RunRow] = {}
        self.page = 0
        self._show_again: Callable[[], object] = lambda: None
        self._headings: dict[str, Any] = {}
        self._shared = Shared()
        names = el("div", *(el("b", name) for name in _COLUMNS), class_="lab-cells")
        parts = [self._shared.make(W.HTML, value=text) for text in (el("b", "run"), names, el("b", "note"), "")]
        self._head = self._shared.line(*parts)
        self.back = button("Previous page", click=lambda _: self._turn(-1))
        self.forward = button("Next page", click=lambda _: self._turn(1))
        self.position, self.rows = W.Label(), W.VBox()
        self._pages = row(self.back, self.position, self.forward)
        self.widget = W.VBox([self.rows, self._pages])

    def show(self, groups: Sequence[Group], field: str, selected: Collection[str]) -> None:
        """Show runs.

        Args:
            groups: of runs; a single one if they are not grouped.
            field: by which they are grouped; "" for none, which shows no headings.
            selected: ids of the selected runs.
        """
        self._show_again = lambda: self.show(groups, field, selected)
        runs = [(group, entry) for group in groups for entry in group.entries]
        last = max(0, -(-len(runs) // PAGE) - 1)
        self.page = min(max(self.page, 0), last)
        page = runs[self.page * PAGE : (self.page + 1) * PAGE]
        before, self.lines = self.lines, {entry.id: self._line(entry, entry.id in selected) for _, entry in page}
        headings, self._headings = self._headings, {g.value: self._heading(field, g) for g, _ in page if field}
        children: list[Any] = []
        for group, entry in page:
            title = self._headings.get(group.value)
            children += [] if title is None or title in children else [title]
            children.append(self.lines[entry.id].widget)
        # Rows that stay on the page keep their widgets, so that a control in use keeps the focus.
        self.rows.children = [self._head, *children] if children else []
        for line in [line for name, line in before.items() if name not in self.lines]:
            line.close()
        for title in [title for name, title in headings.items() if name not in self._headings]:
            title.close()
        self.position.value = f"page {self.page + 1} of {last + 1}"
        self.back.disabled, self.forward.disabled = self.page == 0, self.page == last
        show_if(last, self._pages)

    def _line(self, entry: Entry, selected: bool) -> RunRow:
        line = self.lines.get(entry.id) or RunRow(entry.id, self._shared, self._used)
        line.show(entry, selected)
        return line

    def _heading(self, field: str, group: Group) -> Any:
        title = self._headings.get(group.value) or W.HTML()
        title.value = heading(field, group)
        return title

    def _turn(self, by: int) -> None:
        self.page += by
        self._show_again()
