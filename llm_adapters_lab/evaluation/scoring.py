"""From predictions to scores; no model is needed, so that stored answers can be read again by another rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llm_adapters_lab.evaluation.statistics import chance, majority, wilson
from llm_adapters_lab.tasks.base import Example, Rule, Task

if TYPE_CHECKING:
    pass

RULES: dict[str, Rule] = {"lab": "lab", "paper": "original", "options": "lab"}
"""The extraction rule of each protocol."""


def score(
    task: Task,
    predictions: Sequence[dict[str, Any]],
    examples: Sequence[Example],
    *,
    protocol: str = "lab",
    rule: Rule | None = None,
    shots: int = 0,
) -> dict[str, Any]:
    """Count predictions into a score.

    Args:
        task: what was asked.
        predictions: one for each row, in any order.
        examples: the rows.
        protocol: lab, paper or options.
        rule: how answers were read; default: that of the protocol.
        shots: solved examples before every question.

    Returns:
        protocol, extraction and shots as given; what `count` counts; chance: of guessing among the options, or None
        for numbers.
    """
    named = {"protocol": protocol, "extraction": rule or RULES[protocol], "shots": shots}
    return named | count(predictions) | {"chance": chance(task, examples)}


def count(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count predictions.

    Returns:
        accuracy, correct, total; low and high of its 95 % Wilson interval; majority (always saying the most common
        answer); in_format (share of texts from which an answer of the asked form could be read, None where nothing was
        generated); by_label and by_text (accuracy of choosing the likeliest label, or the likeliest option text after
        the bare question; None where options were not scored); too_long (rows that do not fit the model's context
        with their answer: not asked, counted as wrong). Shares are between 0 and 1.
    """
    correct, total = sum(p["correct"] for p in predictions), len(predictions)
    low, high = wilson(correct, total)
    asked = [p for p in predictions if p.get("text") is not None]
    return {
        "accuracy": correct / total,
        "correct": correct,
        "total": total,
        "low": low,
        "high": high,
        "majority": majority([p["gold"] for p in predictions]),
        "in_format": sum(p["extracted"] is not None for p in asked) / len(asked) if asked else None,
        "by_label": _likeliest(predictions, "label"),
        "by_text": _likeliest(predictions, "text"),
        "too_long": sum(p.get("too_long", False) for p in predictions),
    }


def likeliest(scores: dict[str, float]) -> str:
    """Return the option with the highest log-likelihood; of equals the first."""
    return max(scores, key=scores.__getitem__)


def _likeliest(predictions: Sequence[dict[str, Any]], kind: str) -> float | None:
    scored = [(p["options"][kind], p["gold"]) for p in predictions if p.get("options", {}).get(kind)]
    # Rows that were not asked for their length would have had options, too: they count as wrong here as well.
    asked = len(scored) + sum(p.get("too_long", False) for p in predictions)
    return sum(likeliest(given) == gold for given, gold in scored) / asked if scored else None


def judge(task: Task, prediction: dict[str, Any], rule: Rule) -> dict[str, Any]:
    """Return a prediction with `extracted` and `correct` read from its `text` by a rule."""
    extracted = task.extract(prediction["text"], rule) if prediction["text"] is not None else None
    correct = extracted is not None and task.same(extracted, prediction["gold"])
    return {**prediction, "extracted": extracted, "correct": correct}
