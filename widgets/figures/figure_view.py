"""Plotly figures in a panel: as the output of a cell, with a table of its numbers, and as a live figure.

Plotly's own figure widget sends its data only once, so that a slow or reloaded page misses it, and sends plotly's
source again with every figure. In `LiveFigure`, figure and source are synced traits instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import unescape
from typing import Any

import anywidget
import ipywidgets as W
import plotly.graph_objects as go
import traitlets
from plotly.offline import get_plotlyjs

from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.formatting import cell, heads
from widgets.kit.elements import static

MIN_WIDTH = 460
"""Minimum width in pixels. In a narrower column the figure scrolls, since its title does not wrap."""
MAX_ROWS = 1000
"""Maximum number of rows of a table."""


def figure_output(figure: go.Figure) -> dict[str, Any]:
    """Return a plotly figure as the output of a cell, for `Output.outputs`."""
    content = json.loads(figure.to_json()) | {"config": plots.CONFIG}
    title = f"figure: {unescape(figure.layout.title.text or '')}"
    data = {"application/vnd.plotly.v1+json": content, "text/plain": title}
    return {"output_type": "display_data", "data": data, "metadata": {}}


class FigureView:
    """A figure (`output`) with a button (`table`) that shows its numbers (`rows`)."""

    def __init__(self, figure: go.Figure) -> None:
        """Show a figure of `plots`."""
        self.figure = figure
        least = (figure.layout.meta or {}).get("least", MIN_WIDTH)
        self.output = W.Output(layout=W.Layout(min_width=f"{least}px", margin="0"))
        self.output.outputs = (figure_output(figure),)
        self.table = W.ToggleButton(description="Table", tooltip="Show the numbers behind the figure")
        self.table.observe(self._toggled, "value")
        self.rows, self._frame = W.HTML(), W.Box([self.output], layout=W.Layout(overflow="auto"))
        self.widget = W.VBox([self._frame, self.table, self.rows], layout=W.Layout(width="100%", margin="0 0 16px"))

    def close(self) -> None:
        """Close all widgets."""
        for widget in (self.output, self._frame, self.table, self.rows, self.widget):
            widget.close()

    def _toggled(self, change: Any) -> None:
        self.rows.value = _numbers(plots.data(self.figure)) if change["new"] else ""


def _numbers(rows: list[dict[str, Any]]) -> Html:
    shown = [{head: _number(value) for head, value in row.items()} for row in rows[:MAX_ROWS]]
    more = f"the first {MAX_ROWS} of {len(rows)} rows" if len(rows) > MAX_ROWS else ""
    return el("div", table(shown), more, class_="lab-numbers")


def _number(value: Any) -> str:
    if value is None or value != value:  # missing, or not a number
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Mapping[str, Any]]) -> Html:
    """Return rows as an HTML table that scrolls; the first column names the row. `Html` cells are kept as markup."""
    names, lines = heads(rows), []
    for row in rows:
        first, *rest = (value if isinstance(value, str) else cell(value) for value in map(row.get, names))
        lines.append(el("tr", el("th", first, scope="row"), *(el("td", text) for text in rest)))
    top = el("tr", *(el("th", name, scope="col") for name in names))
    return el("div", el("table", el("thead", top), el("tbody", *lines)), class_="scroll", tabindex="0")


class LiveFigure(anywidget.AnyWidget):
    """A plotly figure whose plain data, `figure`, may change at any time; {} shows nothing.

    Plotly's source is a synced trait and not part of the module, because a module must load within two seconds.
    """

    _esm = static("live_figure.js")
    source = traitlets.Unicode(get_plotlyjs()).tag(sync=True)
    figure = traitlets.Dict().tag(sync=True)
