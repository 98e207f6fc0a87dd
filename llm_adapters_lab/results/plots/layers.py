"""Figures by layer: what each layer's part of the adapter is good for, how the stream moves, and where it all sits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.sites import ENCODER, Site
from llm_adapters_lab.inspection.ablations import Ablation
from llm_adapters_lab.results.appearance import BASE, colour
from llm_adapters_lab.results.plots.style import GRID, INK, every, new, ramp, say

if TYPE_CHECKING:
    import plotly.graph_objects as go

Slot = tuple[int, str]
"""Row and column of the figure of a placement."""
Place = tuple[int, str, str]
"""Layer, part of the layer, and name in it."""


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
    figure = new(f"Layer ablation: {name}", words, "layer", f"change of {score} ({escape(unit)})")
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
    title = f"Residual-stream similarity: {escape(kind or 'base')}"
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
    figure = new(f"Scaling λ: {name}", words, "factor λ", f"{score} ({escape(unit)})")
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
        A row for each layer, the first at the top: squares are projections in order of execution, filled where adapted;
        the routed experts of a layer are one square. Crossed circles are where mixers and feed-forward parts add to the
        residual stream, which runs behind them; diamonds are adapters at the input or output of a whole sublayer, or at
        other modules.
    """
    places = _places(anatomy)
    taken, known = _by_slot(anatomy, places, sites), _by_slot(anatomy, places, anatomy.projections)
    columns, ends = _columns(places, {slot for _, slot in taken})
    layers, roles = 1 + max(layer for layer, _ in known), {slot for _, slot in known}
    rows = range(layers + any(layer < 0 for layer, _ in taken))
    names = [*map(str, range(layers)), "outside"][: len(rows)]
    size = max(7.0, min(18.0, 400 / layers))
    words = (
        "filled: adapted; ⊕: added to the stream" if taken else "acts on the whole model, at no place within a layer"
    )
    title, height = f"Placement: {escape(kind or 'base')}", int(192 + (size + 8) * len(rows))
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
            _marks(figure, label, points, known, columns, names, marker | {"size": size})
    wholes = [site for site in anatomy.sublayers if not _within_another(site, anatomy)]
    plus = [(columns.index(f"{places[site.key][1]}| "), site.layer) for site in wholes]
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


def _within_another(site: Site, anatomy: Anatomy) -> bool:
    """Return whether a sublayer lies in another one, such as a shared expert in the block with the routed ones."""
    return any(site.path.startswith(f"{other.path}.") for other in anatomy.sublayers if other.layer == site.layer)


_PARTS = {"attn": "attention", "ssm": "state space", "conv": "convolution", "cross": "cross-attention"}
_PARTS |= {"mlp": "MLP", "shared": "shared expert"}


def _axes(figure: go.Figure, columns: Sequence[str], ends: Sequence[str], names: Sequence[str], layers: int) -> None:
    ticks = []
    for column in columns:
        part, name = column.split("|")
        own = name.removeprefix(ENCODER).removeprefix(f"{part.removeprefix(ENCODER).split()[0]}.")
        ticks.append(re.sub("[._]", "<br>", own.replace("layernorm", "layer_norm")) if len(own) > 5 else own)
    lines = max(tick.count("<br>") for tick in ticks)
    for part in dict.fromkeys(end.partition("|")[0] for end in ends):
        own_columns = [i for i, column in enumerate(columns) if column.startswith(f"{part}|") and column not in ends]
        kind, *number = part.removeprefix(ENCODER).split()
        words = " ".join(["encoder"] * part.startswith(ENCODER) + [_PARTS.get(kind, kind), *number])
        if len(words) > 9 * len(own_columns):
            words = words.replace(" ", "<br>")
        middle = {"x": (own_columns[0] + own_columns[-1]) / 2, "y": 1, "yref": "paper", "yshift": 32 + 14 * (lines - 1)}
        figure.add_annotation(text=f"<b>{words}</b>", showarrow=False, yanchor="bottom", **middle)
    figure.update_xaxes(tickvals=list(range(len(columns))), ticktext=ticks, side="top")
    figure.update_xaxes(
        range=[-0.7, len(columns) - 0.3], showline=False, ticks="", tickangle=0, tickfont={"size": 13 - lines}
    )
    shown = [*range(0, layers, every(layers)), *range(layers, len(names))]
    figure.update_yaxes(tickvals=shown, ticktext=[names[row] for row in shown], showgrid=False)
    figure.update_yaxes(range=[len(names) - 0.2, -0.8], ticks="")
    height = figure.layout.height + 10 + 28 * lines  # the title is in the middle of the upper margin
    figure.update_layout(legend={"y": -0.02}, margin={"t": 128 + 28 * lines}, height=height)


