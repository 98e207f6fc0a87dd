"""Figures of adapters with a part for each group: which skills a group takes, and which groups are alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch

from llm_adapters_lab.inspection.group_parts import GroupEmbeddings
from llm_adapters_lab.results.appearance import colour
from llm_adapters_lab.results.entry_groups import without_beginning
from llm_adapters_lab.results.formatting import percent
from llm_adapters_lab.results.plots.style import GRID, LESS_MORE, around, every, heatmap, new

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_LABELLED = 12
"""Maximum number of groups whose similarities are written into the cells."""
MOST_NAMED = 24
"""Maximum number of groups whose names stand on the map."""
NARROWEST = 34
"""Pixels of a cell that has its number as text."""


def group_weights(
    panels: Mapping[str, torch.Tensor], groups: Sequence[str], kind: str | None, *, title: str = "", words: str = ""
) -> go.Figure:
    """Show how much of each skill of an inventory the groups take.

    Args:
        panels: (groups, skills) each, from `inspection.group_weights`, by what is written above: a site or a block.
        groups: names of the groups.
        kind: adapter type, for the name.
        title: what is seen; default: the adapter type.
        words: more about it.

    Returns:
        A heat map over skills and groups for each panel, side by side; equal weights are pale.
    """
    names, count = without_beginning(groups, "-"), len(panels)
    skills = max(panel.shape[1] for panel in panels.values())
    height = 150 + max(120, min(30 * len(names), 900))
    figure = new(escape(title or f"Skills: {kind or 'adapter'}"), escape(words), "skill", "group", height)
    axis, gap = figure.layout.xaxis.to_plotly_json(), 0.1 / count
    labelled, scale = count * skills <= MOST_LABELLED, around(1 / skills)
    for number, (label, panel) in enumerate(panels.items()):
        name = "xaxis" + str(number + 1) * (number > 0)
        ends = [number / count + gap * (number > 0), (number + 1) / count - gap * (number < count - 1)]
        figure.update_layout({name: axis | {"domain": ends, "dtick": every(skills, 8), "anchor": "y", "tickangle": 0}})
        hover = f"%{{y}}<br>{escape(label)}, skill %{{x}}<br>weight %{{z:.3f}}"
        more: dict[str, Any] = {"zmax": 1, "name": escape(label), "xaxis": name.replace("axis", "")}
        more |= {"showscale": number == count - 1, "texttemplate": "%{z:.2f}" if labelled else None}
        numbers = list(range(panel.shape[1]))
        heatmap(figure, numbers, [escape(each) for each in names], panel.tolist(), scale, "weight", hover, **more)
        middle = {"x": sum(ends) / 2, "y": 1, "yshift": 4, "xanchor": "center", "yanchor": "bottom"}
        figure.add_annotation(text=f"<b>{escape(label)}</b>", xref="paper", yref="paper", showarrow=False, **middle)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, dtick=every(len(names), 30), ticks="")
    figure.update_yaxes(title={"standoff": 12})
    figure.update_layout(margin={"t": 108}, meta={"least": 260 + count * skills * (NARROWEST if labelled else 14)})
    return figure


def group_similarity(found: GroupEmbeddings, kind: str | None, *, title: str = "") -> go.Figure:
    """Show how alike the embeddings of groups are.

    Args:
        found: from `inspection.group_embeddings`.
        kind: adapter type, for the name.
        title: what is compared; default: the adapter type.

    Returns:
        A heat map of the cosine of each pair, -1 to 1.
    """
    names, places = [escape(name) for name in without_beginning(found.names, "-")], list(range(len(found.names)))
    chance = 1 / math.sqrt(found.vectors.shape[1])
    words = f"cosine of the angle between the vectors of two groups; of random ones about ± {chance:.2f}"
    height = 160 + 30 * min(len(names), 30) + 7 * min(max(map(len, names)), 24)  # names may stand upright
    figure = new(escape(title or f"Similarity of groups: {kind or 'adapter'}"), words, "", "", height)
    pairs = [[f"{a}<br>{b}" for b in names] for a in names]
    labels = {"texttemplate": "%{z:.2f}"} if len(names) <= MOST_LABELLED else {}
    heatmap(
        figure,
        places,
        places,
        found.cosine().tolist(),
        LESS_MORE,
        "cosine",
        "%{customdata}<br>cosine %{z:.3f}",
        2,
        **{"zmax": 1, "customdata": pairs} | labels,
    )
    figure.data[0].zmin = -1
    ticks = {"tickvals": places, "ticktext": names, "showgrid": False, "showline": False, "ticks": ""}
    figure.update_xaxes(**ticks)
    figure.update_yaxes(**ticks, autorange="reversed")
    return figure


def group_map(found: GroupEmbeddings, kind: str | None, *, title: str = "") -> go.Figure:
    """Show the embeddings of groups as points in the plane in which they differ most.

    Args:
        found: from `inspection.group_embeddings`.
        kind: adapter type, for name and colour.
        title: what is seen; default: the adapter type.
    """
    at, shares = found.plane()
    x, y = at.T.tolist()
    names = [escape(name) for name in without_beginning(found.names, "-")]
    words = f"the two directions in which they differ most hold {percent(float(shares.sum()))} of the variance"
    first, second = (f"component {number} ({percent(float(share))})" for number, share in enumerate(shares, 1))
    figure = new(escape(title or f"Map of groups: {kind or 'adapter'}"), words, first, second, 440)
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers+text" if len(names) <= MOST_NAMED else "markers",
        text=names,
        textposition="top center",
        marker={"size": 11, "color": colour(kind)},
        cliponaxis=False,
        hovertemplate="%{text}<br>%{x:.3g}, %{y:.3g}<extra></extra>",
    )
    figure.data[0].customdata = [[escape(name), *point] for name, point in zip(found.names, at.tolist(), strict=True)]
    figure.data[0].meta = ["group", "component 1", "component 2"]
    room = 0.18 * (max(x) - min(x)) or 1.0  # for the names
    figure.update_xaxes(showgrid=True, zeroline=True, zerolinecolor=GRID, range=[min(x) - room, max(x) + room])
    figure.update_yaxes(zeroline=True, zerolinecolor=GRID, scaleanchor="x")
    return figure
