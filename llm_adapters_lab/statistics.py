"""How sure an accuracy is, and what it has to beat."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from llm_adapters_lab.tasks import Example, Task

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


def options(instruction: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the answers one question offers.

    Args:
        instruction: the question; its "Answer format: a/b/c" or "true or false" says what it offers.
        labels: what to fall back on where the question says nothing.

    Returns:
        The answers as written in the question, or `labels`.
    """
    listed = _FORMAT.search(instruction)
    if listed:
        return tuple(listed[1].split("/"))
    if "true or false" in instruction.lower():
        return "true", "false"
    return tuple(labels)


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
    return sum(1 / len(options(row.instruction, task.labels)) for row in examples) / len(examples)


def majority(golds: Sequence[str]) -> float:
    """Return the accuracy of always giving the most common gold answer.

    Args:
        golds: gold answers of the scored rows.

    Returns:
        The share of that answer, from 0 to 1; 0 for no rows.
    """
    return Counter(golds).most_common(1)[0][1] / len(golds) if golds else 0.0
