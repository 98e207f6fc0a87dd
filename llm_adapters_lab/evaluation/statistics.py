"""Confidence intervals and tests of accuracies, and the baselines to compare them with."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

from llm_adapters_lab.tasks.base import Example, Task

if TYPE_CHECKING:
    import numpy.typing as npt

_FORMAT = re.compile(r"Answer format:\s*(\S+)")
# `NormalDist` is off by one in the last digit, which would change saved intervals.
_QUANTILE_95 = 1.959963984540054


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Return the Wilson score interval of an accuracy.

    With p = correct / total, n = total and z the two-sided normal quantile of `confidence`:
    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        correct: number of correct answers, 0 to `total`.
        total: number of questions; with 0 the interval is (0, 1).
        confidence: probability that such an interval contains the true accuracy, between 0 and 1.

    Returns:
        (low, high), both between 0 and 1.

    Raises:
        ValueError: an argument is out of its range.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= correct <= total:
        raise ValueError(f"correct must be between 0 and total; given: {correct} of {total}.")
    z = _quantile(confidence)
    if total == 0:
        return 0.0, 1.0
    share, scale = correct / total, 2 * (total + z * z)
    centre = (2 * total * share + z * z) / scale
    reach = z / scale * math.sqrt(4 * total * share * (1 - share) + z * z)
    return centre - reach if correct else 0.0, centre + reach if correct < total else 1.0


def mean_interval(correct: Sequence[float], totals: Sequence[int], confidence: float = 0.95) -> tuple[float, float]:
    r"""Return an interval of the unweighted mean of the accuracies of several tasks.

    With T tasks, z the normal quantile, n = total + z²/T and p = (correct + z²/2T) / n of each task:
    mean(p) ± z √(Σ p(1-p)/n) / T. For one task this is close to `wilson`.

    Args:
        correct: number of correct answers to each task; a mean over seeds may be fractional.
        totals: number of questions of each task, 1 or more.
        confidence: probability that such an interval contains the true mean, between 0 and 1.

    Returns:
        (low, high), both between 0 and 1; (0, 1) for no tasks.

    Source: Agresti and Coull (1998), "Approximate is better than 'exact'", their added answers spread over the tasks.
    """
    if not totals:
        return 0.0, 1.0
    count, z = len(totals), _quantile(confidence)
    sizes = [total + z * z / count for total in totals]
    shares = [(c + z * z / 2 / count) / n for c, n in zip(correct, sizes, strict=True)]
    middle = math.fsum(shares) / count
    half = z * math.sqrt(math.fsum(p * (1 - p) / n for p, n in zip(shares, sizes, strict=True))) / count
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test that two models have the same accuracy.

    Under this hypothesis the number of items that only the first got right is binomial with probability 1/2 among the
    items on which the two differ.

    Args:
        only_first: number of items correct in the first run and wrong in the second.
        only_second: the reverse.

    Returns:
        A probability; 1 where the runs agree on every item.

    Source: McNemar (1947), "Note on the sampling error of the difference between correlated proportions".
    """
    differing = only_first + only_second
    if only_first == only_second:
        return 1.0
    ways = tail = 1  # binomial coefficient, and the sum of all so far
    for chosen in range(min(only_first, only_second)):
        ways = ways * (differing - chosen) // (chosen + 1)
        tail += ways
    return 2 * tail / (1 << differing)


def two_shares(correct: int, total: int, other_correct: int, other_total: int) -> float:
    """Return the two-sided p-value that two shares of independent items are equal: the z-test with pooled variance.

    Args:
        correct: number of right items in the first sample.
        total: number of items in it.
        other_correct: the same of the second sample.
        other_total: the same of the second sample.

    Returns:
        A probability; 1 if both shares are 0 or both are 1.
    """
    pooled = (correct + other_correct) / (total + other_total)
    variance = pooled * (1 - pooled) * (1 / total + 1 / other_total)
    if variance == 0:
        return 1.0
    return math.erfc(abs(correct / total - other_correct / other_total) / math.sqrt(2 * variance))


