"""Groups: runs that differ in nothing but the seed, as one result with its spread."""

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
    """One result: the same spec with one seed or several.

    Attributes:
        name: unique among the groups; not escaped.
        runs: of the group, by seed.
        seeds: of the runs.
        means: mean accuracy over the tasks, 0..1, for each run.
        low: lower end of the 95 % interval of the mean over tasks and seeds.
        high: its upper end. It tells how much other questions could change the mean; how much other seeds change it
            is to be seen from `means`.
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
    """Put together runs that differ in nothing but the seed, in order of appearance.

    Args:
        runs: those that are unfinished, or not scored on every task, are left out.
        tasks: what the mean is taken over; default: all tasks of the finished runs.

    Returns:
        The groups.
    """
    done = [run for run in {run.id: run for run in runs}.values() if run.done]
    chosen = list(tasks) if tasks is not None else task_names(done)
    together: dict[str, list[Run]] = {}
    for run in done:
        if mean_accuracy(run, chosen) is not None:
            together.setdefault(run.spec.model_copy(update={"seed": 0}).canonical(), []).append(run)
    members = [sorted(found, key=lambda run: run.spec.seed) for found in together.values()]
    names = looks([found[0] for found in members])
    return [_group(names[found[0].id].name, found, chosen) for found in members]


def _group(name: str, runs: Sequence[Run], tasks: Sequence[str]) -> Group:
    scores = [[run.summary["scores"][task] for run in runs] for task in tasks]
    # Seeds answer the same questions: they add no question, their answers are averaged.
    correct = [math.fsum(score["correct"] for score in found) / len(runs) for found in scores]
    low, high = mean_interval(correct, [min(score["total"] for score in found) for found in scores])
    means = tuple(mean_accuracy(run, tasks) or 0.0 for run in runs)
    return Group(name, tuple(runs), tuple(run.spec.seed for run in runs), means, low, high)


def seeds(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Group runs whose specs differ in nothing but the seed.

    Returns:
        One dict for each group of two or more runs and each task all of them have: name, task, runs, seeds, mean,
        deviation (sample standard deviation, n - 1), low and high (lowest and highest accuracy). Shares are 0..1.
    """
    groups: dict[str, list[Run]] = {}
    for run in {run.id: run for run in runs if run.done}.values():
        groups.setdefault(run.spec.model_copy(update={"seed": 0}).canonical(), []).append(run)
    result = []
    for group in groups.values():
        spec, scores = group[0].spec, [run.summary.get("scores", {}) for run in group]
        for task in scores[0] if len(group) > 1 else ():
            if not all(task in s for s in scores):
                continue
            values = [s[task]["accuracy"] for s in scores]
            result.append(
                {
                    "name": spec.adapter.type if spec.adapter else "base",
                    **{"task": task, "runs": len(group), "seeds": sorted(run.spec.seed for run in group)},
                    **{"mean": math.fsum(values) / len(values), "deviation": statistics.stdev(values)},
                    **{"low": min(values), "high": max(values)},
                }
            )
    return result
