"""How sure an accuracy is, and what it has to beat."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from llm_adapters_lab.tasks.base import Example, Task

_FORMAT = re.compile(r"Answer format:\s*(\S+)")


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Return the Wilson score interval of an accuracy.

    With p = correct / total, n = total and z the two-sided normal quantile of `confidence`:
    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        correct: right answers, 0 to `total`.
        total: questions; with 0 nothing is known, and the interval is (0, 1).
        confidence: share of such intervals that hold the true accuracy, between 0 and 1.

    Returns:
        (low, high), both within 0 to 1.

    Raises:
        ValueError: a number is out of its range.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    if total == 0 and correct == 0:
        return 0.0, 1.0
    interval = binomtest(correct, total).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(correct: Sequence[float], totals: Sequence[int], confidence: float = 0.95) -> tuple[float, float]:
    r"""Return an interval of the unweighted mean of the accuracies of several tasks.

    With T tasks, z the normal quantile, n = total + z²/T and p = (correct + z²/2T) / n of each task:
    mean(p) ± z √(Σ p(1-p)/n) / T. For one task these are about the ends that `wilson` gives.

    Args:
        correct: right answers of each task; a mean over seeds need not be whole.
        totals: questions of each task, 1 or more.
        confidence: share of such intervals that hold the true mean, between 0 and 1.

    Returns:
        (low, high), both within 0 to 1; (0, 1) for no tasks.

    Source: Agresti and Coull (1998), "Approximate is better than 'exact'", their added answers spread over the tasks.
    """
    from scipy.stats import norm

    if not totals:
        return 0.0, 1.0
    count, z = len(totals), float(norm.ppf(0.5 + confidence / 2))
    sizes = [total + z * z / count for total in totals]
    shares = [(c + z * z / 2 / count) / n for c, n in zip(correct, sizes, strict=True)]
    middle = math.fsum(shares) / count
    half = z * math.sqrt(math.fsum(p * (1 - p) / n for p, n in zip(shares, sizes, strict=True))) / count
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value that two models are equally often right where only one of them is.

    Under that hypothesis the items that only the first got right are binomial with probability 1/2 among the items on
    which the two differ; the test is exact.

    Args:
        only_first: items right in the first run and wrong in the second.
        only_second: the reverse.

    Returns:
        A probability; 1 where the runs agree on every item.

    Source: McNemar (1947), "Note on the sampling error of the difference between correlated proportions".
    """
    from scipy.stats import binomtest

    differing = only_first + only_second
    return float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0


def bootstrap_difference(
    first: Sequence[bool], second: Sequence[bool], *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of accuracy(first) - accuracy(second), items drawn in pairs.

    Args:
        first: whether the first run is right, item by item.
        second: the same of the second run, on the same items in the same order.
        confidence: share of the draws inside the interval.
        draws: resamples.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        (low, high), each from -1 to 1; (-1, 1) for no items.

    Raises:
        ValueError: the runs do not have the same number of items.

    Source: Efron (1979), "Bootstrap methods: another look at the jackknife".
    """
    import numpy as np

    if len(first) != len(second):
        raise ValueError(f"Paired items are needed; given were {len(first)} and {len(second)}.")
    if not first:
        return -1.0, 1.0
    total = len(first)
    won = sum(a and not b for a, b in zip(first, second, strict=True))
    lost = sum(b and not a for a, b in zip(first, second, strict=True))
    # An item counts +1, 0 or -1, so that a resample is one multinomial draw.
    counts = np.random.default_rng(seed).multinomial(
        total, [won / total, lost / total, 1 - (won + lost) / total], draws
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / total, [tail, 1 - tail])
    return float(low), float(high)


def options(example: Example, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the answers one question offers.

    Args:
        example: the question: the options that its loader has found, else what its "Answer format: a/b/c" offers, as
            far as that names labels of the task.
        labels: of the task; all of them where the question says nothing that can be understood.

    Returns:
        The answers as the task spells them.
    """
    if example.options:
        return tuple(label for label, _ in example.options)
    known, listed = {label.casefold(): label for label in labels}, _FORMAT.search(example.instruction)
    found = [known.get(part.strip(" .,;").casefold()) for part in listed[1].split("/")] if listed else []
    named = tuple(label for label in found if label is not None)
    return named if len(named) == len(found) > 1 else tuple(labels)


def chance(task: Task, examples: Sequence[Example]) -> float | None:
    """Return the accuracy of guessing evenly: the mean over rows of 1 / number of options.

    Args:
        task: says whether answers are chosen or computed.
        examples: the rows that are scored.

    Returns:
        A share from 0 to 1, or None for numbers and for no rows.
    """
    if not task.labels or not examples:
        return None
    return sum(1 / len(options(row, task.labels)) for row in examples) / len(examples)


def majority(golds: Sequence[str]) -> float:
    """Return the accuracy of always giving the most common gold answer.

    Args:
        golds: gold answers of the scored rows.

    Returns:
        The share of that answer, from 0 to 1; 0 for no rows.
    """
    return Counter(golds).most_common(1)[0][1] / len(golds) if golds else 0.0
