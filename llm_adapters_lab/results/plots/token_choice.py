"""Which tokens of a text run through the parts of a model that an adapter runs for some of them only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import torch

from llm_adapters_lab.results.appearance import colour
from llm_adapters_lab.results.formatting import percent, site_name, site_names
from llm_adapters_lab.results.plots.style import PALE, every, heatmap, new, text

if TYPE_CHECKING:
    import plotly.graph_objects as go


def tokens_run(
    run: Mapping[str, torch.Tensor],
    tokens: Sequence[str],
    kind: str | None = None,
    *,
    roles: Mapping[str, str] | None = None,
) -> go.Figure:
    """Show which tokens run at each site.

    Args:
        run: by site, (T,), from `inspection.tokens_run`.
        tokens: as text, in reading order.
        kind: adapter type, for name and colour.
        roles: of the sites, see `site_names`.

    Returns:
        A heat map over tokens and sites, with a cell in the colour of the adapter where a token runs.
    """
    places = site_names(run, roles)
    shares = {key: float(own.float().mean()) for key, own in run.items()}
    rows = [escape(f"{site_name(*places[key])} ({percent(share)})") for key, share in shares.items()]
    mean = percent(sum(shares.values()) / len(shares))
    words = f"coloured where a token runs: {mean} of them, and for each site in brackets"
    title, height = f"Tokens that run: {escape(kind or 'adapter')}", 160 + max(120, 26 * len(rows))
    figure = new(title, words, "token", "site", height)
    labels = [f"{number} {text(token)}" for number, token in enumerate(tokens)]
    names = [["runs" if one else "does not run" for one in own.tolist()] for own in run.values()]
    cells = [[int(one) for one in own.tolist()] for own in run.values()]
    hover, scale = "%{y}<br>token %{x}<br>%{customdata}", [[0, PALE], [1, colour(kind)]]
    heatmap(figure, labels, rows, cells, scale, "", hover, zmax=1, customdata=names, showscale=False)
    figure.update_layout(meta={"least": 240 + 15 * len(tokens)})
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, ticks="", dtick=every(len(rows), 30))
    figure.update_xaxes(type="category", dtick=1, tickangle=-90, ticks="")
    return figure
