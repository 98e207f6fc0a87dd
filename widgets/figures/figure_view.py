"""A figure with, on request, the numbers behind it as a table."""

from __future__ import annotations

import json
from html import unescape
from typing import TYPE_CHECKING, Any

import ipywidgets as W

from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.plots import CONFIG


def picture(figure: Any) -> dict[str, Any]:
    """Return a plotly figure as the output of a cell, for `Output.outputs`."""
    words = f"figure: {unescape(figure.layout.title.text or '')}"
    data = {"application/vnd.plotly.v1+json": json.loads(figure.to_json()) | {"config": CONFIG}, "text/plain": words}
    return {"output_type": "display_data", "data": data, "metadata": {}}


if TYPE_CHECKING:
    import plotly.graph_objects as go

LEAST = 460
"""Pixels of a figure's width; in a narrower column it scrolls by itself, as its title does not wrap."""
ROWS = 1000
"""A table has no more."""
_CELL = "padding: 1px 10px 1px 0; text-align: left; white-space: pre-wrap; overflow-wrap: anywhere"
_BOX = "max-height: 24em; overflow: auto; line-height: 1.4; font-variant-numeric: tabular-nums"


class Shown:
    """Figure and table.

    Attributes:
        figure: what is drawn.
        table: button that shows the numbers.
        widget: all of it.
    """

    def __init__(self, figure: go.Figure) -> None:
        """Show a figure of `plots`."""
        self.figure = figure
        least = (figure.layout.meta or {}).get("least", LEAST)
        self.picture = W.Output(layout=W.Layout(width="100%", min_width=f"{least}px"))
        self.picture.outputs = (picture(figure),)
        self.table: Any = W.ToggleButton(description="Table", tooltip="The numbers behind the figure")
        self.rows: Any = W.HTML(layout=W.Layout(width="100%"))
        self.table.observe(self._toggled, "value")
        self._frame: Any = W.Box([self.picture], layout=W.Layout(overflow="auto"))
        self.widget: Any = W.VBox(
            [self._frame, self.table, self.rows], layout=W.Layout(width="100%", margin="0 0 16px")
        )

    def close(self) -> None:
        """Be gone."""
        for widget in (self.picture, self._frame, self.table, self.rows, self.widget):
            widget.close()

    def _toggled(self, change: Any) -> None:
        self.rows.value = _table(plots.data(self.figure)) if change["new"] else ""


def _table(rows: list[dict[str, Any]]) -> Html:
    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = [el("tr", *(el("td", _word(row.get(head)), style=_CELL) for head in heads)) for row in rows[:ROWS]]
    top = el("tr", *(el("th", head, scope="col", style=_CELL) for head in heads))
    more = el("div", f"the first {ROWS} of {len(rows)} rows") if len(rows) > ROWS else el("span")
    return el("div", el("table", el("thead", top), el("tbody", *lines)), more, style=_BOX, tabindex="0")


def _word(value: Any) -> str:
    if value is None or value != value:  # not a number: there is none
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
