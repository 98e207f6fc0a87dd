"""A figure in a panel: its title, the live figure, the numbers behind it as a table, and the same as a CSV file."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import unescape
from typing import Any

import ipywidgets as W
import plotly.graph_objects as go

from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.formatting import heads
from widgets.figures.figure_view import MAX_ROWS, LiveFigure
from widgets.kit.delivery import Delivery
from widgets.kit.elements import button

HEAD = 60
"""Pixels of a figure's title and subtitle, which are shown above it as text."""
FOOT, SCALE = 14, 88
"""Pixels below a figure without a title of its x axis, and beside one with a colour scale."""


@dataclass(frozen=True)
class Drawing:
    """A figure with the text above it.

    Attributes:
        figure: as plain data for plotly.
        title: what it shows.
        words: how to read it.
        rows: the numbers behind it.
    """

    figure: dict[str, Any]
    title: str
    words: str
    rows: list[dict[str, Any]]


def drawing(figure: go.Figure, title: str | None = None, *, link: str = "") -> Drawing:
    """Take title and subtitle out of a figure of `plots`, so that a page can show them as text.

    Args:
        figure: it is changed.
        title: by default, that of the figure.
        link: "token" or "site": figures with the same one show their hover labels together.
    """
    own, rows = figure.layout.title, plots.data(figure)
    words = _plain(own.subtitle.text)
    title = _plain(own.text) if title is None else title
    margin = {side: figure.layout.margin[side] or 80 for side in ("l", "r", "t", "b")}
    height, above = (figure.layout.height or 400) - HEAD, 12
    for axis in figure.select_xaxes():
        if axis.side == "top" and axis.title.text:  # its names say what they are
            axis.title, height, above = None, height - 24, 2
    named = [axis for axis in figure.select_xaxes() if axis.visible is not False and axis.title.text]
    if not named and not figure.layout.sliders and margin["b"] > FOOT:
        height, margin["b"] = height - (margin["b"] - FOOT), FOOT
    if any(trace.type == "heatmap" or (trace.marker and trace.marker.showscale) for trace in figure.data):
        margin["r"] = max(margin["r"], SCALE)  # fixed, since plotly does not widen it again when the page narrows
    margin["t"] = max(margin["t"] - HEAD, above) if above > 2 else above
    figure.update_layout(title=None, height=height, margin=margin)
    figure.update_xaxes(title_standoff=6)
    figure.update_yaxes(title_standoff=8)
    meta = dict(figure.layout.meta or {})
    if link:
        meta |= {"link": link, "points": bool(figure.data) and figure.data[0].type == "bar"}
    figure.update_layout(meta=meta)
    return Drawing(json.loads(figure.to_json()), title, words, rows)


def share_scale(drawings: Sequence[Drawing]) -> list[Drawing]:
    """Return drawings in which heat maps of one unit have one colour scale, as far as theirs start at zero."""
    tops: dict[str, float] = {}
    for trace in (trace for each in drawings for trace in each.figure.get("data", ()) if _from_zero(trace)):
        unit = trace["colorbar"]["title"]["text"]
        tops[unit] = max(tops.get(unit, 0.0), trace["zmax"])
    result = []
    for each in drawings:
        data = [
            {**trace, "zmax": tops[trace["colorbar"]["title"]["text"]]} if _from_zero(trace) else trace
            for trace in each.figure.get("data", ())
        ]
        result.append(replace(each, figure={**each.figure, "data": data}) if data else each)
    return result


def _from_zero(trace: dict[str, Any]) -> bool:
    return trace["type"] == "heatmap" and trace.get("zmin") == 0 and "zmax" in trace


