"""Pictures: a plotly figure as a part of a page, with a plain SVG for readers whose browser runs no scripts.

Lines, markers, grouped bars and heat maps on linear, logarithmic or named axes; what else a figure has is left out.
Text is escaped by `el` and takes the colour of the page.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from html import unescape
from typing import TYPE_CHECKING, Any

from llm_adapters_lab.markup import Html, el, tabular
from llm_adapters_lab.results import plots

if TYPE_CHECKING:
    import plotly.graph_objects as go

WIDTH, LEFT, RIGHT, TOP, BOTTOM, ROWS = 720, 78, 14, 14, 46, 200
DASH = {"dash": "8 4", "dot": "2 3", "dashdot": "8 3 2 3"}


def figure(shown: go.Figure) -> Html:
    """Return a figure, and what stands in its place without JavaScript: a picture, or where there is none a table."""
    # Only "<" could end the script element; as JSON the escape means the same.
    data = Html(json.dumps(json.loads(shown.to_json()), separators=(",", ":")).replace("<", "\\u003c"))
    title = unescape(shown.layout.title.text)
    space = el("div", role="img", aria_label=title, style=f"min-height: {shown.layout.height}px")
    drawn = el("figure", el("script", data, type="application/json"), space, class_="plot")
    return Html(drawn + el("noscript", el("h3", title), picture(shown) or _rows(plots.data(shown))))


def _rows(rows: Sequence[dict[str, Any]]) -> Html:
    heads = list(dict.fromkeys(head for row in rows for head in row))
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in map(row.get, heads)] for row in rows[:ROWS]]
    return tabular(heads, [el("tr", *(el("td", cell) for cell in line)) for line in cells])


def picture(figure: go.Figure) -> Html | None:
    """Return a figure as an SVG element, or None for one that lives by the text in its cells, bars or ticks."""
    traces = [t for t in figure.data if t.visible is not False]
    texts = any(t.text is not None and t.type != "scatter" for t in traces)
    if not traces or texts or any(t.type == "heatmap" and not isinstance(t.y[0], str) for t in traces):
        return None
    names = [t for t in traces if t.name and t.showlegend is not False and t.type != "heatmap" and t.x]
    rows = [names[i : i + 3] for i in range(0, len(names), 3)]
    height = int(figure.layout.height or 400) - 60
    parts: list[Html] = []
    bars = any(t.type == "bar" for t in traces)
    across = _Scale(figure.layout.xaxis, _places(traces, "x"), LEFT, WIDTH - RIGHT, bars)
    for letter in dict.fromkeys(t.yaxis or "y" for t in traces):
        own = [t for t in traces if (t.yaxis or "y") == letter]
        axis = figure.layout[f"yaxis{letter[1:]}"]
        low, high = axis.domain or (0, 1)
        span = height - BOTTOM - TOP
        floor = [0.0] if bars and letter == "y" else []
        up = _Scale(axis, [*_places(own, "y"), *floor], TOP + span * (1 - low), TOP + span * (1 - high))
        parts += [*_axis_left(up, axis), *(part for t in own for part in _draw(t, own, across, up))]
        if letter == "y":
            parts += _levels(figure, up)
    parts += _axis_below(across, figure.layout.xaxis, height - BOTTOM)
    for i, row in enumerate(rows):
        for j, trace in enumerate(row):
            x, y = LEFT + 215 * j, height + 18 * i + 14
            parts.append(el("rect", **_at(x=x, y=y - 9, width=14, height=10), fill=_colour(trace), class_="ink"))
            parts.append(_text(trace.name, x + 20, y, "start"))
    longest = max((len(words) for words in _names(traces)), default=0)
    more = max(0, int(7.4 * longest) - LEFT + 10)  # room for long names on the left
    box = f"{-more} 0 {WIDTH + more} {height + 18 * len(rows) + 6}"
    title = _plain(figure.layout.title.text)
    return el("svg", *parts, viewBox=box, role="img", aria_label=title, class_="picture", font_size="13")


class _Scale:
    """From values of an axis to places on the picture."""

    def __init__(self, axis: Any, values: Sequence[Any], start: float, end: float, bars: bool = False) -> None:
        self.named = bool(values) and (axis.type == "category" or isinstance(values[0], str))
        self.names = list(dict.fromkeys(values)) if self.named else []
        self.log = axis.type == "log"
        numbers = [self._number(v) for v in values] or [0.0, 1.0]
        low, high = axis.range or (min(numbers), max(numbers))
        if self.named:
            low, high = -0.5, len(self.names) - 0.5
        elif not axis.range and bars:
            low, high = low - 0.5, high + 0.5
        elif not axis.range:
            low = 0.0 if axis.rangemode == "tozero" else low
            high = high + 0.04 * (high - low) or high + 1
        self.low, self.high, self.start, self.end = low, high, start, end
        self.ticks = list(self._ticks(axis))

    def _number(self, value: Any) -> float:
        if self.named:
            return float(self.names.index(value)) if isinstance(value, str) else float(value)
        return math.log10(value) if self.log else float(value)

    def __call__(self, value: Any) -> float:
        share = (self._number(value) - self.low) / ((self.high - self.low) or 1)
        return self.start + share * (self.end - self.start)

    def _ticks(self, axis: Any) -> Iterator[tuple[Any, str]]:
        if self.named:
            step = max(1, -(-len(self.names) // 16)) if abs(self.end - self.start) < 28 * len(self.names) else 1
            yield from ((name, name) for name in self.names[::step])
        elif axis.tickvals:
            shown = axis.ticktext or [f"{v:,.12g}" for v in axis.tickvals]
            inside = [(v, t) for v, t in zip(axis.tickvals, shown, strict=True)]
            yield from ((v, t) for v, t in inside if self.low <= self._number(v) <= self.high)
        else:
            rough = (self.high - self.low) / max(2, abs(self.end - self.start) / 45) or 1.0
            unit = 10.0 ** math.floor(math.log10(rough))
            jump = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
            for i in range(math.ceil(self.low / jump - 1e-9), math.floor(self.high / jump + 1e-9) + 1):
                yield (10 ** (i * jump) if self.log else i * jump), f"{i * jump:.6g}"


def _places(traces: Iterable[Any], letter: str) -> list[Any]:
    return [v for t in traces for v in (t[letter] if t[letter] is not None else ()) if v is not None]


def _names(traces: Iterable[Any]) -> list[str]:
    return [_plain(y) for t in traces if t.type == "heatmap" for y in t.y]


def _draw(trace: Any, traces: Sequence[Any], across: _Scale, up: _Scale) -> Iterator[Html]:
    if trace.type == "heatmap":
        yield from _cells(trace, across, up)
        return
    if trace.type == "bar":
        yield from _bars(trace, traces, across, up)
        return
    points = [None if y is None else (across(x), up(y)) for x, y in zip(trace.x, trace.y, strict=True)]
    stroke = {"stroke": _colour(trace), "fill": "none", "opacity": str(trace.opacity or 1), "class_": "ink"}
    stroke |= {"stroke_width": str(trace.line.width or 2), "stroke_dasharray": DASH.get(trace.line.dash or "", "none")}
    runs: list[list[str]] = [[]]
    for point in points:
        runs = [*runs, []] if point is None else [*runs[:-1], [*runs[-1], f"{point[0]:.1f},{point[1]:.1f}"]]
    if "lines" in (trace.mode or "lines"):
        yield from (el("polyline", points=" ".join(run), **stroke) for run in runs if len(run) > 1)
    for point, words in zip(points, trace.text or [""] * len(points), strict=True):
        if point and "markers" in (trace.mode or ""):
            yield el("circle", **_at(cx=point[0], cy=point[1], r=4.5), fill=_colour(trace))
            yield from [_text(words, point[0] - 9, point[1] + 4, "end")] if words else []


def _bars(trace: Any, traces: Sequence[Any], across: _Scale, up: _Scale) -> Iterator[Html]:
    groups = list(dict.fromkeys(t.offsetgroup for t in traces if t.type == "bar"))
    one = across(1) - across(0)
    width = 0.82 * one / len(groups)
    for i, (x, y) in enumerate(zip(trace.x, trace.y, strict=True)):
        left = across(x) + width * (groups.index(trace.offsetgroup) - len(groups) / 2)
        top, floor = sorted((up(y), up(0)))
        size = _at(x=left + 1, y=top, width=max(width - 2, 1), height=floor - top)
        yield el("rect", **size, fill=_colour(trace))
        if trace.error_y.array is not None:
            ends = up(y + trace.error_y.array[i]), up(y - trace.error_y.arrayminus[i])
            middle = left + width / 2
            yield _line(middle, ends[0], middle, ends[1], "1.2")


def _cells(trace: Any, across: _Scale, up: _Scale) -> Iterator[Html]:
    wide, high = abs(across(trace.x[0]) - across.start) * 2, abs(up(trace.y[0]) - up.start) * 2
    for name, line in zip(trace.y, trace.z, strict=True):
        for column, value in zip(trace.x, line, strict=True):
            if value is not None:
                share = f"{0.06 + 0.94 * min(value / (trace.zmax or 1), 1):.3f}"
                size = _at(x=across(column) - wide / 2 + 1, y=up(name) - high / 2 + 1, width=wide - 2, height=high - 2)
                hint = el("title", f"{column}, {_plain(name)}: {value:.4g}")
                yield el("rect", hint, **size, fill=trace.colorscale[-1][1], fill_opacity=share)


def _levels(figure: go.Figure, up: _Scale) -> Iterator[Html]:
    for shape in figure.layout.shapes:
        if shape.y0 is not None and shape.y0 == shape.y1 and (shape.yref or "y") == "y":
            yield _line(LEFT, up(shape.y0), WIDTH - RIGHT, up(shape.y0), "1.2", dash="6 4")


def _axis_left(up: _Scale, axis: Any) -> Iterator[Html]:
    for value, words in up.ticks:
        if not up.named:
            yield _line(LEFT, up(value), WIDTH - RIGHT, up(value), "1", opacity="0.15")
        yield _text(words, LEFT - 6, up(value) + 4, "end")
    middle = (up.start + up.end) / 2
    if axis.title.text and not up.named:
        turn = {"transform": f"rotate(-90 14 {middle:.0f})"}
        yield _text(axis.title.text, 14, middle, "middle", **turn)


def _axis_below(across: _Scale, axis: Any, floor: float) -> Iterator[Html]:
    for value, words in across.ticks:
        yield _text(words, across(value), floor + 17, "middle")
    if axis.title.text:
        yield _text(axis.title.text, (LEFT + WIDTH - RIGHT) / 2, floor + 36, "middle")


def _colour(trace: Any) -> str:
    return trace.marker.color if trace.type == "bar" else trace.line.color or trace.marker.color or "currentColor"


def _line(x1: float, y1: float, x2: float, y2: float, width: str, opacity: str = "1", dash: str = "none") -> Html:
    where = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    return el("line", **where, stroke="currentColor", stroke_width=width, opacity=opacity, stroke_dasharray=dash)


def _text(words: str, x: float, y: float, anchor: str, **more: str) -> Html:
    return el("text", _plain(words), **_at(x=x, y=y), text_anchor=anchor, fill="currentColor", **more)


def _at(**places: float) -> dict[str, str]:
    return {name: f"{place:.1f}" for name, place in places.items()}


def _plain(words: str) -> str:
    return unescape(re.sub(r"</?(b|i)>", "", words.replace("<br>", " ")))
