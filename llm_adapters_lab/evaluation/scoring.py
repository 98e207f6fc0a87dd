"""Scores of predictions; no model is needed, so stored answers can be scored again by another extraction rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_adapters_lab.evaluation.statistics import chance, majority, wilson
from llm_adapters_lab.tasks.base import Example, Rule, Task

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
    """Aggregate the predictions of a task into a score.

    Args:
        task: the task.
        predictions: one for each row, in any order.
        examples: the rows.
        protocol: lab, paper or options.
        rule: extraction of the answers; default: that of the protocol.
        shots: number of solved examples before every question.

    Returns:
        protocol, extraction and shots as given; the keys of `count`; chance: the accuracy of guessing among the
        options, or None for numbers.
    """
    settings = {"protocol": protocol, "extraction": rule or RULES[protocol], "shots": shots}
    return settings | count(predictions) | {"chance": chance(task, examples)}


def count(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the accuracy of predictions with what it has to be compared to.

    Returns:
        accuracy, correct, total; low and high of its 95 % Wilson interval; majority (accuracy of the most common gold
        answer); in_format (share of texts from which an answer could be extracted, None where nothing was generated);
        by_limit (share of texts that the limit of tokens ended; None if unknown); by_label and by_text (accuracy of the
        likeliest label, and of the likeliest option text after the bare question; None where options were not scored);
        acc_norm (as by_text, with likelihoods divided by the characters of the option, as lm-eval does); too_long
        (number of rows that do not fit the model's context with their answer: not asked, counted as wrong). Shares are
        between 0 and 1.
    """
    correct, total = sum(p["correct"] for p in predictions), len(predictions)
    low, high = wilson(correct, total)
    asked = [p for p in predictions if p.get("text") is not None]
    ended = [p for p in asked if "cut" in p]
    return {
        "accuracy": correct / total,
        "correct": correct,
        "total": total,
        "low": low,
        "high": high,
        "majority": majority([p["gold"] for p in predictions]),
        "in_format": sum(p["extracted"] is not None for p in asked) / len(asked) if asked else None,
        "by_limit": sum(p["cut"] for p in ended) / len(ended) if ended else None,
        "by_label": _likeliest_accuracy(predictions, "label"),
        "by_text": _likeliest_accuracy(predictions, "text"),
        "acc_norm": _likeliest_accuracy(predictions, "text_norm"),
        "too_long": sum(p.get("too_long", False) for p in predictions),
    }


def likeliest(scores: dict[str, float]) -> str:
    """Return the option with the highest log-likelihood, the first of equals."""
    return max(scores, key=scores.__getitem__)


def _likeliest_accuracy(predictions: Sequence[dict[str, Any]], kind: str) -> float | None:
    scored = [(p["options"][kind], p["gold"]) for p in predictions if p.get("options", {}).get(kind)]
    # Rows that were too long to be asked would have had options, too: they count as wrong here as well.
    total = len(scored) + sum(p.get("too_long", False) for p in predictions)
    return sum(likeliest(given) == gold for given, gold in scored) / total if scored else None


def judge(task: Task, prediction: dict[str, Any], rule: Rule) -> dict[str, Any]:
    """Return a prediction with `extracted` and `correct` read from its `text` by an extraction rule."""
    extracted, correct = task.judge(prediction["text"], prediction["gold"], rule)
    return {**prediction, "extracted": extracted, "correct": correct}