class FigureCard:
    """A figure (`view`) under its title, with buttons for its numbers (`table`, `save`).

    The same card can show one drawing after another: its figure then changes in place.
    """

    def __init__(self) -> None:
        """Show nothing yet."""
        self.drawing: Drawing | None = None
        self.head, self.rows, self.file = W.HTML(), W.HTML(), Delivery()
        self.view = LiveFigure(layout=W.Layout(width="100%", min_width="0", margin="0", overflow="hidden"))
        self.head.add_class("lab-figure-head")
        self.table = W.ToggleButton(description="Table", tooltip="Show the numbers behind the figure")
        self.table.observe(self._toggled, "value")
        self.save = button("CSV", "Download the numbers behind the figure", click=lambda _: self._save())
        self._frame = W.Box([self.view]).add_class("lab-figure-frame")
        self._tools = W.HBox([self.table, self.save, self.file.widget]).add_class("lab-figure-tools")
        self.widget = W.VBox([self.head, self._frame, self._tools, self.rows]).add_class("lab-figure")

    def show(self, shown: Drawing) -> None:
        """Show a drawing in place of the one before."""
        self.drawing = shown
        self.head.value = el("div", el("b", shown.title), el("span", shown.words) if shown.words else "")
        least = (shown.figure.get("layout", {}).get("meta") or {}).get("least", 0)
        self.view.layout.min_width = f"{least}px"
        self.view.figure = shown.figure
        self.file.clear()
        self._toggled()

    def close(self) -> None:
        """Close all widgets."""
        for widget in (self.head, self.view, self.rows, self.table, self.save, self._frame, self._tools, self.widget):
            widget.close()

    def _toggled(self, change: Any = None) -> None:
        shown = self.drawing is not None and self.table.value
        self.rows.value = numbers(self.drawing.rows) if shown and self.drawing else ""

    def _save(self) -> None:
        if self.drawing is not None:
            name = re.sub(r"\W+", "-", self.drawing.title).strip("-")[:60] or "figure"
            self.file.deliver(f"{name}.csv", as_csv(self.drawing.rows).encode())


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a CSV file; text that a spreadsheet would take for a formula starts with a quote."""
    names, text = heads(rows), io.StringIO()
    writer = csv.writer(text)
    writer.writerow(map(_inert, names))
    for row in rows:
        writer.writerow([_inert(value) if isinstance(value, str) else value for value in map(row.get, names)])
    return text.getvalue()


def _inert(text: str) -> str:
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text


def numbers(rows: Sequence[dict[str, Any]]) -> Html:
    """Return rows as an HTML table; a column of numbers is right-aligned, with the same decimals in every row."""
    names, shown = heads(rows), rows[:MAX_ROWS]
    columns = {name: _column([row.get(name) for row in shown]) for name in names}
    css = {name: "lab-num" if numeric else "" for name, (numeric, _) in columns.items()}
    top = el("tr", *(el("th", name, scope="col", class_=css[name]) for name in names))
    lines = zip(*(cells for _, cells in columns.values()), strict=True)
    body = [
        el("tr", *(el("td", cell, class_=css[name]) for name, cell in zip(names, line, strict=True))) for line in lines
    ]
    more = f"the first {MAX_ROWS:,} of {len(rows):,} rows; CSV has all" if len(rows) > MAX_ROWS else ""
    grid = el("div", el("table", el("thead", top), el("tbody", *body)), class_="scroll", tabindex="0")
    return el("div", grid, more, class_="lab-numbers")


def _column(values: Sequence[Any]) -> tuple[bool, list[str]]:
    """Return whether a column holds numbers, and its cells."""
    known = [value for value in values if value is not None and value == value]
    numeric = bool(known) and all(type(value) in (int, float) for value in known)
    if not numeric:
        return False, ["" if value is None or value != value else str(value) for value in values]
    finite = [abs(value) for value in known if value and math.isfinite(value)]
    whole = all(type(value) is int for value in known)
    decimals = 0 if whole or not finite else min(max(3 - math.floor(math.log10(statistics.median(finite))), 0), 9)
    return True, ["" if value is None or value != value else f"{value:,.{decimals}f}" for value in values]


def _plain(text: str | None) -> str:
    return unescape(re.sub(r"<br>", " ", re.sub(r"</?(b|i)>", "", text or "")))
