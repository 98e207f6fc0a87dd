"""The table of runs: a page of lines, under headings where they are grouped."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import ipywidgets as W

from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results.run_index import Entry, Group, words
from widgets.kit.progress import SIGNS

SORTS: dict[str, Callable[[Entry], Any]] = {
    "begun": lambda entry: entry.begun,
    "run": lambda entry: entry.id,
    "state": lambda entry: entry.fields.get("state"),
    "base": lambda entry: entry.fields.get("base"),
    "adapter": lambda entry: words(entry.fields["adapter.type"]) if entry.fields else None,
    "parameters": lambda entry: entry.trainable,
    "accuracy": lambda entry: entry.accuracy,
    "note": lambda entry: entry.note.casefold() or None,
}
FALLING = ("begun", "accuracy")
"""Sorted from the top unless asked otherwise."""
UNREADABLE = "unreadable"
BAD = (UNREADABLE, "failed", "dead")
_COLUMNS = ("state", "base", "adapter", "parameters", "accuracy (tasks)", "begun")
_NUMBERS = ("parameters", "accuracy (tasks)")
# Flexible, but the same in every line: the columns stay below each other also where a line breaks after the name.
_NAME, _REST, _CELLS, _NOTE, _OPEN = "2 1 210px", "6 1 740px", "1 1 0px", "0 1 130px", "0 0 58px"
_LINE = "1px solid var(--jp-border-color2, #c8ced4)"
_ERROR = "var(--jp-error-color1, #b00020)"
_QUIET = "var(--jp-ui-font-color2, #5b6570)"
_WHY = f"color: {_QUIET}; line-height: 1.4; padding: 0 5px 4px; overflow-wrap: anywhere; font-size: 90%"
_GRID = "display: grid; grid-template-columns: repeat(auto-fit, minmax(90px, 1fr)); line-height: 1.45"


class Shapes:
    """Layouts and styles that all lines share: each is a model of its own, which a page must be told of."""

    def __init__(self) -> None:
        """Make one of each."""
        self.row = W.Layout(width="100%", flex_flow="row wrap", align_items="center", border_bottom=_LINE)
        self.rest = _flex(_REST)
        self.chosen = {"layout": _flex(_NAME), "style": _style(W.Checkbox)}
        self.cells = {"layout": _flex(_CELLS), "style": _style(W.HTML)}
        self.note = {"layout": _flex(_NOTE), "style": _style(W.Text)}
        self.open = {"layout": _flex(_OPEN), "style": _style(W.Button)}


class Line:
    """A run in the table; it stays that of the same run, so that nothing typed or clicked can reach another.

    Attributes:
        chosen: checkbox with the run id.
        cells: what is known of the run.
        note: text that is kept when it is left.
        open: button.
        widget: all of them.
    """

    def __init__(self, run_id: str, shapes: Shapes, changed: Callable[[Line, str], None]) -> None:
        """Make the controls.

        Args:
            run_id: of the run.
            shapes: how they look.
            changed: called with the line and "chosen", "note" or "open" after a person has used that control.
        """
        self.id, self._changed, self._quiet = run_id, changed, False
        self.chosen: Any = W.Checkbox(description=run_id, indent=False, tooltip=run_id, **shapes.chosen)
        self.cells: Any = W.HTML(**shapes.cells)
        hint = {"placeholder": "note", "tooltip": f"note on {run_id}"}
        self.note: Any = W.Text(continuous_update=False, **hint, **shapes.note)
        self.open: Any = W.Button(description="Open", tooltip=f"Show {run_id}", **shapes.open)
        self.chosen.observe(lambda _: self._tell("chosen"), "value")
        self.note.observe(lambda _: self._tell("note"), "value")
        self.open.on_click(lambda _: self._tell("open"))
        self._rest = W.HBox([self.cells, self.note, self.open], layout=shapes.rest)
        self.widget: Any = W.HBox([self.chosen, self._rest], layout=shapes.row)

    def show(self, entry: Entry, chosen: bool) -> None:
        """Show what is known of the run now."""
        self._quiet = True
        try:
            self.chosen.value, self.note.value = chosen, entry.note
        finally:
            self._quiet = False
        self.cells.value = cells(entry)
        self.open.disabled = bool(entry.fault)

    def close(self) -> None:
        """Drop the controls: a page holds every widget that is not closed."""
        for part in (self.widget, self._rest, self.chosen, self.cells, self.note, self.open):
            part.close()

    def _tell(self, what: str) -> None:
        if not self._quiet:
            self._changed(self, what)


def head(shapes: Shapes) -> Any:
    """Return the names of the columns."""
    names = [el("b", name, style=f"{_cell(name)}; white-space: normal") for name in _COLUMNS]
    titles = W.HTML(el("div", *names, style=f"{_GRID}; align-items: center"), **shapes.cells)
    note, space = W.HTML(el("b", "note"), layout=_flex(_NOTE)), W.HTML("", layout=_flex(_OPEN))
    name = W.HTML(el("b", "run"), layout=_flex(_NAME))
    return W.HBox([name, W.HBox([titles, note, space], layout=shapes.rest)], layout=shapes.row)


def heading(name: str, group: Group) -> Html:
    """Return the line above the runs of a group as markup.

    Args:
        name: of the field they are grouped by.
        group: its runs, also those on other pages.
    """
    title = f"{name} = {group.value}" if group.value else f"without {name}"
    count = len(group.entries)
    text = f" · {count} run{'s' * (count != 1)}"
    if group.accuracy is not None:
        text += f" · mean accuracy {100 * group.accuracy:.1f} %"
        text += "" if group.alike else " (not all on the same tasks)"
    look = "padding: 8px 4px 2px; line-height: 1.4"
    return el("div", el("b", title), text, role="heading", aria_level="3", style=look)


def cells(entry: Entry) -> Html:
    """Return what is known of a run as markup."""
    state = UNREADABLE if entry.fault else entry.state.name
    begun = time.localtime(entry.begun)
    texts = (
        f"{SIGNS.get(state, '?')} {state}",
        words(entry.fields["base"]) if entry.fields else "",
        words(entry.fields["adapter.type"]) if entry.fields else "",
        "" if entry.trainable is None else f"{entry.trainable:,}",
        "" if entry.accuracy is None else f"{100 * entry.accuracy:.1f} % ({len(entry.tasks)})",
        time.strftime("%m-%d %H:%M", begun),
    )
    shown = []
    for name, text in zip(_COLUMNS, texts, strict=True):
        look = _cell(name) + (f"; color: {_ERROR}" if name == "state" and state in BAD else "")
        full = time.strftime("%Y-%m-%d %H:%M:%S", begun) if name == "begun" else text
        shown.append(el("span", text, style=look, title=f"{name}: {full}"))
    reason = entry.fault or (entry.state.reason if state in BAD else "")
    why = [el("div", reason.split("\n")[0], style=_WHY, title=reason)] if reason else []
    return el("div", el("div", *shown, style=_GRID), *why)


def _cell(name: str) -> str:
    align = "right; font-variant-numeric: tabular-nums" if name in _NUMBERS else "left"
    return f"padding: 0 5px; text-align: {align}; overflow: hidden; text-overflow: ellipsis; white-space: nowrap"


def _flex(flex: str) -> Any:
    return W.Layout(flex=flex, width="auto", min_width="0", align_items="center")


def _style(kind: Any) -> Any:
    made = kind()
    made.close()
    return made.style


PAGE = 25
"""Runs on a page: every line has controls of its own, which a browser must hold."""


class RunTable:
    """Lines of runs with buttons to turn the page.

    Attributes:
        lines: by run id, those on the page.
        page: from 0.
        back: button.
        further: button.
        widget: what is shown.
    """

    def __init__(self, used: Callable[[Line, str], None]) -> None:
        """Make an empty table; `used` is called as `Line` says."""
        self._used = used
        self.lines: dict[str, Line] = {}
        self.page = 0
        self._shown: Callable[[], object] = lambda: None
        self._headings: dict[str, Any] = {}
        self._shapes = Shapes()
        self._head = head(self._shapes)
        self.back: Any = W.Button(description="Previous page", layout=W.Layout(width="auto"))
        self.further: Any = W.Button(description="Next page", layout=W.Layout(width="auto"))
        self.back.on_click(lambda _: self._turn(-1))
        self.further.on_click(lambda _: self._turn(1))
        self.place: Any = W.Label()
        self.rows: Any = W.VBox(layout=W.Layout(width="100%"))
        self.turning: Any = W.HBox([self.back, self.place, self.further])
        self.widget: Any = W.VBox([self.rows, self.turning], layout=W.Layout(width="100%"))

    def show(self, groups: Sequence[Group], field: str, chosen: Collection[str]) -> None:
        """Show runs.

        Args:
            groups: of runs; one of all where they are not grouped.
            field: by which they are grouped; "" for not at all, and then there are no headings.
            chosen: ids of the runs that are ticked.
        """
        self._shown = lambda: self.show(groups, field, chosen)
        runs = [(group, entry) for group in groups for entry in group.entries]
        last = max(0, -(-len(runs) // PAGE) - 1)
        self.page = min(max(self.page, 0), last)
        page = runs[self.page * PAGE : (self.page + 1) * PAGE]
        before, self.lines = self.lines, {entry.id: self._line(entry, entry.id in chosen) for _, entry in page}
        headings, self._headings = self._headings, {g.value: self._heading(field, g) for g, _ in page if field}
        children: list[Any] = []
        for group, entry in page:
            title = self._headings.get(group.value)
            children += [] if title is None or title in children else [title]
            children.append(self.lines[entry.id].widget)
        # Only what has changed is sent: nobody loses the control they are in.
        self.rows.children = [self._head, *children] if children else []
        for line in [line for name, line in before.items() if name not in self.lines]:
            line.close()
        for title in [title for name, title in headings.items() if name not in self._headings]:
            title.close()
        self.place.value = f"page {self.page + 1} of {last + 1}"
        self.back.disabled, self.further.disabled = self.page == 0, self.page == last
        self.turning.layout.display = "flex" if last else "none"

    def _line(self, entry: Entry, chosen: bool) -> Line:
        line = self.lines.get(entry.id) or Line(entry.id, self._shapes, self._used)
        line.show(entry, chosen)
        return line

    def _heading(self, field: str, group: Group) -> Any:
        title = self._headings.get(group.value) or W.HTML()
        title.value = heading(field, group)
        return title

    def _turn(self, by: int) -> None:
        self.page += by
        self._shown()
