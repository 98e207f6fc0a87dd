"""How a mixture of experts distributes tokens, before and after, and an adapter its members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import torch

from llm_adapters_lab.inspection.routing import ExpertLoad
from llm_adapters_lab.results.formatting import percent, place, site_name, site_names
from llm_adapters_lab.results.plots.style import LESS_MORE, around, every, heatmap, new, text

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_LABELLED = 16
"""Maximum number of experts whose cells hold their share as text."""


def expert_loads(before: Mapping[str, ExpertLoad], after: Mapping[str, ExpertLoad], kind: str | None) -> go.Figure:
    """Show the load of the experts of each layer without and with an adapter.

    Args:
        before: from `routing.expert_loads`, without the adapter.
        after: the same with it.
        kind: adapter type, for the name.

    Returns:
        Two heat maps over layers and experts: the share of an expert relative to an even share; 1 is balanced.
    """
    name, widest = escape(kind or "base"), max(len(load.share) for load in before.values())
    numbers = [load.layer for load in before.values()]
    rows = [
        str(load.layer) if numbers.count(load.layer) == 1 else escape(f"{load.layer} {place(path)[1]}")
        for path, load in before.items()
    ]
    tokens = max(load.tokens for load in before.values())
    small = widest <= MOST_LABELLED
    words = f"share of the assignments of {tokens:,} tokens{', in percent' * small}; colour: relative to an even share"
    height = 150 + max(160, min(34 * len(rows), 900))
    figure = new(f"Expert load: {name}", words, "expert", "layer", height)
    second = figure.layout.xaxis.to_plotly_json() | {"domain": [0.53, 1], "anchor": "y"}
    figure.update_layout(xaxis={"domain": [0, 0.47]}, xaxis2=second, margin={"t": 104})
    for loads, label, axis in ((before, "without the adapter", "x"), (after, f"with {name}", "x2")):
        shares = [load.share.tolist() for load in loads.values()]
        ratios = [[share * len(own) for share in own] + [None] * (widest - len(own)) for own in shares]
        labelled = [[f"{100 * share:.0f}" for share in own] + [""] * (widest - len(own)) for own in shares]
        details = [_details(load, widest) for load in loads.values()]
        labels = {"text": labelled, "texttemplate": "%{text}"} if small else {}
        hover = f"{label}<br>layer %{{y}}, expert %{{x}}<br>%{{customdata}}<br>%{{z:.2f}} times an even share"
        more = {"name": label, "customdata": details, "xaxis": axis, "showscale": axis == "x2", "zmax": 2} | labels
        heatmap(figure, list(range(widest)), rows, ratios, LESS_MORE, "× even", hover, int(small), **more)
        middle = {"x": 0.235 if axis == "x" else 0.765, "y": 1, "yshift": 4, "xanchor": "center", "yanchor": "bottom"}
        figure.add_annotation(text=f"<b>{label}</b>", xref="paper", yref="paper", showarrow=False, **middle)
    figure.update_xaxes(dtick=every(widest))
    figure.update_yaxes(type="category", autorange="reversed", dtick=every(len(rows), 24), showgrid=False)
    return figure


def member_weights(
    weights: Mapping[str, torch.Tensor],
    tokens: Sequence[str],
    names: Sequence[str],
    kind: str | None = None,
    *,
    title: str = "",
) -> go.Figure:
    """Show which members an adapter listens to, token by token.

    Args:
        weights: by site, (T, members), from `inspection.member_weights`.
        tokens: as text, in reading order.
        names: of the members.
        kind: adapter type, for the name.
        title: what is seen; default: the adapter type.

    Returns:
        A heat map over members and tokens of the mean over the sites; the weights of a token sum to 1, and equal
        weights are pale.
    """
    mean = torch.stack(list(weights.values())).mean(0)
    sites = f", mean of {len(weights)} sites" if len(weights) > 1 else ""
    words = f"weight of each member{sites}; a column sums to 1, an even share is pale"
    height = 150 + max(120, 34 * len(names))
    figure = new(escape(title or f"Weights of the members: {kind or 'adapter'}"), words, "token", "member", height)
    labels = [f"{number} {text(token)}" for number, token in enumerate(tokens)]
    hover = "%{y}<br>token %{x}<br>weight %{z:.2f}"
    scale, rows = around(1 / len(names)), [escape(name) for name in names]
    heatmap(figure, labels, rows, mean.T.tolist(), scale, "weight", hover, zmax=1)
    figure.update_layout(meta={"least": 240 + 15 * len(tokens)})
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticks="")
    figure.update_xaxes(type="category", dtick=1, tickangle=-90, ticks="")
    return figure


def member_weights_by_site(
    weights: Mapping[str, torch.Tensor],
    names: Sequence[str],
    kind: str | None = None,
    *,
    roles: Mapping[str, str] | None = None,
) -> go.Figure:
    """Show which members an adapter listens to at each site, on average over a text.

    Args:
        weights: by site, (T, members), from `inspection.member_weights`.
        names: of the members.
        kind: adapter type, for the name.
        roles: of the sites, see `site_names`.

    Returns:
        A heat map over sites and members; the weights of a site sum to 1.
    """
    places = site_names(weights, roles)
    sites = [escape(site_name(*places[key])) for key in weights]
    means = [own.mean(0).tolist() for own in weights.values()]
    height = 150 + max(120, min(26 * len(sites), 900))
    words = "weight of each member, mean over the tokens; a row sums to 1, an even share is pale"
    figure = new(f"Weights of the members by site: {escape(kind or 'adapter')}", words, "member", "site", height)
    numbers = "%{z:.2f}" if len(names) <= MOST_LABELLED else None
    hover, columns = "%{y}<br>%{x}<br>weight %{z:.3f}", [escape(name) for name in names]
    scale = around(1 / len(names))
    heatmap(figure, columns, sites, means, scale, "weight", hover, zmax=1, texttemplate=numbers)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticks="", dtick=every(len(sites), 30))
    figure.update_xaxes(type="category", ticks="")
    return figure


def _details(load: ExpertLoad, widest: int) -> list[str]:
    """Return share and mean weight of each expert in words, "" where there is none."""
    weights = [None] * len(load.share) if load.weight is None else load.weight.tolist()
    words = [
        f"{percent(share)} of the assignments"
        + ("" if weight is None or weight != weight else f", mean weight {weight:.3f}")
        for share, weight in zip(load.share.tolist(), weights, strict=True)
    ]
    return words + [""] * (widest - len(words))
