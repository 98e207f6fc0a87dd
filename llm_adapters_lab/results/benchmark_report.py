"""What a benchmark has found: methods in tiers, at their best settings, what they cost, and what they forget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from llm_adapters_lab.evaluation.statistics import hierarchical_bootstrap
from llm_adapters_lab.results.entry_groups import EntryGroup
from llm_adapters_lab.results.group_tests import AnswerStore, Rival
from llm_adapters_lab.results.overview import Overview, chance, overview
from llm_adapters_lab.runs.forecast.size import size_of
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.sweeps.benchmarks import Contest, Outcome, Trial

MEASURES = {
    "accuracy": "accuracy (%)",
    "forgetting": "rise of the loss on another text (nats per token)",
    "retained": "change of accuracy on other tasks (points)",
    "trainable": "trainable parameters",
    "flops": "training FLOPs",
    "seconds": "training time (s)",
    "memory": "peak memory (bytes)",
    "bytes": "size on disk (bytes)",
}
"""What can be compared beside each other, with units; more is better of the first and the third."""
BETTER_HIGH = ("accuracy", "retained")


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
        ended: number of runs of the search that its rule has ended.
        tokens: number of tokens that the search has learnt from.
        type: of the adapter.
        by_seed: the accuracy of each seed, from 0 to 1.
        measures: means over seeds of `MEASURES`, as far as known; accuracies from 0 to 1.
        ends: of measures that differ by seed; for the accuracy the 95 % interval over seeds and questions, for others
            the lowest and the highest.
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
    ended: int
    tokens: int
    type: str
    by_seed: tuple[float, ...]
    measures: Mapping[str, float]
    ends: Mapping[str, tuple[float, float]]
    rival: Rival | None

    @property
    def accuracy(self) -> float | None:
        """Mean over tasks and seeds, from 0 to 1; None without scores."""
        return self.measures.get("accuracy")

    def row(self) -> dict[str, Any]:
        """Return the same as plain data."""
        finite = {"loss": self.loss, "typical_loss": self.typical_loss}
        return {
            "base": self.contest.base,
            "task": self.contest.task,
            "method": self.contest.method,
            "adapter": self.type,
            "tier": self.tier,
            **self.measures,
            "ends": {name: list(ends) for name, ends in self.ends.items()},
            "by_seed": list(self.by_seed),
            "against_the_best": chance(self.rival) if self.rival else None,
            "setting": dict(self.setting),
            "edges": list(self.edges),
            "tried": self.tried,
            "failed": self.failed,
            "ended": self.ended,
            "search_tokens": self.tokens,
            **{name: loss if math.isfinite(loss) else None for name, loss in finite.items()},
        }


def standings(outcome: Outcome) -> list[Standing]:
    """Return all methods of a benchmark for each base and task: the best tier and its best method first.

    A method whose seeds differ much may stand above one of higher accuracy. Methods without scores come last.
    """
    found = []
    for places in outcome.benchmark.comparisons():
        runs = [run for place in places for run in outcome.finals.get(place, ()) if run.done]
        view = overview(runs, runs[0].spec.eval.tasks[: -len(outcome.benchmark.retained) or None]) if runs else None
        store = AnswerStore()
        own = [_standing(outcome, place, view, store) for place in places]
        found += sorted(own, key=lambda standing: (standing.tier or math.inf, -(standing.accuracy or 0.0)))
    return found


def verdicts(outcome: Outcome, found: Sequence[Standing] = ()) -> list[str]:
    """Return in a sentence for each base and task which methods are best, and which cannot be told apart.

    Args:
        outcome: of the benchmark.
        found: its standings, if they are known.
    """
    said, found = [], found or standings(outcome)
    seeds = len(outcome.benchmark.seeds)
    budget = f"a search of {outcome.benchmark.search.budget} each, {seeds} seed{'s' * (seeds > 1)}"
    for places in outcome.benchmark.comparisons():
        own = [s for s in found if s.contest in places and s.tier]
        if not own:
            continue
        first, *alike = [standing.contest.method for standing in own if standing.tier == 1]
        words = f"{first} has the highest accuracy"
        words += f"; not distinguishable from it: {', '.join(alike)}" if alike else ""
        words += f"; below: {', '.join(s.contest.method for s in own if s.tier != 1)}" if own[-1].tier != 1 else ""
        said.append(f"{places[0].task} over {places[0].base}: {words} ({budget}).")
    return said


def saved_tokens(outcome: Outcome) -> float:
    """Return which share of the tokens of the whole search the runs that a rule has ended were spared, from 0 to 1."""
    done = [trial for trial in outcome.trials if trial.ended is None and trial.tokens]
    whole = {trial.contest: trial.tokens for trial in done}
    planned = sum(whole.get(trial.contest, trial.tokens) for trial in outcome.trials)
    return 1 - sum(trial.tokens for trial in outcome.trials) / planned if planned else 0.0


def pareto(found: Sequence[Standing], x: str, y: str) -> list[Standing]:
    """Return the methods that no other one beats in one of two measures without being worse in the other."""
    known = [s for s in found if x in s.measures and y in s.measures]

    def worth(standing: Standing, name: str) -> float:
        return standing.measures[name] * (1 if name in BETTER_HIGH else -1)

    def beaten(one: Standing) -> bool:
        ours = worth(one, x), worth(one, y)
        return any(
            (theirs := (worth(s, x), worth(s, y))) != ours and theirs[0] >= ours[0] and theirs[1] >= ours[1]
            for s in known
        )

    return sorted((s for s in known if not beaten(s)), key=lambda s: s.measures[x])


def _at_edge(field: str, best: Trial, trials: Sequence[Trial]) -> bool:
    tried = [value for trial in trials if isinstance(value := trial.changes.get(field), int | float)]
    return bool(tried) and min(tried) < max(tried) and best.changes[field] in (min(tried), max(tried))


def _standing(outcome: Outcome, place: Contest, view: Overview | None, store: AnswerStore) -> Standing:
    best, trials = outcome.best(place), [trial for trial in outcome.trials if trial.contest == place]
    losses = [trial.loss for trial in trials if math.isfinite(trial.loss)]
    runs = [run for run in outcome.finals.get(place, ()) if run.done]
    group = next((g for g in view.ranked if {run.id for run in runs} & {*g.ids}), None) if view else None
    tier = next((n for n, t in enumerate(view.tiers, 1) if group in t.groups), None) if view and group else None
    searched = outcome.benchmark.ranges(place.method)
    by_seed = {name: values for name, values in _by_seed(outcome, place, runs).items() if values}
    ends = {name: (min(values), max(values)) for name, values in by_seed.items() if min(values) < max(values)}
    measures = {name: fmean(values) for name, values in by_seed.items()}
    if view and group:
        measures = {"accuracy": group.mean(view.tasks) or 0.0} | measures
        ends = {"accuracy": _interval(group, view.tasks, store)} | ends
    return Standing(
        contest=place,
        tier=tier,
        setting={name: value for name, value in best.changes.items() if name in searched} if best else {},
        loss=best.loss if best else math.inf,
        typical_loss=median(losses) if losses else math.inf,
        edges=tuple(name for name in searched if best and len(losses) > 2 and _at_edge(name, best, trials)),
        tried=len(trials),
        failed=len(trials) - len(losses),
        ended=sum(trial.ended is not None for trial in trials),
        tokens=sum(trial.tokens for trial in trials),
        type=next((t.run.spec.adapter.type for t in trials if t.run.folder.is_dir() and t.run.spec.adapter), ""),
        by_seed=group.means(view.tasks) if view and group else (),
        measures=measures,
        ends=ends,
        rival=next((rival for rival in view.rivals if group and rival.group.id == group.id), None) if view else None,
    )


def _by_seed(outcome: Outcome, place: Contest, runs: Sequence[Run]) -> dict[str, list[float]]:
    """Return the measures of a method, beside its accuracy, for each of its runs."""
    bare, others = outcome.bare.get(place.base), outcome.benchmark.retained
    base = bare.summary["scores"] if bare and bare.done and others else {}
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    each = size_of(runs[0].spec).flops if runs else 0
    for run in runs:
        summary = run.summary
        trained = summary["train"]
        found["trainable"].append(summary["trainable_parameters"])
        found["flops"].append(each * trained["tokens"])
        found["seconds"].append(trained["seconds"])
        found["memory"].append(trained["peak_memory_bytes"])
        found["bytes"].append(summary["adapter_bytes"])
        if text := summary.get("forgetting"):
            found["forgetting"].append(text["loss"] - text["base_loss"])
        if base:
            scores = summary["scores"]
            found["retained"].append(fmean(scores[name]["accuracy"] - base[name]["accuracy"] for name in others))
    return found


def _interval(group: EntryGroup, tasks: Sequence[str], store: AnswerStore) -> tuple[float, float]:
    return hierarchical_bootstrap([store.of(group, (task,)).right for task in tasks])
