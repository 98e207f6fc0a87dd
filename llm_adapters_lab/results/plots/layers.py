"""Figures by layer: what each layer's part of the adapter is good for, how the stream moves, and where it all sits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.inspection.ablations import Ablation
from llm_adapters_lab.results.appearance import BASE, colour
from llm_adapters_lab.results.plots.style import GRID, INK, every, new, ramp, say

if TYPE_CHECKING:
    import plotly.graph_objects as go


def ablation_bars(found: Ablation, kind: str | None, *, unit: str = "nats per token", score: str = "loss") -> go.Figure:
    """Show what changes when the adapter of one layer is switched off.

    Args:
        found: from `ablations.ablation`.
        kind: adapter type, for name and colour.
        unit: of the score.
        score: what it is called.

    Returns:
        A bar for each layer: the score without that layer's part less the score of the whole adapter.
    """
    whole, name, score = found.base - found.full, escape(kind or "base"), escape(score)
    bars = [value - found.full for value in found.without.values()]
    words = f"{score} with the whole adapter {found.full:.3f}, without any of it {found.base:.3f}"
    figure = new(f"One layer switched off: {name}", words, "layer", f"change of {score} ({escape(unit)})")
    figure.add_bar(
        x=list(found.without),
        y=bars,
        marker={"color": colour(kind)},
        name=name,
        showlegend=False,
        hovertemplate=f"without layer %{{x}}<br>{score} %{{y:+.4f}}<extra></extra>",
    )
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    if abs(whole) <= 3 * max(map(abs, bars), default=0):
        line = {"color": BASE, "dash": "dash", "width": 1.5}
        figure.add_hline(y=whole, line=line, annotation_text="whole adapter off", annotation_position="top left")
    figure.update_layout(bargap=0.25)
    figure.update_xaxes(dtick=every(len(bars)))
    return figure


def stream_similarity(cosine: torch.Tensor, cka: torch.Tensor, kind: str | None) -> go.Figure:
    """Show how far the adapter turns the residual stream away from that of the base.

    Args:
        cosine: of the stream with and without the adapter, (layers + 1, tokens).
        cka: linear CKA of the two, (layers + 1,).
        kind: adapter type, for name and colour.

    Returns:
        Lines over the layers: cosine as mean over the tokens with a band from least to largest, and CKA dashed.
    """
    title = f"The stream with and without the adapter: {escape(kind or 'base')}"
    figure = new(title, "1: unchanged; band: least to largest cosine among the tokens", "after layer", "similarity")
    at, shade = list(range(len(cosine))), colour(kind)
    low, high = cosine.min(dim=1).values.tolist(), cosine.max(dim=1).values.tolist()
    figure.add_scatter(
        x=[*at, *at[::-1]],
        y=[*high, *low[::-1]],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=ramp(shade)[1][1].replace("rgb(", "rgba(").replace(")", ",0.2)"),
        hoverinfo="skip",
        showlegend=False,
    )
    after = ["input", *map(str, at[:-1])]
    means, similar = cosine.mean(dim=1).tolist(), cka.tolist()
    for label, values, dash in (("cosine, mean over tokens", means, "solid"), ("linear CKA", similar, "dash")):
        line = {"color": shade, "width": 2.2, "dash": dash}
        hover = f"{label}<br>after layer %{{text}}: %{{y:.4f}}<extra></extra>"
        figure.add_scatter(x=at, y=values, text=after, mode="lines", name=label, line=line, hovertemplate=hover)
    marks = [0, *range(1, len(at), every(len(at), 12))]
    figure.update_xaxes(tickvals=marks, ticktext=["input", *(str(i - 1) for i in marks[1:])])
    return figure


def interpolation_curve(
    points: Sequence[tuple[float, float]], kind: str | None, *, unit: str = "nats per token", score: str = "loss"
) -> go.Figure:
    """Show a score over how much of the adapter is added.

    Args:
        points: (λ, score), from `ablations.interpolation`.
        kind: adapter type, for name and colour.
        unit: of the score.
        score: what it is called.
    """
    name, score = escape(kind or "base"), escape(score)
    words = "its contribution at every site multiplied; 0: base, 1: as trained"
    figure = new(f"More or less of the adapter: {name}", words, "factor λ", f"{score} ({escape(unit)})")
    if not points:
        return say(figure, "no factors were tried")
    for at in {0, 1} & {round(scale, 6) for scale, _ in points}:
        figure.add_vline(x=at, line={"color": GRID, "width": 1.5})
    figure.add_scatter(
        x=[scale for scale, _ in points],
        y=[value for _, value in points],
        mode="lines+markers",
        line={"color": colour(kind), "width": 2.2},
        marker={"size": 6},
        name=name,
        showlegend=False,
        hovertemplate=f"λ = %{{x}}<br>{score} %{{y:.4f}}<extra></extra>",
    )
    return figure


def placement(anatomy: Anatomy, sites: Iterable[Site], kind: str | None) -> go.Figure:
    """Draw the layers of a model and mark where an adapter sits.

    Args:
        anatomy: of the model.
        sites: of the adapter, as in `Injection.sites.values()`; none for one of the whole model.
        kind: adapter type, for name and colour.

    Returns:
        A row for each layer, input at the bottom: squares are projections in order of execution, filled where adapted;
        crossed circles are where attention and MLP add to the residual stream, which runs behind them; diamonds are
        adapters at the input or output of a whole sublayer, or at other modules.
    """
    taken = {_slot(anatomy, site): site for site in sites}
    known = {_slot(anatomy, site): site for site in anatomy.projections}
    columns, ends = _columns(anatomy, {slot for _, slot in taken})
    layers, roles = len(anatomy.layers), {slot for _, slot in known}
    rows = range(layers + any(layer == layers for layer, _ in taken))
    names = [*map(str, range(layers)), "outside"][: len(rows)]
    size = max(7.0, min(18.0, 400 / layers))
    words = (
        "filled: adapted; ⊕: added to the stream" if taken else "acts on the whole model, at no place within a layer"
    )
    title, height = f"Where it sits: {escape(kind or 'base')}", int(192 + (size + 8) * len(rows))
    figure = new(title, words, "", "layer", height)
    for row in range(layers):
        figure.add_shape(type="line", x0=-0.7, x1=len(columns) - 0.3, y0=row, y1=row, line={"color": GRID, "width": 2})
    filled = {"color": colour(kind), "line": {"color": INK, "width": 0.5}}
    empty = {"color": "rgba(128,136,144,0.22)", "line": {"color": INK, "width": 1}}
    for label, points, marker in (
        ("not adapted", {at: s for at, s in known.items() if at not in taken}, {"symbol": "square"} | empty),
        ("adapted projection", {at: s for at, s in taken.items() if at[1] in roles}, {"symbol": "square"} | filled),
        (
            "adapted sublayer or module",
            {at: s for at, s in taken.items() if at[1] not in roles},
            {"symbol": "diamond"} | filled,
        ),
    ):
        if points:
            _marks(figure, label, points, columns, names, marker | {"size": size})
    plus = [(columns.index(end), row) for row in range(layers) for end in ends]
    figure.add_scatter(
        x=[x for x, _ in plus],
        y=[y for _, y in plus],
        mode="markers",
        hoverinfo="skip",
        marker={"symbol": "circle-cross-open", "size": 0.75 * size, "color": INK},
        showlegend=False,
    )
    _axes(figure, columns, ends, names, layers)
    return figure


def _axes(figure: go.Figure, columns: Sequence[str], ends: Sequence[str], names: Sequence[str], layers: int) -> None:
    ticks = [column.split("|")[1].replace("layernorm", "layer_norm").replace("_", "<br>") for column in columns]
    lines = max(tick.count("<br>") for tick in ticks)
    for part, words in (("attn", "attention"), ("mlp", "MLP")):
        own = [i for i, column in enumerate(columns) if column.startswith(f"{part}|") and column not in ends]
        if not own:  # a model whose experts have no roles
            continue
        middle = {"x": (own[0] + own[-1]) / 2, "y": 1, "yref": "paper", "yshift": 32, "showarrow": False}
        figure.add_annotation(text=f"<b>{words}</b>", **middle)
    figure.update_xaxes(tickvals=list(range(len(columns))), ticktext=ticks, side="top")
    figure.update_xaxes(
        range=[-0.7, len(columns) - 0.3], showline=False, ticks="", tickangle=0, tickfont={"size": 13 - lines}
    )
    shown = [*range(0, layers, every(layers)), *range(layers, len(names))]
    figure.update_yaxes(tickvals=shown, ticktext=[names[row] for row in shown], showgrid=False)
    figure.update_yaxes(range=[-0.8, len(names) - 0.2], ticks="")
    figure.update_layout(legend={"y": -0.02}, margin={"t": 118 + 14 * lines}, height=figure.layout.height + 14 * lines)


def _marks(
    figure: go.Figure,
    label: str,
    points: dict[tuple[int, str], Site],
    columns: Sequence[str],
    names: Sequence[str],
    marker: dict[str, Any],
) -> None:
    sizes = [f"{s.d_in} → {s.d_out}" if s.d_in else "its own parameters" for s in points.values()]
    figure.add_scatter(
        x=[columns.index(slot) for _, slot in points],
        y=[layer for layer, _ in points],
        mode="markers",
        marker=marker,
        name=label,
        meta=["layer", "place", "module", "size"],
        customdata=[
            [names[layer], slot.split("|")[1], escape(site.key), size]
            for ((layer, slot), site), size in zip(points.items(), sizes, strict=True)
        ],
        hovertemplate=f"%{{customdata[2]}}<br>%{{customdata[3]}}<br>{label}<extra></extra>",
    )


def _slot(anatomy: Anatomy, site: Site) -> tuple[int, str]:
    """Return the row of a site and its column, "part|name"."""
    layer = next(
        (i for i, at in enumerate(anatomy.layers) if f"{site.path}.".startswith(f"{at}.")), len(anatomy.layers)
    )
    path, inner = site.path, site.path.removeprefix(f"{anatomy.layers[min(layer, len(anatomy.layers) - 1)]}.")
    own = next((s for s in anatomy.projections if s.path == path), None)
    if site.role in ("attn", "mlp"):
        return layer, f"{site.role}|{site.role} {'in' if site.side == 'in' else 'out'}"
    if own is None:
        return layer, f"other|{escape(inner.rpartition('.')[2])}"
    part = _part(anatomy, own)
    return layer, f"{part}|{own.role}{' in' if site.side == 'in' else ''}"


def _part(anatomy: Anatomy, site: Site) -> str:
    order = [s.path for s in anatomy.projections if s.layer == site.layer]
    exit = next(s.path for s in anatomy.sublayers if s.layer == site.layer and s.role == "attn")
    return "attn" if order.index(site.path) <= order.index(exit) else "mlp"


def _columns(anatomy: Anatomy, used: set[str]) -> tuple[list[str], tuple[str, str]]:
    """Return all columns in order of execution, and those where the sublayers add to the stream."""
    columns: list[str] = []
    for part in ("attn", "mlp"):
        slots = [slot for s in anatomy.projections if (slot := _slot(anatomy, s)[1]).startswith(f"{part}|")]
        with_inputs = (name for slot in dict.fromkeys(slots) for name in (f"{slot} in", slot))
        columns += [f"{part}|{part} in"] if f"{part}|{part} in" in used else []
        columns += [name for name in with_inputs if not name.endswith(" in") or name in used]
        columns += [f"{part}|{part} out"] if f"{part}|{part} out" in used else []
        columns.append(f"{part}| ")
    return [*columns, *sorted(slot for slot in used if slot.startswith("other|"))], ("attn| ", "mlp| ")
