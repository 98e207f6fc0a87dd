"""What all figures share: type, colours, empty figures, and the table behind a figure.

Backgrounds are transparent and text is of a grey that reads on light and dark pages. Cells that carry text are opaque
and pale instead, so that plotly can set dark or white letters on them, whatever the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape, unescape
from typing import TYPE_CHECKING, Any

from llm_adapters_lab.results.formatting import site_names

if TYPE_CHECKING:
    import plotly.graph_objects as go

INK, GRID, CLEAR = "#76808c", "rgba(128,136,144,0.28)", "rgba(0,0,0,0)"
BLUE, PALE, ORANGE = "#0072B2", "#edf0f3", "#D55E00"
LESS_MORE = [[0, BLUE], [0.5, PALE], [1, ORANGE]]
"""Colour scale around zero; blue and orange are told apart by all colour-blind readers."""
SHARES = [[0, PALE], [0.5, "#a9cfe6"], [0.5, "#2279b5"], [1, "#003f66"]]
"""Colour scale of probabilities and other shares, 0 to 1; its step at one half keeps letters in cells readable."""
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"


def new(title: str, subtitle: str, x: str, y: str, height: int = 400) -> go.Figure:
    """Return an empty figure with its titles and the look of all figures."""
    import plotly.graph_objects as go

    figure = go.Figure()
    style(figure, title, subtitle, x, y, height)
    return figure


def style(figure: go.Figure, title: str, subtitle: str, x: str, y: str, height: int = 400) -> None:
    """Give a figure its title, its axis titles and the look of all figures."""
    small = {"text": subtitle, "font": {"size": 12, "color": INK}}
    figure.update_layout(
        template="none",
        title={"text": title, "x": 0, "xref": "paper", "font": {"size": 16, "weight": 600}, "subtitle": small},
        height=height,
        autosize=True,
        margin={"l": 60, "r": 16, "t": 76, "b": 56},
        font={"family": "system-ui, -apple-system, Segoe UI, sans-serif", "size": 13, "color": INK},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        legend={"orientation": "h", "y": -0.26, "yanchor": "top", "x": 0, "bgcolor": CLEAR},
        hoverlabel={"align": "left"},
        modebar={"bgcolor": CLEAR, "color": INK},
    )
    axis = {"gridcolor": GRID, "zeroline": False, "automargin": True, "linecolor": GRID}
    figure.update_xaxes(title={"text": x, "font": {"size": 13}}, showgrid=False, showline=True, **axis)
    figure.update_yaxes(title={"text": y, "font": {"size": 13}}, **axis)


def say(figure: go.Figure, words: str) -> go.Figure:
    """Write in an empty figure why it is empty."""
    figure.add_annotation(text=words, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def ramp(colour: str) -> list[list[Any]]:
    """Return a colour scale from nearly clear to a colour #rrggbb."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return [[0, f"rgba({red},{green},{blue},0.06)"], [1, f"rgb({red},{green},{blue})"]]


def around(even: float) -> list[list[Any]]:
    """Return a colour scale of shares, 0 to 1, that is pale at an even share: less is blue, more is orange."""
    much = min(2.5 * even, 1.0)
    return [[0, BLUE], [even, PALE], [much, ORANGE], *([[1, "#7a2f00"]] if much < 1 else [])]


def every(count: int, room: int = 16) -> int:
    """Return the distance of ticks at which `count` whole numbers get at most `room` of them."""
    return next(d for d in (1, 2, 5, 10, 20, 50, 100, count) if count <= d * room)


def bar(title: str, **more: Any) -> dict[str, Any]:
    """Return the look of a colour bar; its title has the unit."""
    return {"thickness": 10, "outlinewidth": 0, "nticks": 5, "title": {"text": title, "font": {"size": 12}}} | more


def heatmap(
    figure: go.Figure, x: Any, y: Any, z: Any, colours: Any, unit: str, hover: str, gap: int = 1, **more: Any
) -> None:
    """Add a heat map of values from 0 on to a figure; `hover` is its hover text."""
    look = {"xgap": gap, "ygap": gap, "colorscale": colours, "colorbar": bar(unit)}
    figure.add_heatmap(x=x, y=y, z=z, zmin=0, **look, hovertemplate=f"{hover}<extra></extra>", **more)


def text(words: str) -> str:
    """Escape text for plotly, which knows no entities for quotes; what is nothing but white space becomes visible."""
    seen = words.replace("\n", "↵").replace("\t", "⇥").replace(" ", "\u00a0" if words.strip() else "␣")
    return escape(seen, quote=False)


def short(token: str) -> str:
    """Escape a token for a cell, where at most seven characters of it are shown."""
    return text(token if len(token) <= 7 else token[:6] + "…")


def grid(
    values: Mapping[str, float], roles: Mapping[str, str] | None = None
) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Arrange values of sites by layer and kind of site.

    Args:
        values: by site key.
        roles: of the sites, see `site_names`.

    Returns:
        Names of the columns (kinds of site) and of the rows (layers from 0, then "all" for what is in none), and the
        cells by row; None where there is no such site.
    """
    places = site_names(values, roles)
    cells = {places[key]: value for key, value in values.items()}
    numbers = sorted({layer for layer, _ in cells if layer is not None})
    layers = [*numbers, *([None] if any(layer is None for layer, _ in cells) else [])]
    sites = list(dict.fromkeys(site for _, site in cells))
    rows = ["all" if layer is None else str(layer) for layer in layers]
    return [escape(site) for site in sites], rows, [[cells.get((n, site)) for site in sites] for n in layers]


def data(figure: go.Figure) -> list[dict[str, Any]]:
    """Return what a figure shows as the rows of a table, as plain values.

    Each point, bar or cell is a row; its columns are named after the axes, with their units, and "name" says which
    line or group it belongs to. What is drawn only for the eye is left out.
    """
    rows: list[dict[str, Any]] = []
    for trace in figure.data:
        if trace.hoverinfo == "skip":
            continue
        name = {"name": _plain(trace.name)} if trace.name else {}
        if trace.meta:  # the trace holds its table ready
            lines = [row for line in trace.customdata for row in line] if trace.type == "heatmap" else trace.customdata
            rows += [name | dict(zip(map(_plain, trace.meta), map(_plain, row), strict=True)) for row in lines]
        else:
            x, y = (figure.layout[f"{letter}axis{(trace[f'{letter}axis'] or letter)[1:]}"] for letter in "xy")
            points = _cells(trace) if trace.type == "heatmap" else _points(trace)
            names = [_plain(axis.title.text or letter) for axis, letter in ((x, "x"), (y, "y"))]
            rows += [name | {names[0]: _tick(x, at), names[1]: _tick(y, up)} | more for at, up, more in points]
    return rows


def _points(trace: Any) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    yield from ((x, y, {}) for x, y in zip(trace.x, trace.y, strict=True) if x is not None and y is not None)


def _cells(trace: Any) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    name = _plain(trace.colorbar.title.text or "value")
    for i, line in enumerate(trace.z):
        for j, value in enumerate(line):
            if value is not None:
                words = {} if trace.text is None else {"text": _plain(trace.text[i][j])}
                yield trace.x[j], trace.y[i], {name: _plain(value)} | words


def _tick(axis: Any, value: Any) -> Any:
    names = dict(zip(axis.tickvals or (), axis.ticktext or (), strict=False))
    return _plain(names.get(value, value))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return unescape(re.sub(r"</?(b|i)>", "", value.replace("<br>", " "))).replace("\u00a0", " ")
    return value.item() if hasattr(value, "item") else value
