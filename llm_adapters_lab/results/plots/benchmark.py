"""Figures of a benchmark: tiers, what a method costs beside what it reaches, and how it depends on its settings.

from llm_adapters_lab.results import plots
from llm_adapters_lab.results.benchmark_report import standings

found = standings(benchmark(Benchmark.load(file)))
plots.benchmark_tiers(found)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from llm_adapters_lab.results.appearance import colour
from llm_adapters_lab.results.benchmark_report import BETTER_HIGH, MEASURES, Standing, pareto
from llm_adapters_lab.results.formatting import interval
from llm_adapters_lab.results.plots.groups import LOW_HIGH, shortened
from llm_adapters_lab.results.plots.runs import DASHES
from llm_adapters_lab.results.plots.style import BLUE, GRID, INK, PALE, heatmap, new, say
from llm_adapters_lab.sweeps.benchmarks import Outcome

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROW, BINS, NAMED = 24, 6, 8
"""Height of a row in pixels, number of columns of a heat map, and maximum number of names beside points."""
PERCENT = ("accuracy", "retained")


def benchmark_figures(outcome: Outcome, found: Sequence[Standing]) -> list[go.Figure]:
    """Return all figures of a benchmark; `layout.meta` of each has the `code` that makes it.

    Args:
        outcome: of the benchmark.
        found: its standings.
    """
    known = {name for standing in found for name in standing.measures}
    searched = dict.fromkeys(name for trial in outcome.trials for name in trial.changes if name != "seed")
    numbers = [n for n in searched if any(isinstance(trial.changes.get(n), int | float) for trial in outcome.trials)]
    made = {"benchmark_tiers(found)": benchmark_tiers(found)}
    for cost in (cost for cost in ("trainable", "forgetting", "flops") if cost in known):
        made[f"pareto_front(found, {cost!r})"] = pareto_front(found, cost)
    made["parallel_measures(found)"] = parallel_measures(found)
    for name in numbers:
        made[f"search_figure(outcome, {name!r})"] = search_figure(outcome, name)
        made[f"search_map(outcome, {name!r})"] = search_map(outcome, name)
    for call, figure in made.items():
        figure.layout.meta = {"code": f"plots.{call}"}
    return list(made.values())


def benchmark_tiers(found: Sequence[Standing]) -> go.Figure:
    """Show the accuracy of each method with its 95 % interval over seeds and questions, and its seeds as rings.

    Dotted lines separate tiers: methods of a tier are not distinguishable from its best one.
    """
    shown = [standing for standing in found if standing.accuracy is not None]
    words = "a tier is not distinguishable from its best; rings: seeds"
    figure = new("Methods in tiers", words, "accuracy (%)", "", 130 + ROW * max(3, len(shown)))
    if not shown:
        return say(figure, "nothing was scored")
    for row, standing in enumerate(shown):
        mean, ends = 100 * (standing.accuracy or 0.0), [100 * end for end in standing.ends["accuracy"]]
        text = (
            f"{_name(standing, found)}<br>{mean:.1f} % ({interval(*standing.ends['accuracy'])}), tier {standing.tier}"
        )
        figure.add_scatter(
            x=[100 * share for share in standing.by_seed],
            y=[row] * len(standing.by_seed),
            mode="markers",
            marker={"symbol": "circle-open", "size": 6, "color": INK},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=[mean],
            y=[row],
            mode="markers",
            marker={"color": colour(standing.type or None), "size": 11},
            error_x=_arms(mean, ends),
            meta=["method", "tier", "accuracy (%)", "95 % interval"],
            customdata=[[_name(standing, found), standing.tier, round(mean, 1), interval(*standing.ends["accuracy"])]],
            hovertemplate=f"{text}<extra></extra>",
            showlegend=False,
        )
        if row and (standing.tier != shown[row - 1].tier or _place(standing) != _place(shown[row - 1])):
            solid = _place(standing) != _place(shown[row - 1])
            figure.add_hline(y=row - 0.5, line={"color": INK, "width": 1, "dash": "solid" if solid else "dot"})
    names = [_name(standing, found) for standing in shown]
    figure.update_yaxes(tickvals=[*range(len(shown))], ticktext=names, range=[len(shown) - 0.5, -0.5], showgrid=False)
    figure.update_xaxes(showgrid=True, gridcolor=GRID)
    return figure


def pareto_front(found: Sequence[Standing], x: str = "trainable", y: str = "accuracy") -> go.Figure:
    """Show two measures of all methods as crosses of their intervals, and the front that no method beats.

    Args:
        found: the standings.
        x: a key of `MEASURES`.
        y: another one.
    """
    words = "line: no method is better in one and not worse in the other"
    title = f"{y.capitalize()} against {x}".replace("flops", "FLOPs").replace("trainable", "parameters")
    figure = new(title, words, MEASURES[x], MEASURES[y], 460)
    known = [standing for standing in found if x in standing.measures and y in standing.measures]
    if not known:
        return say(figure, "nothing was measured")
    fronts = [pareto(own, x, y) for own in _together(known)]
    for front in fronts:
        places = [(_value(s, x), _value(s, y)) for s in front]
        line = {"color": INK, "width": 1.4, "dash": "dot", "shape": "hv" if y == "accuracy" else "linear"}
        xs, ys = ([place[i] for place in places] for i in (0, 1))
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    best = {id(standing) for front in fronts for standing in front}
    # With many methods, only those on the front are named, as the names would overlap.
    named = best if len(known) > NAMED else {id(standing) for standing in known}
    for turn, standing in enumerate(known):
        at, up = _value(standing, x), _value(standing, y)
        name = _name(standing, found)
        figure.add_scatter(
            x=[at],
            y=[up],
            name=name,
            mode="markers+text",
            text=[name if id(standing) in named else ""],
            textposition="top left" if id(standing) in best else ("bottom left", "bottom right")[turn % 2],
            textfont={"size": 12},
            cliponaxis=False,
            marker={"color": colour(standing.type or None), "size": 9},
            error_x=_arms(at, _ends(standing, x)),
            error_y=_arms(up, _ends(standing, y)),
            hovertemplate=f"<b>{name}</b><br>{escape(x)} %{{x:.4g}}<br>{escape(y)} %{{y:.4g}}<extra></extra>",
            showlegend=False,
        )
    values = [_value(standing, x) for standing in known]
    if _spans_decades(values):
        figure.update_xaxes(type="log", dtick="D2")
    return figure


def parallel_measures(found: Sequence[Standing]) -> go.Figure:
    """Show each method as a line through its measures, each axis from its worst at the bottom to its best at the top.

    Colours run from violet for the least accurate method to orange for the most accurate.
    """
    known = [standing for standing in found if standing.accuracy is not None]
    axes = [name for name in MEASURES if all(name in standing.measures for standing in known)]
    figure = new("All measures", "top: the best of an axis; bottom: the worst", "", "", 420)
    if not known or len(axes) < 2:
        return say(figure, "nothing was measured")
    scaled = {}
    for name in axes:
        values = [standing.measures[name] for standing in known]
        scale = [math.log(value) for value in values] if _spans_decades(values) else values
        low, reach = min(scale), (max(scale) - min(scale)) or 1.0
        parts = [(value - low) / reach for value in scale]
        scaled[name] = [part if name in BETTER_HIGH else 1 - part for part in parts]
    order = sorted(range(len(known)), key=lambda i: scaled["accuracy"][i])
    for i, standing in enumerate(known):
        level = order.index(i) * len(LOW_HIGH) // len(known)
        name = _name(standing, found)
        table = [name, *(round(_value(standing, key), 4) for key in axes)]
        words = "<br>".join(f"{key}: {_value(standing, key):,.4g}" for key in axes)
        figure.add_scatter(
            x=[*range(len(axes))],
            y=[scaled[key][i] for key in axes],
            mode="lines+markers",
            name=name,
            line={"color": LOW_HIGH[level], "width": 1.8},
            marker={"size": 5},
            meta=["method", *(MEASURES[key] for key in axes)],
            customdata=[table],
            hovertemplate=f"<b>{name}</b><br>{words}<extra></extra>",
            showlegend=False,
        )
    for i, key in enumerate(axes):
        ends = sorted((_value(standing, key) for standing in known), reverse=key not in BETTER_HIGH)
        for value, y, side in ((ends[-1], 1, "bottom"), (ends[0], 0, "top")):
            figure.add_annotation(x=i, y=y, text=_short(value), yanchor=side, yshift=4 if y else -4, showarrow=False)
    figure.update_xaxes(tickvals=[*range(len(axes))], ticktext=axes, range=[-0.3, len(axes) - 0.7])
    figure.update_yaxes(visible=False, range=[-0.12, 1.12])
    return figure


def search_figure(outcome: Outcome, field: str = "train.learning_rate") -> go.Figure:
    """Show the validation loss of the search over one of its fields, a line for each method.

    Runs that a rule has ended are crosses, with the lowest loss until then.

    Args:
        outcome: of the benchmark.
        field: dotted; a number.
    """
    words = "the lowest of a line is scored; crosses: ended early"
    title = f"Search over {escape(field.rpartition('.')[2].replace('_', ' '))}"
    figure = new(title, words, escape(field), "loss (nats)")
    turns: dict[str, int] = {}
    several = len(outcome.benchmark.contests()) > len(outcome.benchmark.methods)
    for place in outcome.benchmark.contests():
        own = sorted(_tried(outcome, place, field))
        if not own:
            continue
        shade = colour(_type(outcome, place))
        turn = turns[shade] = turns.get(shade, -1) + 1
        figure.add_scatter(
            x=[x for x, _, _ in own],
            y=[y for _, y, _ in own],
            mode="lines+markers",
            name=escape(place.words if several else place.method),
            line={"color": shade, "width": 2, "dash": DASHES[turn % 4]},
            marker={"symbol": ["x" if ended else "circle" for *_, ended in own], "size": 7},
            hovertemplate=f"{escape(field)} %{{x:.3g}}<br>loss %{{y:.4f}}",
        )
    figure.update_xaxes(type="log")
    if _spans_decades([y for trace in figure.data for y in trace.y] or [0.0]):
        figure.update_yaxes(type="log")
    return figure if figure.data else say(figure, f"no run has searched {escape(field)}")


def search_map(outcome: Outcome, field: str = "train.learning_rate") -> go.Figure:
    """Show how much each method loses at other values of a field: its lowest loss there minus its lowest anywhere.

    Args:
        outcome: of the benchmark.
        field: dotted; a number. Its range, on a logarithmic scale if it is positive, is cut into `BINS` parts.
    """
    places = outcome.benchmark.contests()
    tried = {place: [*_tried(outcome, place, field)] for place in places}
    shown = [place for place in places if tried[place]]
    short = escape(field.rpartition(".")[2].replace("_", " "))
    figure = new(f"Sensitivity to {short}", "0: the best of a row", short, "", 190 + ROW * max(3, len(shown)))
    values = [x for own in tried.values() for x, *_ in own]
    if not values or min(values) == max(values):
        return say(figure, f"no run has searched {escape(field)}")
    log = min(values) > 0
    low, high = ((math.log(end) if log else end) for end in (min(values), max(values)))

    def bin_of(x: float) -> int:
        return min(BINS - 1, int(((math.log(x) if log else x) - low) / (high - low) * BINS))

    cells = []
    for place in shown:
        least = min(loss for _, loss, _ in tried[place])
        line = [[loss for x, loss, _ in tried[place] if bin_of(x) == i] for i in range(BINS)]
        cells.append([min(losses) - least if losses else None for losses in line])
    edges = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    names = [f"{math.exp(e) if log else e:.2g}" for e in edges]
    columns = [f"{a}<br>to {b}" for a, b in pairwise(names)]
    several = len(places) > len(outcome.benchmark.methods)
    rows = [escape(shortened(place.words if several else place.method)) for place in shown]
    text = [["" if cell is None else f"{cell:.2f}" for cell in line] for line in cells]
    more: dict[str, Any] = {"text": text, "texttemplate": "%{text}", "textfont": {"size": 12}}
    hover = f"%{{y}}<br>{short} %{{x}}<br>%{{text}} nats above its best"
    # Losses beyond a nat are all bad: they must not leave the rest pale.
    capped = [[None if cell is None else min(cell, 1.0) for cell in line] for line in cells]
    heatmap(figure, columns, rows, capped, [[0, PALE], [1, BLUE]], "nats above the best", hover, 2, **more)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(tickangle=0)
    return figure


def _tried(outcome: Outcome, place: Any, field: str) -> list[tuple[float, float, bool]]:
    """Return value, loss, and whether it was ended, of each run of a place that has a loss."""
    return [
        (float(trial.changes[field]), trial.loss, trial.ended is not None)
        for trial in outcome.trials
        if trial.contest == place and math.isfinite(trial.loss) and isinstance(trial.changes.get(field), int | float)
    ]


def _type(outcome: Outcome, place: Any) -> str | None:
    trials = (trial for trial in outcome.trials if trial.contest == place)
    return next((trial.run.spec.adapter.type for trial in trials if trial.run.spec.adapter), None)


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > 10 * min(values)


def _short(value: float) -> str:
    """Return a number of three digits with a prefix: 1,317,120 as 1.32M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _place(standing: Standing) -> tuple[str, str]:
    return standing.contest.base, standing.contest.task


def _together(found: Sequence[Standing]) -> list[list[Standing]]:
    return [[s for s in found if _place(s) == place] for place in Counter(map(_place, found))]


def _name(standing: Standing, found: Sequence[Standing]) -> str:
    several = len({_place(each) for each in found}) > 1
    return escape(shortened(standing.contest.words if several else standing.contest.method, 40))


def _value(standing: Standing, name: str) -> float:
    return standing.measures[name] * (100 if name in PERCENT else 1)


def _ends(standing: Standing, name: str) -> list[float]:
    value = standing.measures[name]
    return [end * (100 if name in PERCENT else 1) for end in standing.ends.get(name, (value, value))]


def _arms(value: float, ends: Sequence[float]) -> dict[str, Any]:
    up, down = [max(0.0, ends[1] - value)], [max(0.0, value - ends[0])]
    return {"array": up, "arrayminus": down, "thickness": 1.3, "width": 3, "color": INK}
