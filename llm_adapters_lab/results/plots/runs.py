"""Figures of runs: what they cost, how they went and what they reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from llm_adapters_lab.results.appearance import looks
from llm_adapters_lab.results.comparison import leak, mean_accuracy, notes, task_names
from llm_adapters_lab.results.formatting import interval, percent
from llm_adapters_lab.results.plots.style import GRID, INK, new, say
from llm_adapters_lab.runs.record import Run

if TYPE_CHECKING:
    import plotly.graph_objects as go

DASHES, HATCHES = ("solid", "dash", "dot", "dashdot"), ("", "/", ".", "x")
BESIDE = ("middle left", "middle right", "bottom center", "top center")
SYMBOLS = ("circle", "diamond", "square", "triangle-up")
POINTS = 800
ROOM = 8
"""Maximum number of runs with names beside their points."""


def loss_curve(*runs: Run) -> go.Figure:
    """Show the loss of each step, and of the held-out rows if there are any.

    From 40 steps on the raw losses are drawn thin below their running mean. Learning rate, gradient norm and speed
    are in the hover text. Unfinished runs are shown as far as they are.

    Args:
        runs: one or more; a bare base has no curve.

    Returns:
        A line plot, loss in nats per label token over update steps.
    """
    smooth, held_out, seen = False, False, looks(runs)
    figure = new("Training loss", "", "update step", "loss (nats per label token)")
    for run in runs:
        look, steps = seen[run.id], list(run.events("Step"))
        if not steps:
            continue
        label, shared = escape(look.name), {"legendgroup": run.id, "showlegend": False}
        chosen = thinned(len(steps))
        kept = [steps[i] for i in chosen]
        at, losses = [s["step"] for s in kept], [s["loss"] for s in kept]
        if len(steps) >= 40:
            smooth = True
            thin = {"color": look.colour, "width": 1}
            figure.add_scatter(x=at, y=losses, mode="lines", line=thin, opacity=0.3, hoverinfo="skip", **shared)
            losses = running_mean([s["loss"] for s in steps], chosen, half=len(steps) // 40)
        figure.add_scatter(
            x=at,
            y=losses,
            mode="lines",
            name=label,
            legendgroup=run.id,
            line={"color": look.colour, "width": 2.2, "dash": DASHES[look.turn % 4]},
            customdata=[[s["learning_rate"], s["gradient_norm"], s["tokens_per_second"]] for s in kept],
            hovertemplate=f"<b>{label}</b>, step %{{x}}<br>loss %{{y:.3f}}<br>learning rate %{{customdata[0]:.2e}}"
            "<br>gradient norm %{customdata[1]:.2f}<br>%{customdata[2]:,.0f} tokens/s<extra></extra>",
        )
        if validated := list(run.events("Validated")):
            held_out = True
            figure.add_scatter(
                x=[v["step"] for v in validated],
                y=[v["loss"] for v in validated],
                mode="lines+markers",
                line={"color": look.colour, "width": 1, "dash": "dot"},
                marker={"size": 8, "symbol": f"{SYMBOLS[look.turn % 4]}-open", "line": {"width": 2}},
                hovertemplate=f"<b>{label}</b>, step %{{x}}<br>validation loss %{{y:.3f}}<extra></extra>",
                **shared,
            )
    words = "thin: raw, bold: smoothed" if smooth else "loss of each batch"
    figure.layout.title.subtitle.text = words + "; markers: validation loss" * held_out
    _rates(figure)
    return figure if figure.data else say(figure, "no training steps")


def _rates(figure: go.Figure) -> None:
    """Draw the learning rate of each step, which the hover text of a loss holds, in a panel of its own below."""
    for trace in [trace for trace in figure.data if trace.customdata is not None]:
        figure.add_scatter(
            x=trace.x,
            y=[rate for rate, *_ in trace.customdata],
            xaxis="x",
            yaxis="y2",
            mode="lines",
            legendgroup=trace.legendgroup,
            showlegend=False,
            line={"color": trace.line.color, "width": 1.5, "dash": trace.line.dash},
            hovertemplate=f"<b>{trace.name}</b>, step %{{x}}<br>learning rate %{{y:.3e}}<extra></extra>",
        )
    figure.update_yaxes(rangemode="tozero")
    below = {**figure.layout.yaxis.to_plotly_json(), "domain": [0, 0.17], "nticks": 3, "exponentformat": "e"}
    figure.update_layout(yaxis={"domain": [0.27, 1]}, yaxis2=below | {"title": {"text": "rate", "font": {"size": 13}}})
    figure.update_layout(height=480, xaxis_anchor="y2")


def accuracy(*runs: Run) -> go.Figure:
    """Show the accuracy of each run on each dataset, and the mean over datasets that all runs share.

    Args:
        runs: one or more scored runs.

    Returns:
        Grouped bars in percent with 95% Wilson intervals; lines mark guessing at random and always giving the most
        common answer, where those are known.
    """
    tasks, scores = task_names(runs), {run.id: run.summary.get("scores", {}) for run in runs}
    means = {run.id: mean_accuracy(run, tasks) for run in runs} if len(tasks) > 1 else {}
    leaks = {run.id: {task: leak(run.summary, task) for task in tasks} for run in runs}
    leaking = {task for given in leaks.values() for task in given if given[task]}
    words = "whiskers: 95 % interval" + "; *: test rows are in the training data" * bool(leaking)
    figure = new("Accuracy on each dataset", words, "", "accuracy (%)", 440)
    for name, look in looks(runs).items():
        rows = [(i, task, scores[name][task]) for i, task in enumerate(tasks) if task in scores[name]]
        label, mean = escape(look.name), means.get(name)
        hover = [
            f"<b>{escape(task)}</b>, {label}<br>{percent(s['accuracy'])} ({s['correct']} of {s['total']})"
            f"<br>95 % interval {interval(s['low'], s['high'])}"
            f"<br>{'<br>'.join(notes(s, leaks[name][task]))}<extra></extra>"
            for _, task, s in rows
        ]
        bars: dict[str, Any] = {"offsetgroup": name, "legendgroup": name, "name": label}
        bars["marker"] = {"color": look.colour, "pattern": {"shape": HATCHES[look.turn % 4]}}
        error, heights = _whiskers([s for _, _, s in rows]), [100 * s["accuracy"] for _, _, s in rows]
        figure.add_bar(x=[i for i, _, _ in rows], y=heights, error_y=error, hovertemplate=hover, **bars)
        if mean is not None:
            hover = [f"<b>mean of {len(tasks)} datasets</b>, {label}<br>{percent(mean)}<extra></extra>"]
            figure.add_bar(x=[len(tasks) + 0.25], y=[100 * mean], hovertemplate=hover, showlegend=False, **bars)
    for key, name, dash in (("chance", "chance level", "dot"), ("majority", "majority baseline", "solid")):
        levels = [next(s[task][key] for s in scores.values() if task in s) for task in tasks]
        known = [(i, 100 * level) for i, level in enumerate(levels) if level is not None]
        x = [x for i, _ in known for x in (i - 0.44, i + 0.44, None)]
        y = [y for _, level in known for y in (level, level, None)]
        line, template = {"color": INK, "width": 1.8, "dash": dash}, f"{name}: %{{y:.1f}} %<extra></extra>"
        figure.add_scatter(x=x, y=y, mode="lines", name=name, line=line, hovertemplate=template, visible=bool(x))
    places, names = [float(i) for i in range(len(tasks))], [escape(t) + " *" * (t in leaking) for t in tasks]
    if any(mean is not None for mean in means.values()):
        places, names = [*places, len(tasks) + 0.25], [*names, "<b>mean</b>"]
        figure.add_vline(x=len(tasks) - 0.375, line={"color": GRID, "width": 1})
    figure.update_layout(barmode="group", bargap=0.18)
    figure.update_xaxes(tickmode="array", tickvals=places, ticktext=names, showgrid=False)
    figure.update_yaxes(range=[0, 100])
    return figure if tasks else say(figure, "nothing was scored")


def parameters_against_accuracy(*runs: Run) -> go.Figure:
    """Show what each adapter costs in trained parameters and what it gains.

    Args:
        runs: scored runs; bare bases train nothing and appear as lines.

    Returns:
        A scatter plot, trainable parameters (logarithmic) against the mean accuracy over all datasets.
    """
    tasks, seen, sizes = task_names(runs), looks(runs), list[float]()
    words = f"mean over {len(tasks)} dataset{'s' * (len(tasks) != 1)}; dashed: base without adapter"
    figure = new("Accuracy vs trainable parameters", words, "trainable parameters", "mean accuracy (%)")
    crowded = len(runs) > ROOM  # names beside the points would cover each other
    for run in runs:
        look, mean, size = seen[run.id], mean_accuracy(run, tasks), run.summary.get("trainable_parameters")
        if mean is None:
            continue
        label = escape(look.name)
        if not size:
            figure.add_hline(y=100 * mean, line={"color": look.colour, "dash": "dash"}, annotation_text=label)
            continue
        sizes.append(math.log10(size))
        figure.add_scatter(
            x=[size],
            y=[100 * mean],
            name=label,
            mode="markers" if crowded else "markers+text",
            showlegend=crowded,
            text=[label],
            textposition=BESIDE[len(sizes) % 4],
            cliponaxis=False,
            marker={"color": look.colour, "size": 13, "symbol": SYMBOLS[look.turn % 4]},
            hovertemplate=f"<b>{label}</b><br>%{{x:,}} trainable parameters<br>accuracy %{{y:.1f}} %<extra></extra>",
        )
    if not sizes:
        return say(figure, "no scored adapter")
    low, high = min(sizes) - 0.35, max(sizes) + 0.35
    ticks = [m * 10**e for e in range(math.floor(low), math.ceil(high)) for m in (1, 2, 5)]
    figure.update_xaxes(type="log", range=[low, high], tickvals=ticks, tickformat="~s")
    figure.update_yaxes(range=[0, 100])
    return figure


def _whiskers(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    up, down = ([100 * abs(s[end] - s["accuracy"]) for s in scores] for end in ("high", "low"))
    return {"array": up, "arrayminus": down, "thickness": 1.2, "width": 2, "color": INK}


def thinned(count: int) -> list[int]:
    """Return about `POINTS` evenly spaced positions among `count`, with the first and the last."""
    return [*range(0, count - 1, math.ceil(count / POINTS)), count - 1] if count else []


def running_mean(values: Sequence[float], at: Sequence[int], half: int) -> list[float]:
    """Return the mean over `half` values to each side of every position in `at`.

    The window shrinks towards both ends, so that the curve neither lags nor misses the first and the last value.
    """
    spans = [(i, min(half, i, len(values) - 1 - i)) for i in at]
    return [math.fsum(values[i - h : i + h + 1]) / (2 * h + 1) for i, h in spans]
