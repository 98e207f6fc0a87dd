"""Group runs that differ only in the seed: means, intervals and spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_adapters_lab.evaluation.statistics import mean_interval
from llm_adapters_lab.results.appearance import looks
from llm_adapters_lab.results.comparison import mean_accuracy, task_names
from llm_adapters_lab.runs.record import Run


@dataclass(frozen=True)
class Group:
    """The runs of one spec with one or several seeds.

    Attributes:
        name: unique among the groups; not escaped.
        runs: of the group, by seed.
        seeds: of the runs.
        means: mean accuracy over the tasks, 0..1, for each run.
        low: lower end of the 95% interval of the mean over tasks and seeds.
        high: its upper end. The interval covers other questions; `means` shows the effect of other seeds.
    """

    name: str
    runs: tuple[Run, ...]
    seeds: tuple[int, ...]
    means: tuple[float, ...]
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Mean over tasks and seeds, 0..1."""
        return math.fsum(self.means) / len(self.means)


def groups(runs: Sequence[Run], tasks: Sequence[str] | None = None) -> list[Group]:
    """Group runs that differ only in the seed, in order of appearance.

    Args:
        runs: those that are unfinished, or not scored on every task, are left out.
        tasks: what the mean is taken over; default: all tasks of the finished runs.
    """
    done = [run for run in runs if run.done]
    chosen = list(tasks) if tasks is not None else task_names(done)
    members = _by_spec([run for run in done if mean_accuracy(run, chosen) is not None])
    names = looks([found[0] for found in members])
    return [_group(names[found[0].id].name, found, chosen) for found in members]


def seeds(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the spread of scores over runs that differ only in the seed.

    Returns:
        One dict for each group of two or more runs and each task all of them have: name, task, runs, seeds, mean,
        deviation (sample standard deviation, n - 1), low and high (lowest and highest accuracy). Shares are 0..1.
    """
    result = []
    for group in _by_spec([run for run in runs if run.done]):
        spec, scores = group[0].spec, [run.summary.get("scores", {}) for run in group]
        shared = [task for task in scores[0] if all(task in found for found in scores)]
        for task in shared if len(group) > 1 else ():
            values = [found[task]["accuracy"] for found in scores]
            row = {"name": spec.adapter.type if spec.adapter else "base", "task": task, "runs": len(group)}
            row |= {"seeds": [run.spec.seed for run in group], "mean": math.fsum(values) / len(values)}
            row |= {"deviation": statistics.stdev(values), "low": min(values), "high": max(values)}
            result.append(row)
    return result


def _by_spec(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs grouped by spec without its seed, each group by seed."""
    found: dict[str, dict[str, Run]] = {}
    for run in runs:
        found.setdefault(run.spec.model_copy(update={"seed": 0}).canonical(), {})[run.id] = run
    return [sorted(group.values(), key=lambda run: run.spec.seed) for group in found.values()]


def _group(name: str, runs: Sequence[Run], tasks: Sequence[str]) -> Group:
    scores = [[run.summary["scores"][task] for run in runs] for task in tasks]
    # All seeds answer the same questions, so their answers are averaged: they are no further questions.
    correct = [math.fsum(score["correct"] for score in found) / len(runs) for found in scores]
    low, high = mean_interval(correct, [min(score["total"] for score in found) for found in scores])
    means = tuple(mean_accuracy(run, tasks) or 0.0 for run in runs)
    return Group(name, tuple(runs), tuple(run.spec.seed for run in runs), means, low, high)
