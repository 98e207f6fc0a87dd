"""Curves: loss, gradient norm and movement of one run, drawn while it grows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go

from llm_adapters_lab.comparison import colour
from llm_adapters_lab.plots.style import INK, style
from widgets.live_figure import LiveFigure

POINTS = 600
"""Points drawn of each curve: every update sends all of them."""
_NAMES = ("single batches", "running mean", "held-out rows", "gradient norm", "distance from the start")


class Curves:
    """Takes events, shows curves.

    Attributes:
        widget: what is shown.
        figure: the figure in it, as of the last `update`.
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
        self.figure = self._figure()
        self.update()

    def add(self, events: Iterable[Mapping[str, Any]]) -> bool:
        """Take events in; return whether there was a point among them. `update` draws them."""
        before = self._count()
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
        return self._count() > before

    def update(self) -> None:
        """Draw all points."""
        for trace, (x, y) in zip(self.figure.data, self.points(), strict=True):
            trace.x, trace.y = x, y
        self.widget.show(self.figure if self._count() else None)

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
