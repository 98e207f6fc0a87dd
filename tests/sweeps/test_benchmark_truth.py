"""Simulated benchmarks with planted truths: equal methods must come out equal, and a gain of five points be found.

Answers are drawn like those that `docs/benchmark/nano-all.json` keeps: every question is as hard as it was for the five
seeds of a method, and every seed is as much better or worse as seeds were. Nothing is trained.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llm_adapters_lab.evaluation.statistics import hierarchical_bootstrap
from llm_adapters_lab.results.group_tests import Answers, tiers

KEPT = json.loads((Path(__file__).parents[2] / "docs/benchmark/nano-all.json").read_text(encoding="utf-8"))
KEPT_SEEDS = len(KEPT["benchmark"]["seeds"])
BENCHMARKS, SEEDS = 200, 6
"""Number of simulated benchmarks, and of seeds in each: with 500 questions, the budget that docs/sweeps.md gives for a
difference of five points. With five seeds it is found in 69 %."""
METHODS = {f"{row['method']} on mini-math over nano": row for row in KEPT["standings"] if row["accuracy"] > 0.7}


def hardness(words: str) -> Any:
    """Return the probability of a right answer to each question, from how many seeds were right."""
    return (np.array([*map(int, KEPT["seeds_right"][words])]) + 0.5) / (KEPT_SEEDS + 1)


def spread() -> float:
    """Return the median deviation of the accuracies of seeds, beyond what chance makes of their answers."""
    found = []
    for words, row in METHODS.items():
        p = np.array([*map(int, KEPT["seeds_right"][words])]) / KEPT_SEEDS
        by_chance = float((p * (1 - p)).sum()) * KEPT_SEEDS / (KEPT_SEEDS - 1) / len(p) ** 2
        found.append(float(np.var(row["by_seed"], ddof=1)) - by_chance)
    return math.sqrt(max(0.0, float(np.median(found))))


SPREAD = spread()


def answers(rng: np.random.Generator, difficulty: Any, gain: float = 0.0) -> Answers:
    """Draw the answers of a method whose accuracy is higher by `gain` than the questions are easy."""
    luck = rng.normal(0, SPREAD, (SEEDS, 1))
    right = rng.random((SEEDS, len(difficulty))) < np.clip(shifted(difficulty, gain) + luck, 0, 1)
    return Answers(np.arange(len(difficulty), dtype=np.int32), right)


def shifted(difficulty: Any, gain: float) -> Any:
    """Move all questions by the same amount on the scale of logits, so that the mean moves by `gain`."""
    logits, low, high = np.log(difficulty / (1 - difficulty)), -10.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        mean = (1 / (1 + np.exp(-logits - middle))).mean()
        low, high = (middle, high) if mean < difficulty.mean() + gain else (low, middle)
    return 1 / (1 + np.exp(-logits - low))


def simulate(gains: list[float]) -> list[list[set[int]]]:
    """Return the tiers of simulated benchmarks, each as sets of numbers of methods."""
    found = []
    for number in range(BENCHMARKS):
        rng = np.random.default_rng(number)
        difficulty = hardness([*METHODS][number % len(METHODS)])
        difficulty = rng.choice(difficulty, len(difficulty))
        drawn = {str(i): answers(rng, difficulty, gain) for i, gain in enumerate(gains)}
        ranked: Any = sorted(drawn, key=lambda name: -drawn[name].right.mean())
        groups: Any = [SimpleNamespace(id=name) for name in ranked]
        found.append([{int(group.id) for group in tier.groups} for tier in tiers(groups, drawn)])
    return found


@pytest.mark.parametrize("methods", [2, 6])
def test_equal_methods_are_not_distinguishable(methods: int) -> None:
    alike = sum(len(found) == 1 for found in simulate([0.0] * methods))
    assert alike / BENCHMARKS >= 0.95


def test_a_gain_of_five_points_is_found() -> None:
    right = sum(found[0] == {1} for found in simulate([0.0, 0.05]))
    assert right / BENCHMARKS >= 0.8


def test_the_interval_over_seeds_and_questions_covers_the_true_accuracy() -> None:
    covered = widths = only = 0.0
    for number in range(BENCHMARKS):
        rng = np.random.default_rng(number)
        every = hardness(next(iter(METHODS)))
        difficulty = rng.choice(every, len(every))
        right = answers(rng, difficulty).right
        half = len(difficulty) // 2
        low, high = hierarchical_bootstrap([right[:, :half], right[:, half:]], draws=500)
        covered += low <= every.mean() <= high
        widths += high - low
        only += 2 * 1.96 * float(right.mean(0).std()) / len(difficulty) ** 0.5
    assert covered / BENCHMARKS >= 0.9  # six seeds are few: see the docstring
    assert widths > only  # questions alone would be too sure
