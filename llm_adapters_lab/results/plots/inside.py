"""Figures of heads, units and whole data sets: what each part of an adapter changes, reads and adds."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch

from llm_adapters_lab.inspection.dataset_activity import Activity
from llm_adapters_lab.inspection.units import UnitTokens
from llm_adapters_lab.results.appearance import colour
from llm_adapters_lab.results.plots import style
from llm_adapters_lab.results.plots.style import MONO, bar, every, heatmap, new, ramp, short, text

if TYPE_CHECKING:
    import plotly.graph_objects as go


def layer_heads(
    values: Mapping[int, torch.Tensor], kind: str | None, *, title: str, unit: str, words: str = "", top: float = 0.0
) -> go.Figure:
    """Show a value for each layer and attention head.

    Args:
        values: 0 or above, by layer: (heads,); layers may differ in their number of heads, and some may be missing.
        kind: adapter type, for the colour.
        title: what is seen.
        unit: of the values.
        words: more about them.
        top: the end of the colour scale; default: the largest value.
    """
    widest = max((len(row) for row in values.values()), default=0)
    height = 150 + max(80, min(26 * len(values), 900))
    figure = new(escape(title), escape(words), "head", "layer", height)
    if not widest:
        return style.say(figure, "no layer has attention heads")
    cells = [[*row.tolist(), *[None] * (widest - len(row))] for row in values.values()]
    highest = top or max(value for row in values.values() for value in row.tolist()) or 1.0
    hover = f"layer %{{y}}, head %{{x}}<br>{escape(unit)} %{{z:.4g}}"
    more = {"zmax": highest, "hoverongaps": False}
    rows, heads = [str(layer) for layer in values], list(range(widest))
    heatmap(figure, heads, rows, cells, ramp(colour(kind)), escape(unit), hover, gap=2, **more)
    figure.update_xaxes(dtick=every(widest), showline=False, ticks="")
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, dtick=every(len(rows), 30), ticks="")
    return figure


def unit_tokens(found: UnitTokens, tokens: Mapping[int, str], *, title: str, words: str = "") -> go.Figure:
    """Show the tokens that each unit of a bottleneck reads.

    Args:
        found: from `units.unit_tokens`.
        tokens: every token in it as text, by id.
        title: what is seen.
        words: more about it.

    Returns:
        A row for each unit, those that tell tokens apart best on top: on the left the tokens with the lowest scores
        (blue), on the right those with the highest (orange), the extreme ones outside. Scores are standard deviations
        from the mean over the vocabulary.
    """
    rows = [str(unit) for unit in found.units.tolist()]
    ids = torch.cat([found.low, found.high.flip(1)], dim=1).tolist()
    scores = torch.cat([found.low_scores, found.high_scores.flip(1)], dim=1)
    figure = new(escape(title), escape(words), "", "unit", 130 + 25 * max(len(rows), 2))
    if not rows:
        return style.say(figure, "no units")
    k, most = found.low.shape[1], float(scores.abs().max()) or 1.0
    names = [f"low {i + 1}" for i in range(k)] + [f"high {k - i}" for i in range(k)]
    figure.add_heatmap(
        x=names,
        y=rows,
        z=scores.tolist(),
        zmin=-most,
        zmax=most,
        colorscale=[[0, "#6fb1da"], [0.5, style.PALE], [1, "#f0a06a"]],  # light enough for dark letters
        colorbar=bar("score (σ)"),
        xgap=1,
        ygap=1,
        text=[[short(tokens[token]) for token in row] for row in ids],
        texttemplate="%{text}",
        textfont={"family": MONO, "size": 12},
        customdata=[[text(tokens[token]) for token in row] for row in ids],
        hovertemplate="unit %{y}: <b>%{customdata}</b><br>%{z:+.2f} standard deviations<extra></extra>",
    )
    figure.update_layout(meta={"least": 2 * k * 50 + 150})
    figure.update_xaxes(type="category", visible=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticks="")
    middle: dict[str, Any] = {"xref": "paper", "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False}
    figure.add_annotation(text="← lowest", x=0, xanchor="left", **middle)
    figure.add_annotation(text="highest →", x=1, xanchor="right", **middle)
    return figure


def activity(
    table: Mapping[str, Mapping[str, Activity]],
    token_kind: str,
    kind: str | None,
    *,
    roles: Mapping[str, str] | None = None,
    top: float = 0.0,
) -> go.Figure:
    """Show the mean of ‖c‖ / ‖y‖ over a data set at each site, for tokens of one kind.

    Args:
        table: from `ActivityMoments.table`.
        token_kind: "prompt", "answer" or "control".
        kind: adapter type, for the colour.
        roles: of the sites, see `site_names`.
        top: the end of the colour scale; default: the largest mean.

    Returns:
        A heat map, layers down and kinds of site across, whose table also has the standard deviation and the count.
    """
    found = {key: moments[token_kind] for key, moments in table.items() if token_kind in moments}
    counts = sorted({moment.count for moment in found.values()}) or [0]
    words = f"mean over {counts[-1]:,} tokens"
    title = f"{token_kind.capitalize()} tokens"
    parts = [
        style.grid({key: value(moment) for key, moment in found.items()}, roles)
        for value in map(attrgetter, ("mean", "std", "count"))
    ]
    (sites, layers, means), deviations, numbers = parts[0], parts[1][2], parts[2][2]
    figure = new(title, words, "site", "layer", 150 + max(80, min(26 * len(layers), 900)))
    if not counts[-1]:
        return style.say(figure, f"no {token_kind} tokens")
    details = [
        [[layer, site, m, s, n] for site, m, s, n in zip(sites, *rows, strict=True)]
        for layer, *rows in zip(layers, means, deviations, numbers, strict=True)
    ]
    hover = "%{x}, layer %{y}<br>%{customdata[2]:.4f} ± %{customdata[3]:.4f}, %{customdata[4]:,} tokens"
    highest = top or max((m for row in means for m in row if m is not None and m == m), default=0.0) or 1.0
    more = {"zmax": highest, "hoverongaps": False, "customdata": details}
    heatmap(figure, sites, layers, means, ramp(colour(kind)), "‖c‖ / ‖y‖", hover, gap=2, **more)
    figure.data[0].meta = ["layer", "site", "mean ‖c‖ / ‖y‖", "standard deviation", "tokens"]
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        axis.update(type="category", showgrid=False, ticks="")
    figure.update_xaxes(side="top", showline=False)
    figure.update_yaxes(autorange="reversed", dtick=every(len(layers), 30))
    return figure
