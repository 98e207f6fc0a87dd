"""Whether test questions have been seen in training: the same question, or most of its wording.

The wording of a row is its instruction and input in lower case, as a list of words (letters and digits; a decimal
number is one word), without what every row of a set shares: the lead-in ("Please choose ...:"), the marks of the
options ("Answer1:", "(A)") and the answer format. The texts of the options belong to it.

- exact: a training row has the same words in the same order.
- ngram: at least 70 % of the runs of 8 successive words occur in some training row, not necessarily all in one. A row
  of fewer than 8 words has no such runs and can only be exact, and so can text written without spaces.

Source of the second measure: PaLM (arXiv:2204.02311), section 8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from llm_adapters_lab.tasks.base import Example

N = 8
SHARE = 0.7
SHOWN = 5
"""So many ids of each kind are named."""

_LEAD_IN = re.compile(r"\Aplease [^:?!.]*:")
_HEADS = ("answer choices:", "the options:")
# Marks of options match as well, but outside the group.
_WORD = re.compile(r"(?:answer|solution|ending|option)[1-9]:|\([a-e]\)|\b[a-e] \)|(\d+(?:[.,]\d+)+|\w+)")


def words(example: Example) -> list[str]:
    """Return the wording of a row, as defined above."""
    asked = _LEAD_IN.sub("", example.instruction.lower())
    body, is_listed, _ = asked.rpartition("answer format:")
    text = f"{body if is_listed else asked} {example.input.lower()}"
    for head in _HEADS:
        text = text.replace(head, " ")
    return [word for word in _WORD.findall(text) if word]


def overlap(train: Sequence[Example], test: Sequence[Example]) -> dict[str, Any]:
    """Count the test rows that occur in training.

    Takes a few seconds for 170,000 training and 10,000 test rows.

    Args:
        train: the rows that are learnt.
        test: the rows that are scored.

    Returns:
        exact: test rows with the same wording as a training row; exact_share: of all test rows, 0 to 1.
        ngram: test rows with most of their runs of words in training; ngram_share likewise.
        total: test rows; n: words in a run; threshold: share of the runs from which on a row counts.
        examples: {"exact": ids, "ngram": ids of rows that are not exact}, the first five of each.
    """
    asked = [words(row) for row in test]
    wanted = {gram for text in asked for gram in _grams(text)}
    texts = {tuple(text) for text in asked if text}
    seen_grams: set[tuple[str, ...]] = set()
    seen_texts: set[tuple[str, ...]] = set()
    for row in train:
        text = words(row)
        seen_grams |= wanted.intersection(_grams(text))
        if (whole := tuple(text)) in texts:
            seen_texts.add(whole)
    exact = [tuple(text) in seen_texts for text in asked]
    ngram = [_covered(text, seen_grams) for text in asked]
    only_ngram = (row.id for row, e, n in zip(test, exact, ngram, strict=True) if n and not e)
    total = len(asked)
    return {
        "exact": sum(exact),
        "exact_share": sum(exact) / total if total else 0.0,
        "ngram": sum(ngram),
        "ngram_share": sum(ngram) / total if total else 0.0,
        "total": total,
        "n": N,
        "threshold": SHARE,
        "examples": {
            "exact": [row.id for row, e in zip(test, exact, strict=True) if e][:SHOWN],
            "ngram": list(only_ngram)[:SHOWN],
        },
    }


def _grams(text: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """Return the runs of `N` successive words."""
    return zip(*(text[i:] for i in range(N)), strict=False)


def _covered(text: Sequence[str], seen: set[tuple[str, ...]]) -> bool:
    found = [gram in seen for gram in _grams(text)]
    return bool(found) and sum(found) >= SHARE * len(found)
