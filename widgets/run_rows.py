"""The lines of the table of runs: one with its controls for each run, a heading for each group."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ipywidgets as W

from llm_adapters_lab.archive import Entry, Group, words
from llm_adapters_lab.markup import Html, el
from widgets.run_panel import SIGNS

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
