"""Figures of a text, token by token: what the adapter changes at each, and what the model thinks layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from llm_adapters_lab.results.appearance import colour
from llm_adapters_lab.results.plots import style
from llm_adapters_lab.results.plots.style import MONO, PALE, bar, heatmap, new, short, text

if TYPE_CHECKING:
    import plotly.graph_objects as go

LINE, COLUMNS = 84, 10
SMALL = {"family": MONO, "size": 12}


def token_strip(
    tokens: Sequence[str],
    values: torch.Tensor,
    *,
    title: str = "Where the adapter changes the loss",
    words: str = "blue: likelier with the adapter, orange: less likely",
    unit: str = "change (nats)",
    line: int = LINE,
) -> go.Figure:
    """Show a text with a colour behind each token.

    Args:
        tokens: as text, in reading order.
        values: of any sign, (tokens,), for instance the loss with the adapter less that without, or a share in the
            residual stream; not a number where there is none.
        title: what is seen.
        words: how to read the colours.
        unit: of the values.
        line: characters in a line; fewer for a narrow page, where tokens would overlap. The layout's `meta` has the
            pixels that they need, under "least".

    Returns:
        The text in lines of equal width; blue is below zero, orange above, pale is zero or no value.
    """
    flow = list(_flow(tokens, line))
    last = flow[-1][0] if flow else 0
    figure = new(escape(title), escape(words), "", "", 120 + 30 * (last + 1))
    numbers = [float(v) for v in values]
    known = [abs(v) for v in numbers if v == v]
    if len(numbers) != len(tokens) or not known:
        return style.say(figure, f"{len(tokens)} tokens and {len(known)} values")
    most = max(known) or 1.0
    low = 0.0 if all(v >= 0 for v in numbers if v == v) else -most
    figure.add_bar(
        orientation="h",
        base=[at for _, at, _ in flow],
        x=[wide - 0.25 for _, _, wide in flow],
        y=[row for row, _, _ in flow],
        width=0.82,
        text=[text(token) for token in tokens],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        constraintext="none",
        insidetextfont={"family": MONO, "size": 12},
        marker={
            "color": [0.0 if v != v else v for v in numbers],
            "cmin": low,
            "cmax": most,
            "line": {"width": 0},
            "colorscale": style.LESS_MORE if low else [[0, PALE], [1, style.ORANGE]],
            "showscale": True,
            "colorbar": bar(escape(unit), len=1, tickvals=[low, 0, most], tickformat=".2~g"),
        },
        customdata=[[i, text(t), v] for i, (t, v) in enumerate(zip(tokens, numbers, strict=True))],
        meta=["position", "token", escape(unit)],
        hovertemplate=f"token %{{customdata[0]}}: %{{text}}<br>{escape(unit)} %{{customdata[2]:+.3f}}<extra></extra>",
    )
    figure.update_layout(meta={"least": int(7.3 * line) + 95}, margin={"l": 4, "b": 16})
    figure.update_xaxes(visible=False, fixedrange=True, range=[0, line])
    figure.update_yaxes(visible=False, fixedrange=True, range=[last + 0.5, -0.5])
    return figure


def _flow(tokens: Sequence[str], line: int) -> Iterator[tuple[int, float, float]]:
    """Yield row, start and width of each token, in characters; a row has `line` of them."""
    row, at = 0, 0.0
    for token in tokens:
        width = max(len(token), 1) + 0.6
        if at and at + width > line:
            row, at = row + 1, 0.0
        yield row, at, width
        at += width


def lens_grid(
    tokens: Sequence[str],
    top: Sequence[Sequence[str]],
    probability: torch.Tensor,
    *,
    base: Sequence[Sequence[str]] | None = None,
    rank: torch.Tensor | None = None,
    name: str = "",
) -> go.Figure:
    """Show the logit lens: the likeliest next token after each layer, at the last ten positions of a text.

    Args:
        tokens: of the text, (tokens,).
        top: the likeliest token, as text, after each layer at each place, (layers + 1, tokens).
        probability: of it, (layers + 1, tokens).
        base: the likeliest tokens without the adapter; where they differ, the text is bold.
        rank: place of the target token, for the hover text.
        name: whose lens it is, for the title.
    """
    first, layers = max(0, len(tokens) - COLUMNS), len(top)
    names = ["input", *(str(i) for i in range(layers - 1))]
    cells: list[list[str]] = [[] for _ in range(layers)]
    hover: list[list[str]] = [[] for _ in range(layers)]
    for layer, i in product(range(layers), range(first, len(tokens))):
        word, other = top[layer][i], None if base is None else base[layer][i]
        cells[layer].append(short(word) if other in (None, word) else f"<b>{short(word)}</b>")
        lines = [f"after {text(tokens[i])} ({i}), layer {names[layer]}", f"<b>{text(word)}</b>"]
        lines += [f"without the adapter: {text(other)}"] if other is not None else []
        lines += [f"rank of the target: {int(rank[layer, i])}"] if rank is not None else []
        hover[layer].append("<br>".join(lines))
    part = f"last {COLUMNS} of {len(tokens)} positions" if first else f"{len(tokens)} positions"
    words = f"likeliest next token after each layer, {part}" + ("; bold: another one than without" if base else "")
    title = "Logit lens" + (f": {escape(name)}" if name else "")
    figure = new(title, words, "text, with position", "after layer", 150 + 23 * layers)
    columns, rows = list(range(first, len(tokens))), list(range(layers))
    written: dict[str, Any] = {
        "text": cells,
        "texttemplate": "%{text}",
        "textfont": SMALL,
        "customdata": hover,
        "zmax": 1,
    }
    template = "%{customdata}<br>probability %{z:.3f}"
    heatmap(figure, columns, rows, probability[:, first:].tolist(), style.SHARES, "probability", template, **written)
    shown = [f"{short(t)}<br><i>{i}</i>" for i, t in enumerate(tokens)][first:]
    figure.update_xaxes(tickvals=columns, ticktext=shown, showline=False, tickfont={"size": 12})
    figure.update_yaxes(
        tickvals=rows, ticktext=names, showgrid=False, tickfont={"size": 12}, autorange="reversed", ticks=""
    )
    return figure


def layer_tokens(
    tokens: Sequence[str],
    values: torch.Tensor,
    kind: str | None,
    *,
    title: str,
    unit: str,
    words: str = "",
    names: Sequence[str] = (),
) -> go.Figure:
    """Show a value for each layer and token, for instance what the adapter adds beside the residual stream.

    Args:
        tokens: of the text, (tokens,).
        values: (layers, tokens); changes, of which some are below zero, are blue where they are and orange above.
        kind: adapter type, for the colour.
        title: what is seen.
        unit: of the values.
        words: more about them.
        names: of the rows; default: 0, 1, … for the layers.
    """
    layers, names = len(values), names or [str(i) for i in range(len(values))]
    figure = new(escape(title), escape(words), "text", "layer", 180 + max(min(17 * layers, 900), 100))
    words_at = [[f"{text(t)} ({i})" for i, t in enumerate(tokens)]] * layers
    hover = f"%{{customdata}}, layer %{{y}}<br>{escape(unit)} %{{z:.4g}}"
    x, y = list(range(len(tokens))), [escape(name) for name in names]
    signed, most = bool((values < 0).any()), float(values.abs().nan_to_num().max()) or 1.0
    shades = style.LESS_MORE if signed else style.ramp(colour(kind))
    heatmap(figure, x, y, values.tolist(), shades, escape(unit), hover, customdata=words_at, zmax=most)
    if signed:
        figure.update_traces(zmin=-most)
    ticks = list(range(0, len(tokens), style.every(len(tokens), 30)))
    figure.update_xaxes(tickvals=ticks, ticktext=[short(tokens[i]) for i in ticks], tickangle=-60, tickfont=SMALL)
    figure.update_yaxes(showgrid=False, dtick=style.every(layers), autorange="reversed", ticks="", type="category")
    return figure
