"""Curves: loss, gradient norm and movement of one run, drawn while it grows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go

from llm_adapters_lab.results.appearance import colour
from llm_adapters_lab.results.plots.style import INK, style
from widgets.figures.live_figure import LiveFigure

POINTS = 600
"""Points drawn of each curve: every update sends all of them."""
_NAMES = ("single batches", "running mean", "held-out rows", "gradient norm", "distance from the start")


class Curves:
    """Takes events, shows curves.

    Attributes:
        widget: what is shown, with a figure as of the last `update`.
    """

    def __init__(self, kind: str | None = None) -> None:
        """Make an empty figure.

        Args:
            kind: adapter type, which has its colour.
        """
        self.widget = LiveFigure(layout={"width": "100%"})
        self.clear(kind)

    def clear(self, kind: str | None) -> None:
        """Forget all points."""
        self.kind = kind
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._sums = [0.0]
        self._held_out: list[tuple[int, float]] = []
        self._moved: list[tuple[int, float]] = []
        self._empty, self._drawn = self._figure().to_plotly_json(), -1
        self.update()

    def add(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take events in; `update` draws them."""
        for event in events:
            if event["event"] == "Step":
                self._steps.append(event["step"])
                self._losses.append(event["loss"])
                self._norms.append(event["gradient_norm"])
                self._sums.append(self._sums[-1] + event["loss"])
            elif event["event"] == "Validated":
                self._held_out.append((event["step"], event["loss"]))
            elif event["event"] == "Norms":
                self._moved.append((event["step"], math.hypot(*event["norms"].values())))

    def update(self, all_of_them: bool = True) -> None:
        """Draw all points, or, without `all_of_them`, wait until there are so many new ones that one can see it."""
        count = self._count()
        new = count - self._drawn
        if new == 0 or (not all_of_them and 0 < new * POINTS < count):
            return
        self._drawn = count
        # As plain data: a figure object checks every point again, which costs more than all the rest of a look.
        traces = zip(self._empty["data"], self.points(), strict=True)
        data = [{**trace, "x": x, "y": y} for trace, (x, y) in traces]
        self.widget.figure = {"data": data, "layout": self._empty["layout"]} if count else {}

    def points(self) -> list[tuple[list[int], list[float]]]:
        """Return x and y of each trace: batches, running mean, held-out rows, gradient norm, distance."""
        count = len(self._steps)
        chosen = [*range(0, count - 1, math.ceil(count / POINTS)), count - 1] if count else []
        steps = [self._steps[i] for i in chosen]
        # The window shrinks towards both ends, so that the mean neither lags nor leaves the first and last value.
        spans = [(i, min(count // 40, i, count - 1 - i)) for i in chosen]
        means = [(self._sums[i + h + 1] - self._sums[i - h]) / (2 * h + 1) for i, h in spans]
        return [
            (steps, [self._losses[i] for i in chosen]),
            (steps, means),
            _thinned(self._held_out),
            (steps, [self._norms[i] for i in chosen]),
            _thinned(self._moved),
        ]

    def _count(self) -> int:
        return len(self._steps) + len(self._held_out) + len(self._moved)

    def _figure(self) -> go.Figure:
        hue = colour(self.kind)
        looks: list[dict[str, Any]] = [
            {"mode": "lines", "line": {"color": hue, "width": 1}, "opacity": 0.35, "hoverinfo": "skip"},
            {"mode": "lines", "line": {"color": hue, "width": 2.2}},
            {"mode": "lines+markers", "line": {"color": hue, "width": 1, "dash": "dot"}, "marker": {"size": 8}},
            {"mode": "lines", "line": {"color": INK, "width": 1}, "yaxis": "y2"},
            {"mode": "lines+markers", "line": {"color": hue, "width": 1, "dash": "dash"}, "yaxis": "y2"},
        ]
        figure = go.Figure([go.Scatter(name=name, **look) for name, look in zip(_NAMES, looks, strict=True)])
        style(figure, "Training", "above: loss; below: norms", "update step", "loss (nats per label token)", 440)
        figure.update_layout(
            uirevision="kept",  # a part that was enlarged stays so
            yaxis={"domain": [0.34, 1], "rangemode": "tozero"},
            yaxis2={
                **figure.layout.yaxis.to_plotly_json(),
                "domain": [0, 0.26],
                "nticks": 4,
                "title": {"text": "norm", "font": {"size": 13}},
            },
            xaxis_anchor="y2",
        )
        return figure


def _thinned(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    kept = points[:: max(1, math.ceil(len(points) / POINTS))]
    if points and kept[-1] is not points[-1]:
        kept.append(points[-1])
    return [x for x, _ in kept], [y for _, y in kept]
