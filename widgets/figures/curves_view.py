"""The curves of several runs: train and validation loss in one plot, and six small ones below with the same axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import anywidget
import traitlets
from plotly.offline import get_plotlyjs

from llm_adapters_lab.results.curves import Curves
from llm_adapters_lab.results.plots.runs import POINTS
from widgets.kit.elements import look, static

MOST = 4
"""Number of runs from which on each has fewer points."""
FEWEST = 200


def series(curves: Curves, live: bool, runs: int, memory: Iterable[Sequence[float]] = ()) -> dict[str, Any]:
    """Return the curves of a run as plain data for `CurvesView`.

    Args:
        curves: of the run.
        live: whether more will come.
        runs: number of runs in the plot, by which points are saved.
        memory: step and bytes of memory in use.
    """
    points = curves.points(max(FEWEST, POINTS * MOST // max(MOST, runs)))
    return {
        **{name: _short(values) for name, values in points.items()},
        "validation": [[step, _digits(loss)] for step, loss in curves.validation],
        "distance": [[step, _digits(value)] for step, value in curves.distances],
        "memory": [[step, _digits(value / 1e9)] for step, value in memory],
        "planned": curves.planned,
        "live": live,
    }


class CurvesView(anywidget.AnyWidget):
    """The curves of runs; axes, smoothing and zoom are the browser's.

    Attributes:
        settled: `series` of runs that do not change any more, by run id.
        live: of those that do.
        looks: id, name and color of each run, in order.
        options: `x` ("step", "tokens" or "seconds"), `log` (whether losses have a logarithmic axis), `smooth` (0..100).
        heights: of the plot of the loss, in pixels, on a narrow and on a wide page.
        words: shown while there are no curves.
    """

    _esm, _css = static("curves.js"), look("monitor.css")
    source = traitlets.Unicode(get_plotlyjs()).tag(sync=True)
    settled = traitlets.Dict().tag(sync=True)
    live = traitlets.Dict().tag(sync=True)
    looks: Any = traitlets.List().tag(sync=True)
    options = traitlets.Dict({"x": "step", "log": False, "smooth": 25}).tag(sync=True)
    heights = traitlets.List([208, 430]).tag(sync=True)
    words = traitlets.Unicode("").tag(sync=True)


def _short(values: Iterable[float]) -> list[float | None]:
    return [_digits(value) for value in values]


def _digits(value: float) -> float | None:
    """Return a number with five digits, which is more than a screen shows; None for what JSON does not know."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
