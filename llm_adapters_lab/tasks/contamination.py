"""Test-set contamination: which test questions occur in the training rows, exactly or by most of their n-grams.

A row is compared by its words: instruction, options and input in lower case, split into words (letters and digits; a
decimal number is one word), without what all rows of a set share: the lead-in ("Please choose ...:"), the marks of the
options ("Answer1:", "(A)") and the answer format.

- exact: a training row has the same words in the same order.
- ngram: at least 70 % of the row's 8-grams occur in training, possibly in different rows. Rows of fewer than 8 words,
  and text written without spaces, have no 8-grams and can only match exactly.

Source of the second measure: PaLM (arXiv:2204.02311), section 8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.prompts import TEXT

N = 8
SHARE = 0.7
SHOWN = 5
"""Number of ids listed for each measure."""

_LEAD_IN = re.compile(r"\Aplease [^:?!.]*:")
_HEADS = ("answer choices:", "the options:")
# Marks of options match too, but outside the group.
_WORD = re.compile(r"(?:answer|solution|ending|option)[1-9]:|\([a-e]\)|\b[a-e] \)|(\d+(?:[.,]\d+)+|\w+)")


def words(example: Example) -> list[str]:
    """Return the words by which a row is compared; of a document, all."""
    said = example.output if example.template == TEXT else example.instruction
    asked = _LEAD_IN.sub("", said.lower())
    body, is_listed, _ = asked.rpartition("answer format:")
    text = f"{body if is_listed else asked} {example.input.lower()}"
    for head in _HEADS:
        text = text.replace(head, " ")
    return [word for word in _WORD.findall(text) if word]


def overlap(train: Sequence[Example], test: Sequence[Example]) -> dict[str, Any]:
    """Count the test rows that occur in training.

    Takes a few seconds for 170,000 training and 10,000 test rows.

    Args:
        train: the training rows.
        test: the rows to be scored.

    Returns:
        exact: number of test rows that match a training row exactly; exact_share: as a fraction of the test rows.
        ngram: number of test rows of which most n-grams occur in training; ngram_share likewise.
        total: number of test rows; n: words in an n-gram; threshold: smallest fraction of known n-grams that counts.
        examples: {"exact": ids, "ngram": ids of rows that do not match exactly}, the first five of each.
    """
    return overlaps(train, {"": test})[""]


def overlaps(train: Sequence[Example], tests: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, Any]]:
    """Return the `overlap` of training rows with several sets, by their names; the training rows are read once."""
    asked = {name: [words(row) for row in rows] for name, rows in tests.items()}
    wanted = {gram for texts in asked.values() for text in texts for gram in _grams(text)}
    whole = {tuple(text) for texts in asked.values() for text in texts if text}
    seen_grams: set[tuple[str, ...]] = set()
    seen_texts: set[tuple[str, ...]] = set()
    for row in train if tests else ():
        text = words(row)
        seen_grams |= wanted.intersection(_grams(text))
        seen_texts |= whole & {tuple(text)}
    return {name: _counted(rows, asked[name], seen_grams, seen_texts) for name, rows in tests.items()}


def _counted(
    test: Sequence[Example], asked: list[list[str]], seen_grams: set[tuple[str, ...]], seen_texts: set[tuple[str, ...]]
) -> dict[str, Any]:
    exact = {index: row.id for index, row in enumerate(test) if tuple(asked[index]) in seen_texts}
    ngram = {index: row.id for index, row in enumerate(test) if _covered(asked[index], seen_grams)}
    only_ngram = [name for index, name in ngram.items() if index not in exact]
    total = len(asked)
    return {
        "exact": len(exact),
        "exact_share": len(exact) / total if total else 0.0,
        "ngram": len(ngram),
        "ngram_share": len(ngram) / total if total else 0.0,
        "total": total,
        "n": N,
        "threshold": SHARE,
        "examples": {"exact": [*exact.values()][:SHOWN], "ngram": only_ngram[:SHOWN]},
    }


def _grams(text: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """Return all sequences of `N` consecutive words."""
    return zip(*(text[i:] for i in range(N)), strict=False)


def _covered(text: Sequence[str], seen: set[tuple[str, ...]]) -> bool:
    found = [gram in seen for gram in _grams(text)]
    return bool(found) and sum(found) >= SHARE * len(found)