def bootstrap_difference(
    first: Sequence[bool], second: Sequence[bool], *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of accuracy(first) - accuracy(second), resampling items in pairs.

    Args:
        first: whether the first run is correct, item by item.
        second: the same for the second run, on the same items in the same order.
        confidence: share of the resamples inside the interval.
        draws: number of resamples.
        seed: of the resampling.

    Returns:
        (low, high), both between -1 and 1; (-1, 1) for no items.

    Raises:
        ValueError: the runs differ in their number of items.

    Source: Efron (1979), "Bootstrap methods: another look at the jackknife".
    """
    import numpy as np

    if len(first) != len(second):
        raise ValueError(f"The runs must have the same items; given: {len(first)} and {len(second)} items.")
    if not first:
        return -1.0, 1.0
    total = len(first)
    won = sum(a and not b for a, b in zip(first, second, strict=True))
    lost = sum(b and not a for a, b in zip(first, second, strict=True))
    # An item counts +1, 0 or -1, so a resample is one multinomial draw.
    counts = np.random.default_rng(seed).multinomial(
        total, [won / total, lost / total, 1 - (won + lost) / total], draws
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / total, [tail, 1 - tail])
    return float(low), float(high)


def hierarchical_bootstrap(
    right: Sequence[npt.ArrayLike], *, confidence: float = 0.95, draws: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean accuracy over tasks, resampling seeds and questions.

    Each resample draws seeds, the same ones for all tasks, and of every task questions, the same ones for all seeds.
    With few seeds it is too narrow: the variance over S seeds is estimated (S - 1) / S times as large as it is. If all
    answers are right, or all wrong, resampling shows no spread, and `mean_interval` is returned.

    Args:
        right: of each task, whether the answers are right, of shape (seeds, questions).
        confidence: share of the resamples inside the interval.
        draws: number of resamples.
        seed: of the resampling.

    Returns:
        (low, high), both between 0 and 1; (0, 1) for no questions.

    Raises:
        ValueError: the tasks differ in their number of seeds.

    Source: Efron and Tibshirani (1993), "An introduction to the bootstrap"; Owen (2007), "The pigeonhole bootstrap".
    """
    import numpy as np

    tables = [np.asarray(table, float) for table in right]
    if len({len(table) for table in tables}) > 1:
        raise ValueError(f"All tasks need the same seeds; given: {', '.join(str(len(table)) for table in tables)}.")
    if not tables or any(table.size == 0 for table in tables):
        return 0.0, 1.0
    if all(table.min() == table.max() for table in tables):
        return mean_interval([table.sum() / len(table) for table in tables], [table.shape[1] for table in tables])
    rng, seeds = np.random.default_rng(seed), len(tables[0])
    shares = rng.multinomial(seeds, [1 / seeds] * seeds, draws) / seeds
    means = np.zeros(draws)
    for table in tables:
        items = table.shape[1]
        counts = rng.multinomial(items, [1 / items] * items, draws) / items
        means += np.einsum("ds,si,di->d", shares, table, counts, optimize=True) / len(tables)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def student(t: float, freedom: int) -> float:
    """Return the two-sided p-value of Student's t distribution.

    Args:
        t: the statistic.
        freedom: degrees of freedom, at least 1.

    Returns:
        The probability of a value at least as far from zero.

    Source: Abramowitz and Stegun (1964), "Handbook of Mathematical Functions", 26.7.3 and 26.7.4.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    square = math.cos(angle) ** 2
    even = freedom % 2 == 0
    term = inside = (1.0 if even else math.cos(angle)) if freedom > 1 else 0.0
    for i in range(2 if even else 3, freedom - 1, 2):
        term *= square * (i - 1) / i
        inside += term
    inside = inside * math.sin(angle)
    return max(0.0, 1 - (inside if even else (angle + inside) * 2 / math.pi))


@lru_cache(maxsize=4096)
def student_quantile(freedom: int, confidence: float = 0.95) -> float:
    """Return the value that |t| of Student's distribution exceeds with probability 1 - `confidence`."""
    low, high = 0.0, 1.0
    while student(high, freedom) > 1 - confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student(middle, freedom) > 1 - confidence else (low, middle)
    return high


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for testing several hypotheses at once, in the given order.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    corrected, largest = [0.0] * len(values), 0.0
    for place, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - place) * values[i]))
        corrected[i] = largest
    return corrected


def options(example: Example, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the answers that a question offers, as the task spells them.

    Args:
        example: the question, with options found by its loader, or with "Answer format: a/b/c" in its text.
        labels: of the task, returned where the question names none of them.
    """
    if example.options:
        return tuple(label for label, _ in example.options)
    known, listed = {label.casefold(): label for label in labels}, _FORMAT.search(example.instruction)
    found = [known.get(part.strip(" .,;").casefold()) for part in listed[1].split("/")] if listed else []
    named = tuple(label for label in found if label is not None)
    return named if len(named) == len(found) > 1 else tuple(labels)


def chance(task: Task, examples: Sequence[Example]) -> float | None:
    """Return the accuracy of uniform guessing, the mean over rows of 1 / number of options.

    Returns:
        A share from 0 to 1; None for tasks without options and for no rows.
    """
    if not task.labels or not examples:
        return None
    return sum(1 / len(options(row, task.labels)) for row in examples) / len(examples)


def majority(golds: Sequence[str]) -> float:
    """Return the accuracy of always giving the most common of the gold answers, from 0 to 1; 0 for no rows."""
    return Counter(golds).most_common(1)[0][1] / len(golds) if golds else 0.0


def _quantile(confidence: float) -> float:
    """Return the two-sided quantile of the normal distribution."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; given: {confidence}.")
    return _QUANTILE_95 if confidence == 0.95 else NormalDist().inv_cdf(0.5 + confidence / 2)
