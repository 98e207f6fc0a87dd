"""Figures of weights: where an adapter sits, how far it has moved, and what its changes look like."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch

from llm_adapters_lab.inspection.weight_metrics import Norm, effective_rank
from llm_adapters_lab.results.appearance import colour, looks
from llm_adapters_lab.results.formatting import site_name, site_names
from llm_adapters_lab.results.plots.runs import DASHES
from llm_adapters_lab.results.plots.style import CLEAR, GRID, INK, SHARES, every, grid, heatmap, new, ramp, say
from llm_adapters_lab.runs.record import Run

if TYPE_CHECKING:
    import plotly.graph_objects as go

FRAMES, INDICES = 40, 60
MOVED = "Distance from initialisation"


def norm_heatmap(run: Run, name: str = "") -> go.Figure:
    """Show how far training has moved the adapter at each site: layers down, kinds of site across.

    Args:
        run: a run with at least one `Norms` event.
        name: of the run, for the title; by default its adapter type.

    Returns:
        A heat map of the Frobenius norms of the change since the start; empty cells are places without an adapter.
    """
    look = looks([run])[run.id]
    last = [*deque(run.events("Norms"), maxlen=1), {"step": 0, "norms": {}}][0]
    words = f"‖θ − θ₀‖ at each site, step {last['step']}"
    return _sites(f"{MOVED}: {escape(name or look.name)}", words, [last["norms"]], ["norm"], look.colour, "norm")


def norm_evolution(run: Run, roles: Mapping[str, str] | None = None, name: str = "") -> go.Figure:
    """Show the same over the course of training, with a slider for the step.

    Args:
        run: a run with at least one `Norms` event.
        roles: of the sites, see `site_names`.
        name: of the run, for the title; by default its adapter type.

    Returns:
        A heat map for each recorded step, at most 40 of them, all on one scale; the last one is shown first.
    """
    import plotly.graph_objects as go

    look, events = looks([run])[run.id], list(run.events("Norms"))
    kept = events[:: -math.ceil(len(events) / FRAMES)][::-1] if events else []
    keys = {key: None for e in kept for key in e["norms"]}
    values = [{key: e["norms"].get(key) for key in keys} for e in kept]
    names, title = [f"step {e['step']}" for e in kept], f"{MOVED} over training: {escape(name or look.name)}"
    figure = _sites(title, "‖θ − θ₀‖ at each site", values, names, look.colour, "norm", roles)
    marks = [
        {"label": str(e["step"]), "method": "restyle", "args": [{"visible": [i == j for j in range(len(kept))]}]}
        for i, e in enumerate(kept)
    ]
    now = go.layout.slider.Currentvalue(prefix="step ", font={"size": 13, "color": INK}, xanchor="right")
    slider: dict[str, Any] = {"steps": marks, "active": len(kept) - 1, "currentvalue": now, "pad": {"t": 58}}
    slider |= {"bgcolor": GRID, "bordercolor": CLEAR, "tickcolor": INK, "font": {"color": INK, "size": 11}}
    figure.update_layout(sliders=[slider] if len(kept) > 1 else [], height=figure.layout.height + 90)
    return figure


def merged_ranks(*runs: Run, kind: str = "") -> go.Figure:
    """Show the rank of what the heads of `train.regime` have merged over the course of training.

    Args:
        runs: with at least one `Merged` event.
        kind: name for a single run; by default, each is called by what tells them apart.

    Returns:
        A line for each run, the median over its sites; the smallest and the largest are in the labels.
    """
    found = looks(runs)
    title = "Rank of the merged update" + f": {escape(kind)}" * bool(kind)
    figure = new(title, "median over all sites, after each recorded merge", "update step", "rank")
    for run in runs:
        look, events = found[run.id], [event for event in run.events("Merged") if event["rank"]]
        ranks = [sorted(event["rank"].values()) for event in events]
        figure.add_scatter(
            x=[event["step"] for event in events],
            y=[own[len(own) // 2] for own in ranks],
            customdata=[[own[0], own[-1], event["merges"]] for own, event in zip(ranks, events, strict=True)],
            mode="lines+markers",
            marker={"size": 6},
            line={"color": look.colour, "dash": DASHES[look.turn % 4], "width": 2.2},
            name=escape(kind or look.name),
            showlegend=len(runs) > 1,
            hovertemplate="step %{x}, merge %{customdata[2]}<br>rank %{y} (%{customdata[0]} to %{customdata[1]})",
        )
    figure.update_yaxes(rangemode="tozero")
    return figure if any(trace.x for trace in figure.data) else say(figure, "no merge was recorded")


def site_norms(
    values: Mapping[str, Norm], kind: str | None, *, relative: bool = False, roles: Mapping[str, str] | None = None
) -> go.Figure:
    """Show ||ΔW||_F, or its share of ||W||_F, of each site: layers down, kinds of site across.

    Args:
        values: by site key, from `weight_metrics.norms`.
        kind: adapter type, for name and colour.
        relative: show the shares, in percent.
        roles: of the sites, see `site_names`.
    """
    shown = {key: 100 * norm.relative if relative else norm.change for key, norm in values.items()}
    words = "‖ΔW‖ / ‖W‖ at each site in percent" if relative else "‖ΔW‖ at each site"
    title = f"{'Relative update norm' if relative else 'Update norm'}: {escape(kind or 'base')}"
    return _sites(title, words, [shown], ["change"], colour(kind), "% of ‖W‖" if relative else "‖ΔW‖", roles)


def _sites(
    title: str,
    words: str,
    frames: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    colour: str,
    unit: str,
    roles: Mapping[str, str] | None = None,
) -> go.Figure:
    grids = [grid(values, roles) for values in frames]
    rows = max((len(layers) for _, layers, _ in grids), default=0)
    figure = new(title, words, "site", "layer", 150 + max(80, min(26 * rows, 900)))
    if not rows:
        return say(figure, "no adapter norms")
    top = max((v for values in frames for v in values.values() if v is not None and math.isfinite(v)), default=None)
    if top is None:
        return say(figure, "no finite value: the base holds only zeros at these places")
    for i, ((sites, layers, cells), name) in enumerate(zip(grids, names, strict=True)):
        hover, frame = f"%{{x}}, layer %{{y}}<br>{unit} %{{z:.4g}}", name if len(frames) > 1 else None
        shown: dict[str, Any] = {"name": frame, "visible": i == len(frames) - 1, "hoverongaps": False, "zmax": top or 1}
        heatmap(figure, sites, layers, cells, ramp(colour), unit, hover, gap=2, **shown)
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        axis.update(type="category", showgrid=False)
    figure.update_xaxes(side="top", title={"standoff": 4}, showline=False, ticks="")
    figure.update_yaxes(autorange="reversed", dtick=every(rows, 30), ticks="")
    return figure


def spectra(
    values: Mapping[str, torch.Tensor], kind: str | None, *, roles: Mapping[str, str] | None = None
) -> go.Figure:
    """Show the singular values of ΔW at each site.

    Args:
        values: by site key, from `weight_metrics.spectra`.
        kind: adapter type, for name and colour.
        roles: of the sites, see `site_names`.

    Returns:
        A line for each site, later layers darker; singular values (logarithmic) over their index. Values below a
        millionth of the largest are rounding errors and left out.
    """
    places = site_names(values, roles)
    last = max((layer or 0 for layer, _ in places.values()), default=0)
    ranks = sorted(effective_rank(s) for s in values.values() if s.any())
    words = "one line for each site, later layers stronger"
    if ranks:
        words += f"; effective rank {ranks[0]:.1f} to {ranks[-1]:.1f}, median {ranks[len(ranks) // 2]:.1f}"
    title = f"Singular values of ΔW: {escape(kind or 'base')}"
    figure = new(title, words, "index", "singular value of ΔW")
    for key, found in values.items():
        label = escape(site_name(*places[key]))
        kept = [float(s) for s in found if s > 1e-6 * found[0]]
        if not kept:
            continue
        chosen = sorted({round(len(kept) ** (i / INDICES)) for i in range(INDICES + 1)})
        figure.add_scatter(
            x=chosen,
            y=[kept[i - 1] for i in chosen],
            name=label,
            showlegend=False,
            mode="lines+markers" if len(kept) < 20 else "lines",
            marker={"size": 4},
            line={"color": colour(kind), "width": 1.3},
            opacity=0.25 + 0.75 * (places[key][0] or 0) / max(last, 1),
            hovertemplate=f"{label}<br>singular value %{{x}}: %{{y:.4g}}<br>effective rank "
            f"{effective_rank(found):.2f}<extra></extra>",
        )
    shown = [y for trace in figure.data for y in trace.y]
    wide = bool(shown) and max(shown) > 100 * min(shown)
    figure.update_yaxes(type="log", tickformat=".0e", dtick=1 if wide else "D2")
    longest = max((max(trace.x) for trace in figure.data), default=0)
    figure.update_xaxes(**{"type": "log"} if longest > 40 else {"dtick": 1 if longest < 20 else 5})
    return figure if figure.data else say(figure, "the change is zero everywhere")


def similarity(
    matrix: torch.Tensor, names: Sequence[str], *, title: str = "Overlap of subspaces", unit: str = "overlap"
) -> go.Figure:
    """Show how similar several things are to each other.

    Args:
        matrix: (n, n), 0 to 1, for instance `weight_metrics.overlap` of several adapters at one site.
        names: of the n things.
        title: what is compared.
        unit: of a cell.

    Returns:
        A heat map, with the numbers in the cells where there is room.
    """
    labels, places = [escape(name) for name in names], list(range(len(names)))
    figure = new(escape(title), "0: nothing in common, 1: the same", "", "", 180 + max(30 * len(names), 120))
    pairs = [[f"{a}<br>{b}" for b in labels] for a in labels]
    numbers = {"zmax": 1, "texttemplate": "%{z:.2f}" if len(names) <= 12 else None, "customdata": pairs}
    hover = f"%{{customdata}}<br>{escape(unit)} %{{z:.3f}}"
    heatmap(figure, places, places, matrix.tolist(), SHARES, escape(unit), hover, gap=2, **numbers)
    ticks = {"tickvals": places, "ticktext": labels, "showgrid": False, "showline": False}
    figure.update_xaxes(**ticks)
    figure.update_yaxes(**ticks, autorange="reversed")
    return figure