def _marks(
    figure: go.Figure,
    label: str,
    points: dict[Slot, list[Site]],
    known: dict[Slot, list[Site]],
    columns: Sequence[str],
    names: Sequence[str],
    marker: dict[str, Any],
) -> None:
    data = []
    for at, sites in points.items():
        first, every_one = sites[0], len(known.get(at, sites))
        size = f"{first.d_in} → {first.d_out}" if first.d_in else "its own parameters"
        size += f", {len(sites)} of {every_one}" if every_one > 1 and label != "not adapted" else ""
        size += f", {every_one} of them" if every_one > 1 and label == "not adapted" else ""
        data.append([names[at[0]], at[1].split("|")[1], escape(first.key), size])
    figure.add_scatter(
        x=[columns.index(slot) for _, slot in points],
        y=[layer % len(names) for layer, _ in points],
        mode="markers",
        marker=marker,
        name=label,
        meta=["layer", "place", "module", "size"],
        customdata=data,
        hovertemplate=f"%{{customdata[2]}}<br>%{{customdata[3]}}<br>{label}<extra></extra>",
    )


def _places(anatomy: Anatomy) -> dict[str, Place]:
    """Return layer, part and name of each projection by its path, and of each whole sublayer by its key."""
    found: dict[str, Place] = {}
    for stack in (ENCODER, ""):
        for layer in range(anatomy.depth(stack)):
            parts: list[str] = []
            for whole, sites in anatomy.parts(layer, stack):
                kind = whole.role if whole else sites[0].sublayer
                parts.append(kind)
                part = f"{kind} {parts.count(kind)}" if parts.count(kind) > 1 else kind
                found |= {site.path: (layer, part, site.role) for site in sites}
                if whole:
                    found[whole.key] = (layer, part, f"{whole.role} out")
                    inputs = (e for e in anatomy.entries if (e.layer, e.role) == (layer, whole.role))
                    own = (e for e in inputs if f"{whole.reader}.".startswith(f"{e.path}."))
                    found |= {entry.key: (layer, part, f"{whole.role} in") for entry in own}
    return found


def _by_slot(anatomy: Anatomy, places: dict[str, Place], sites: Iterable[Site]) -> dict[Slot, list[Site]]:
    """Return the sites in each row and column, "part|name"; row -1 is outside of the layers."""
    found: dict[Slot, list[Site]] = {}
    for site in sites:
        if (at := places.get(site.key) or places.get(site.path)) is None:
            layer = next((i for i, path in enumerate(anatomy.layers) if f"{site.path}.".startswith(f"{path}.")), -1)
            slot = (layer, f"other|{escape(site.path.rpartition('.')[2])}")
        else:
            layer, part, name = at
            slot = (layer, f"{part}|{name}{' in' if site.side == 'in' and not name.endswith(' in') else ''}")
        found.setdefault(slot, []).append(site)
    return found


def _columns(places: dict[str, Place], used: set[str]) -> tuple[list[str], list[str]]:
    """Return all columns in order of execution, mixers first, and those where the parts add to the stream."""
    columns: list[str] = []
    parts = dict.fromkeys(part for _, part, _ in places.values())
    mixers = ("attn", "cross", "ssm", "conv")
    for part in sorted(
        parts, key=lambda p: (not p.startswith(ENCODER), p.removeprefix(ENCODER).split()[0] not in mixers)
    ):
        names = dict.fromkeys(name for _, own, name in places.values() if own == part)
        usual = [name for name in names if not name.endswith((" in", " out"))]
        whole = part.split()[0]
        slots = [f"{whole} in", *(slot for name in usual for slot in (f"{name} in", name)), f"{whole} out"]
        columns += [f"{part}|{slot}" for slot in slots if slot in usual or f"{part}|{slot}" in used]
        columns.append(f"{part}| ")
    ends = [column for column in columns if column.endswith("| ")]
    return [*columns, *sorted(slot for slot in used if slot.startswith("other|"))], ends
