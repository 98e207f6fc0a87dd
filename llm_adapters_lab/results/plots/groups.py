"""Figures that compare many runs: a row, point or line for each group of seeds.

They have no titles, since they stand below the name of the view, and one height. Groups come from `entry_groups`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from llm_adapters_lab.results.entry_groups import EntryGroup, field_name, short_labels
from llm_adapters_lab.results.formatting import NONE, interval, percent
from llm_adapters_lab.results.plots.runs import running_mean
from llm_adapters_lab.results.plots.style import BLUE, GRID, INK, PALE, heatmap, new, say
from llm_adapters_lab.results.run_index import Entry, words

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROWS, ROW = 60, 22
"""Maximum number of groups in a figure with a row for each, and the height of a row in pixels."""
NAMED = 8
"""Maximum number of groups in a legend, and of names beside points."""
POINTS = 12_000
"""Number of points of all curves together."""
LONGEST = 30
"""Characters of a name at an axis."""
LOW_HIGH = ("#8f7ee7", "#5f8fd6", "#35a0b0", "#2fa36b", "#86a82c", "#c79a00", "#d9702b")

Colours = Mapping[str, str]


def tiers(ranked: Sequence[Sequence[EntryGroup]], tasks: Sequence[str], colours: Colours, height: int) -> go.Figure:
    """Show the mean accuracy of each group with its 95 % interval over the questions, and its seeds as rings.

    Args:
        ranked: groups by tier, the best tier and its best group first.
        tasks: what the mean is taken over.
        colours: of the groups, by `EntryGroup.id`.
        height: of the figure in pixels, at least.
    """
    groups = [group for tier in ranked for group in tier][:ROWS]
    if not groups:
        return _nothing(height)
    figure, ys, means = _rows(groups, height), range(len(groups)), [group.mean(tasks) or 0.0 for group in groups]
    ends = [group.interval(tasks) for group in groups]
    figure.add_scatter(
        x=[100 * mean for mean in means],
        y=list(ys),
        mode="markers",
        name="mean",
        marker={"color": [colours.get(group.id, INK) for group in groups], "size": 11},
        error_x=_whiskers(means, ends),
        hovertext=[_hover(group, tasks) for group in groups],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    rings = [(y, group, run, mean) for y, group in enumerate(groups) for run, mean in _seeds(group, tasks)]
    figure.add_scatter(
        x=[100 * mean for *_, mean in rings],
        y=[y + 0.26 for y, *_ in rings],
        mode="markers",
        name="seeds",
        marker={
            "color": [colours.get(group.id, INK) for _, group, *_ in rings],
            "size": 6,
            "symbol": "circle-open",
            "line": {"width": 1.4},
        },
        hovertext=[
            f"{escape(group.name)}, seed {run.fields['seed']}<br>{percent(mean)}" for _, group, run, mean in rings
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    start = 0
    for number, tier in enumerate(ranked, 1):
        if start >= len(groups):
            break
        if start:
            figure.add_hline(y=start - 0.5, line={"color": INK, "width": 1, "dash": "dot"})
        label = {"text": f"tier {number}", "font": {"size": 12, "color": INK}, "showarrow": False}
        figure.add_annotation(x=1, xref="paper", xanchor="left", y=start, **label)
        start += len(tier)
    figure.update_xaxes(range=_span(ends), showgrid=True, gridcolor=GRID, ticksuffix=" %")
    figure.update_layout(margin={"r": 72})
    return figure


def by_task(groups: Sequence[EntryGroup], tasks: Sequence[str], colours: Colours, height: int) -> go.Figure:
    """Show the accuracy of each group on each task as bars with their values, the mean in the first column.

    Whiskers are 95 % intervals; lines mark chance level (dotted) and majority baseline.
    """
    shown, columns = list(groups)[:ROWS], [*([tuple(tasks)] if len(tasks) > 1 else []), *((task,) for task in tasks)]
    if not shown or not tasks:
        return _nothing(height)
    figure, gap = _rows(shown, height), 0.02
    width, colour = (1 + gap) / len(columns), [colours.get(group.id, INK) for group in shown]
    for number, of in enumerate(columns):
        axis, means = f"x{number + 1 if number else ''}", [group.mean(of) or 0.0 for group in shown]
        name = of[0] if len(of) == 1 else f"mean of {len(of)}"
        look: dict[str, Any] = {"xaxis": axis, "y": list(range(len(shown))), "name": escape(name)}
        figure.add_bar(
            x=[100 * mean for mean in means],
            orientation="h",
            marker={"color": colour, "opacity": 0.75},
            error_x=_whiskers(means, [group.interval(of) for group in shown]),
            hovertext=[f"{escape(name)}<br>{_hover(group, of)}" for group in shown],
            hovertemplate="%{hovertext}<extra></extra>",
            **look,
        )
        figure.add_scatter(
            x=[163] * len(shown),
            mode="text",
            text=[f"{100 * mean:.1f}" for mean in means],
            textposition="middle left",
            textfont={"size": 12},
            hoverinfo="skip",
            **look,
        )
        for key, dash in (("chance", "dot"), ("majority", "solid")) if len(of) == 1 else ():
            levels = [run.results[name].get(key) for group in shown for run in group.scored if name in run.results]
            if (level := next((level for level in levels if level is not None), None)) is not None:
                where = {"x0": 100 * level, "x1": 100 * level, "y0": -0.5, "y1": len(shown) - 0.5, "xref": axis}
                figure.add_shape(type="line", yref="y", line={"color": INK, "width": 1.4, "dash": dash}, **where)
        layout = {
            **figure.layout.xaxis.to_plotly_json(),
            "domain": [number * width, (number + 1) * width - gap],
            "range": [0, 165],
            "tickvals": [0, 50, 100] if len(columns) < 4 else [0, 100],
            "tickangle": 0,
            "showgrid": True,
            "gridcolor": GRID,
            "title": {"text": escape(shortened(name, 120 // len(columns))), "font": {"size": 12}, "standoff": 2},
            "anchor": "y",
        }
        figure.layout[f"xaxis{axis[1:]}"] = layout
    legend: dict[str, Any] = {
        "text": "┊ chance level<br>│ majority",
        "align": "right",
        "font": {"size": 12, "color": INK},
    }
    figure.add_annotation(
        x=0, y=1, xref="paper", yref="paper", xanchor="right", yanchor="bottom", xshift=-14, showarrow=False, **legend
    )
    figure.update_layout(bargap=0.3, margin={"t": 44})
    return figure


def against_parameters(groups: Sequence[EntryGroup], tasks: Sequence[str], colours: Colours, height: int) -> go.Figure:
    """Show the mean accuracy of each group against its trained parameters, with the Pareto front; bases as lines."""
    figure = _plain("trainable parameters", "mean accuracy (%)", height)
    sized = [(group.value("trainable") or 0.0, group.mean(tasks), group) for group in groups]
    points = sorted((size, mean, group.id, group) for size, mean, group in sized if size and mean is not None)
    if not points:
        return say(figure, "no scored adapter")
    front, best = [], -1.0
    for place, (size, mean, _, _) in enumerate(points):
        if mean > best and not any(s == size and m > mean for s, m, _, _ in points):
            front.append(place)
            best = mean
    figure.add_scatter(
        x=[points[i][0] for i in front],
        y=[100 * points[i][1] for i in front],
        mode="lines",
        name="Pareto front",
        line={"color": INK, "width": 1.4, "dash": "dot", "shape": "hv"},
        hoverinfo="skip",
    )
    few = len(points) <= 2 * NAMED  # else the names would cover each other
    named = set(range(len(points))) if len(points) <= NAMED else set(front[-NAMED:] if few else ())
    sides = ["left" if size > points[len(points) // 2][0] else "right" for size, *_ in points]
    names = dict(zip((group.id for *_, group in points), _names([g for *_, g in points]), strict=True))
    figure.add_scatter(
        x=[size for size, *_ in points],
        y=[100 * mean for _, mean, *_ in points],
        mode="markers+text",
        name="groups",
        text=[names[key] if i in named else "" for i, (_, _, key, _) in enumerate(points)],
        # Above a point of the front there is none; below the last one, there is no room to the right.
        textposition=["top left" if i in front else f"bottom {side}" for i, side in enumerate(sides)],
        textfont={"size": 12},
        cliponaxis=False,
        marker={"color": [colours.get(key, INK) for _, _, key, _ in points], "size": 11},
        error_y=_whiskers([mean for _, mean, *_ in points], [group.interval(tasks) for *_, group in points], 0.8),
        hovertext=[f"{_hover(group, tasks)}<br>{size:,.0f} trainable parameters" for size, _, _, group in points],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    for size, level, group in sized:
        if not size and level is not None:
            look = {"color": INK, "width": 1.4, "dash": "dash"}
            figure.add_hline(y=100 * level, line=look, annotation_text=escape(group.name))
    low, high = math.log10(points[0][0]), math.log10(points[-1][0])
    room = max(0.25, 0.08 * (high - low))
    ticks = [m * 10**e for e in range(math.floor(low) - 1, math.ceil(high) + 1) for m in (1, 2, 5)]
    figure.update_xaxes(type="log", range=[low - 2 * room, high + room], tickvals=ticks, tickformat="~s")
    known = [group for _, level, group in sized if level is not None]
    figure.update_yaxes(range=_span([group.interval(tasks) for group in known]))
    return figure


def fields_heatmap(
    values: Sequence[tuple[Entry, float]], x: str, y: str, unit: str, height: int, digits: int = 1
) -> go.Figure:
    """Show a value of runs by two fields of their specs: each cell is the mean over everything else.

    Args:
        values: of the runs.
        x: dotted key of the field of the columns.
        y: that of the rows; "" for a single row.
        unit: what the values are, for the colour bar.
        height: of the figure in pixels.
        digits: number of decimals.
    """
    cells: dict[tuple[str, str], list[float]] = {}
    for entry, value in values:
        cells.setdefault((_value(entry, x), _value(entry, y)), []).append(value)
    if not cells:
        return _nothing(height)
    columns, lines = (sorted({key[i] for key in cells}, key=_order) for i in (0, 1))
    figure = _plain(field_name(x), field_name(y), height)
    means = [[(sum(c) / len(c) if (c := cells.get((a, b))) else None) for a in columns] for b in lines]
    text = [["" if mean is None else f"{mean:.{digits}f}" for mean in line] for line in means]
    count = [[len(cells.get((a, b), ())) for a in columns] for b in lines]
    known = [mean for line in means for mean in line if mean is not None]
    hover = f"{escape(field_name(x))} %{{x}}<br>{escape(field_name(y) or 'all')} %{{y}}<br>{escape(unit)} %{{text}}"
    names = [[escape(shortened(name, 24)) for name in axis] for axis in (columns, lines)]
    more: dict[str, Any] = {"text": text, "customdata": count, "texttemplate": "%{text}", "textfont": {"size": 13}}
    hover += "<br>mean of %{customdata} runs"
    at = [list(range(len(axis))) for axis in names]
    heatmap(figure, at[0], at[1], means, [[0, PALE], [1, BLUE]], escape(unit), hover, 2, **more)
    figure.data[0].update(zmin=min(known), zmax=max(known) if max(known) > min(known) else min(known) + 1)
    figure.update_xaxes(tickvals=list(range(len(columns))), ticktext=names[0], tickangle=0, showline=False)
    figure.update_yaxes(tickvals=list(range(len(lines))), ticktext=names[1] if y else [""], showgrid=False)
    return figure


def loss_curves(groups: Sequence[EntryGroup], colours: Colours, height: int, log: bool = False) -> go.Figure:
    """Show the smoothed training loss of every run; seeds of a group have one colour. Reads the logs."""
    curves: list[tuple[EntryGroup, Entry, list[tuple[int, float]]]] = []
    for group in groups:
        for run in group.entries:
            steps = [(event["step"], event["loss"]) for event in run.run.events("Step")]
            curves += [(group, run, steps)] if steps else []
    figure = _plain("step", "train loss (nats)", height)
    legend = set[str]()
    for group, run, steps in curves:
        stride = max(1, len(steps) * len(curves) // POINTS)
        at = [*range(0, len(steps) - 1, stride), len(steps) - 1]
        label = f"{escape(group.name)}" + (f", seed {run.fields['seed']}" if len(group.entries) > 1 else "")
        figure.add_scatter(
            x=[steps[i][0] for i in at],
            y=running_mean([loss for _, loss in steps], at, half=len(steps) // 40),
            mode="lines",
            name=escape(group.name),
            legendgroup=group.id,
            showlegend=group.id not in legend,
            line={"color": colours.get(group.id, INK), "width": 1.6},
            hovertemplate=f"<b>{label}</b><br>step %{{x}}, loss %{{y:.3f}}<extra></extra>",
        )
        legend.add(group.id)
    figure.update_layout(
        showlegend=1 < len(legend) <= NAMED, legend={"y": 1, "yanchor": "top", "x": 1, "xanchor": "right"}
    )
    figure.update_layout(legend_orientation="v", hovermode="closest", margin={"l": 56})
    figure.update_yaxes(**({"type": "log", "dtick": 1} if log else {"rangemode": "tozero"}), nticks=6)
    return figure if curves else say(figure, "no training steps")


def parallel(groups: Sequence[EntryGroup], fields: Sequence[str], tasks: Sequence[str], height: int) -> go.Figure:
    """Show each group as a line through the values of its fields, coloured by its mean accuracy."""
    scored = sorted(((mean, group) for group in groups if (mean := group.mean(tasks)) is not None), key=lambda m: m[0])
    if not scored or not fields:
        return _nothing(height)
    figure = _plain("", "", height)
    axes = {key: sorted({_value(group.entries[0], key) for _, group in scored}, key=_order) for key in fields}
    low, high = scored[0][0], scored[-1][0]
    reach = (high - low) or 1.0

    def height_of(group: EntryGroup, key: str) -> float:
        values = axes[key]
        return values.index(_value(group.entries[0], key)) / (len(values) - 1) if len(values) > 1 else 0.5

    for level, colour in enumerate(LOW_HIGH):
        own = [(m, g) for m, g in scored if min(len(LOW_HIGH) - 1, int((m - low) / reach * len(LOW_HIGH))) == level]
        x, y, hover = list[float | None](), list[float | None](), list[str]()
        for mean, group in own:
            x += [*range(len(fields) + 1), None]
            y += [*(height_of(group, key) for key in fields), (mean - low) / reach, None]
            hover += [_hover(group, tasks)] * (len(fields) + 2)
        line = {"color": colour, "width": 1.2 if len(scored) > 40 else 2}
        style = {"mode": "lines", "line": line, "opacity": 0.35 + 0.65 * level / (len(LOW_HIGH) - 1)}
        figure.add_scatter(x=x, y=y, hovertext=hover, hovertemplate="%{hovertext}<extra></extra>", name="", **style)
    labels = [
        (i, j / max(1, len(v) - 1) if len(v) > 1 else 0.5, escape(shortened(text, 14)))
        for i, v in enumerate(axes.values())
        for j, text in enumerate(v)
        if len(v) <= 12 or j in (0, len(v) - 1)
    ]
    labels += [(len(fields), at, percent(low + at * reach)) for at in ((0, 0.5, 1) if high > low else (0.5,))]
    for i, at, label in labels:
        look: dict[str, Any] = {
            "font": {"size": 12},
            "bgcolor": "rgba(128,136,144,0.22)",
            "borderpad": 1,
            "showarrow": False,
        }
        figure.add_annotation(x=i, y=at, text=label, xanchor="left", xshift=3, **look)
    for i in range(len(fields) + 1):
        figure.add_vline(x=i, line={"color": INK, "width": 1})
    titles = [*(escape(field_name(key)) for key in fields), "accuracy"]
    top = {"tickvals": list(range(len(titles))), "ticktext": titles, "side": "top", "showline": False}
    figure.update_xaxes(range=[-0.3, len(fields) + 0.45], **top)
    figure.update_yaxes(visible=False, range=[-0.06, 1.06])
    figure.update_layout(margin={"l": 12, "t": 30, "b": 10})
    return figure


def _plain(x: str, y: str, height: int) -> go.Figure:
    figure = new("", "", x, y, height)
    figure.update_layout(margin={"l": 60, "r": 34, "t": 12, "b": 40}, showlegend=False)
    figure.update_layout(modebar_orientation="v")
    return figure


def _rows(groups: Sequence[EntryGroup], height: int) -> go.Figure:
    """Return an empty figure with a row for each group, the first on top, and the scale above."""
    figure = _plain("", "", max(height, 34 + ROW * len(groups)))
    figure.update_layout(margin={"t": 26, "b": 8})
    ticks = {"tickvals": list(range(len(groups))), "ticktext": _names(groups), "tickfont": {"size": 12}}
    figure.update_yaxes(range=[max(len(groups), 4) - 0.5, -0.5], showgrid=False, **ticks)
    figure.update_xaxes(side="top")
    return figure


def _nothing(height: int) -> go.Figure:
    return say(_plain("", "", height), "nothing was scored")


def _names(groups: Sequence[EntryGroup]) -> list[str]:
    return [escape(shortened(name, LONGEST)) for name in short_labels(groups)]


def shortened(text: str, longest: int = LONGEST) -> str:
    """Return a text of at most `longest` characters, without its middle if it is longer."""
    return text if len(text) <= longest else f"{text[: longest * 2 // 3]}…{text[-(longest // 3) :]}"


def _seeds(group: EntryGroup, tasks: Sequence[str]) -> list[tuple[Entry, float]]:
    found = list(zip(group.asked(tasks), group.means(tasks), strict=True))
    return found if len(found) > 1 else []


def _hover(group: EntryGroup, tasks: Sequence[str]) -> str:
    seeds = f", mean of {len(found)} seeds" if len(found := group.means(tasks)) > 1 else ""
    ends = f"95 % interval {interval(*group.interval(tasks))}"
    return f"<b>{escape(group.name)}</b><br>{percent(group.mean(tasks))}{seeds}<br>{ends}"


def _whiskers(means: Sequence[float], ends: Sequence[tuple[float, float]], width: float = 1.4) -> dict[str, Any]:
    up, down = ([100 * abs(end[i] - mean) for mean, end in zip(means, ends, strict=True)] for i in (1, 0))
    return {"array": up, "arrayminus": down, "thickness": width, "width": 3, "color": INK}


def _span(ends: Sequence[tuple[float, float]]) -> list[float]:
    """Return the range of an axis of accuracies in percent, with a margin."""
    low, high = 100 * min(e[0] for e in ends), 100 * max(e[1] for e in ends)
    room = max(1.0, 0.06 * (high - low))
    return [max(-2.0, low - room), min(102.0, high + room)]


def _value(entry: Entry, key: str) -> str:
    value = entry.fields.get(key)
    if value is None or value == "":
        return NONE if key else ""
    return f"{value:g}" if isinstance(value, float) else words(value)


def _order(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value
