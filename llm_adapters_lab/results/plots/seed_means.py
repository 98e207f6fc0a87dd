"""Figures of seed groups: the mean of each with its interval and its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from llm_adapters_lab.results.appearance import colour
from llm_adapters_lab.results.formatting import interval
from llm_adapters_lab.results.plots.style import GRID, new, say
from llm_adapters_lab.results.seed_groups import Group

if TYPE_CHECKING:
    import plotly.graph_objects as go


def means(found: Sequence[Group]) -> go.Figure:
    """Show the mean accuracy of each group over its datasets, the first group on top.

    Args:
        found: from `seed_groups.groups`.

    Returns:
        A row for each group: the mean over seeds with its 95% interval, and the seeds as small rings.
    """
    words, height = "whiskers: 95 % interval over the questions; rings: each seed", 170 + 40 * len(found)
    figure = new("Mean accuracy over the datasets", words, "mean accuracy (%)", "", height)
    if not found:
        return say(figure, "nothing was scored")
    for place, group in enumerate(found):
        adapter = group.runs[0].spec.adapter
        shade, label = colour(adapter.type if adapter else None), escape(group.name)
        ends_named = f"95 % interval {interval(group.low, group.high)}"
        ends = {"array": [100 * (group.high - group.mean)], "arrayminus": [100 * (group.mean - group.low)]}
        figure.add_scatter(
            x=[100 * group.mean],
            y=[place],
            mode="markers",
            name=label,
            showlegend=False,
            marker={"color": shade, "size": 12},
            error_x={**ends, "thickness": 2, "width": 5},
            hovertemplate=f"<b>{label}</b><br>%{{x:.1f}} %<br>{ends_named}<extra></extra>",
        )
        figure.add_scatter(
            x=[100 * mean for mean in group.means],
            y=[place + 0.28] * len(group.means),
            mode="markers",
            name=f"{label}, seeds",
            showlegend=False,
            marker={"color": shade, "size": 7, "symbol": "circle-open", "line": {"width": 1.6}},
            hovertemplate=[f"{label}, seed {seed}<br>%{{x:.1f}} %<extra></extra>" for seed in group.seeds],
        )
    names, places = [escape(group.name) for group in found], list(range(len(found)))
    figure.update_xaxes(range=[0, 100], showgrid=True, gridcolor=GRID)
    figure.update_yaxes(tickvals=places, ticktext=names, range=[len(found) - 0.4, -0.6], showgrid=False)
    return figure
