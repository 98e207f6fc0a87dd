"""What a benchmark has found: methods in tiers, at their best settings, and how much they depend on these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import TYPE_CHECKING, Any

from llm_adapters_lab.results.appearance import colour
from llm_adapters_lab.results.group_tests import Rival
from llm_adapters_lab.results.overview import Overview, overview
from llm_adapters_lab.results.plots.runs import DASHES
from llm_adapters_lab.results.plots.style import new, say
from llm_adapters_lab.sweeps.benchmarks import Contest, Outcome, Trial

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Standing:
    """A method in a benchmark.

    Attributes:
        contest: its place.
        tier: from 1; methods of a tier are not distinguishable from its best. None without scores.
        setting: what the search has chosen, by dotted field.
        loss: the lowest validation loss of the search, in nats.
        typical_loss: the median of the search: how much is lost by a setting that is not searched for.
        edges: searched fields of which the smallest or largest value that was tried is the best: better ones may lie
            beyond.
        tried: number of different settings that were tried, which is less than asked for if a range has few values.
        failed: number of runs of the search that have no loss.
        accuracy: mean over tasks and seeds, from 0 to 1; None without scores.
        ends: its 95 % interval over the questions.
        by_seed: the accuracy of each seed.
        trainable: number of parameters.
        seconds: of a training, the mean over seeds.
        rival: how it compares with the best method of the same base and task; None for that one.
    """

    contest: Contest
    tier: int | None
    setting: Mapping[str, Any]
    loss: float
    typical_loss: float
    edges: tuple[str, ...]
    tried: int
    failed: int
    accuracy: float | None
    ends: tuple[float, float]
    by_seed: tuple[float, ...]
    trainable: int
    seconds: float
    rival: Rival | None


def standings(outcome: Outcome) -> list[Standing]:
    """Return all methods of a benchmark, the best first for each base and task; those without scores come last."""
    found = []
    for base, task in dict.fromkeys((contest.base, contest.task) for contest in outcome.benchmark.contests()):
        places = [c for c in outcome.benchmark.contests() if (c.base, c.task) == (base, task)]
        runs = [run for place in places for run in outcome.finals.get(place, ()) if run.done]
        view = overview(runs) if runs else None
        own = [_standing(outcome, place, view) for place in places]
        found += sorted(own, key=lambda standing: (standing.tier is None, -(standing.accuracy or 0.0)))
    return found


def verdicts(outcome: Outcome) -> list[str]:
    """Return in a sentence for each base and task which methods are best, and which cannot be told apart."""
    said = []
    for base, task in dict.fromkeys((contest.base, contest.task) for contest in outcome.benchmark.contests()):
        own = [s for s in standings(outcome) if (s.contest.base, s.contest.task) == (base, task) and s.tier]
        if not own:
            continue
        first, *alike = [standing.contest.method for standing in own if standing.tier == 1]
        words = f"{first} has the highest accuracy"
        words += f"; not distinguishable from it: {', '.join(alike)}" if alike else ""
        words += f"; below: {', '.join(s.contest.method for s in own if s.tier != 1)}" if own[-1].tier != 1 else ""
        budget = f"a search of {outcome.benchmark.search.runs} runs each, {len(outcome.benchmark.seeds)} seeds"
        said.append(f"{task} over {base}: {words} ({budget}).")
    return said


def search_figure(outcome: Outcome, field: str = "train.learning_rate") -> go.Figure:
    """Show the validation loss of the search over one of its fields, a line for each method.

    Args:
        outcome: of the benchmark.
        field: dotted; a number.
    """
    words = "validation loss of each run; the lowest of a line is scored"
    title = f"Search over {escape(field.rpartition('.')[2].replace('_', ' '))}"
    figure = new(title, words, escape(field), "loss (nats)")
    turns: dict[str, int] = {}
    for place in outcome.benchmark.contests():
        own = sorted(
            (float(trial.changes[field]), trial.loss)
            for trial in outcome.trials
            if trial.contest == place
            and math.isfinite(trial.loss)
            and isinstance(trial.changes.get(field), int | float)
        )
        if not own:
            continue
        adapter = next(trial.run.spec.adapter for trial in outcome.trials if trial.contest == place)
        shade = colour(adapter.type if adapter else None)
        turn = turns[shade] = turns.get(shade, -1) + 1
        several = len(outcome.benchmark.contests()) > len(outcome.benchmark.methods)
        figure.add_scatter(
            x=[x for x, _ in own],
            y=[y for _, y in own],
            mode="lines+markers",
            name=escape(place.words if several else place.method),
            line={"color": shade, "width": 2, "dash": DASHES[turn % 4]},
            hovertemplate=f"{escape(field)} %{{x:.3g}}<br>loss %{{y:.4f}}",
        )
    figure.update_xaxes(type="log")
    return figure if figure.data else say(figure, f"no run has searched {escape(field)}")


def _at_edge(field: str, best: Trial, trials: Sequence[Trial]) -> bool:
    tried = [value for trial in trials if isinstance(value := trial.changes.get(field), int | float)]
    return bool(tried) and min(tried) < max(tried) and best.changes[field] in (min(tried), max(tried))


def _standing(outcome: Outcome, place: Contest, view: Overview | None) -> Standing:
    best, trials = outcome.best(place), [trial for trial in outcome.trials if trial.contest == place]
    losses = [trial.loss for trial in trials if math.isfinite(trial.loss)]
    ids = {run.id for run in outcome.finals.get(place, ()) if run.done}
    group = next((g for g in view.ranked if ids & {*g.ids}), None) if view else None
    tasks = view.tasks if view else ()
    tier = next((n for n, t in enumerate(view.tiers, 1) if group in t.groups), None) if view and group else None
    rivals = view.rivals if view else ()
    searched = outcome.benchmark.ranges(place.method)
    return Standing(
        contest=place,
        tier=tier,
        setting={name: value for name, value in best.changes.items() if name in searched} if best else {},
        loss=best.loss if best else math.inf,
        typical_loss=median(losses) if losses else math.inf,
        edges=tuple(name for name in searched if best and len(losses) > 2 and _at_edge(name, best, trials)),
        tried=len(trials),
        failed=len(trials) - len(losses),
        accuracy=group.mean(tasks) if group else None,
        ends=group.interval(tasks) if group else (0.0, 0.0),
        by_seed=group.means(tasks) if group else (),
        trainable=round((group.value("trainable") if group else None) or 0),
        seconds=(group.value("seconds") if group else None) or 0.0,
        rival=next((rival for rival in rivals if group and rival.group.id == group.id), None),
    )
