"""The forms an answer can take, how it is read from generated text and judged, and the options of a question.

=======  ===========================  ===============================================  ==========
Form     Gold answer                  Correct if                                       Max tokens
=======  ===========================  ===============================================  ==========
number   ``"12"``, ``"-0.5"``         the two differ by at most 0.001, below 1 by      256
                                      0.1 %; under the original rule by 0.001
letter   ``"A"`` to ``"E"``           same letter                                      256
label    one of a given list          same label                                       32
text     any text                     same first line, ignoring case and white space   64
=======  ===========================  ===============================================  ==========
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Literal, NotRequired, TypedDict

from llm_adapters_lab.tasks.base import Rule
from llm_adapters_lab.tasks.extraction import label, letter, number, same_number, same_number_originally, same_text

Kind = Literal["number", "letter", "label", "text"]
LETTERS = tuple("ABCDE")
ANSWERS = tuple(f"answer{i}" for i in range(1, 6))
TRUTH = ("true", "false")


class AnswerForm(TypedDict):
    """The fields of a `llm_adapters_lab.tasks.base.Task` that follow from the form of its answers."""

    extract: Callable[[str, Rule], str | None]
    same: Callable[[str, str], bool]
    same_originally: NotRequired[Callable[[str, str], bool]]
    labels: tuple[str, ...]
    max_new_tokens: int
    answers: str


def answer_form(kind: Kind, labels: tuple[str, ...] = (), read: tuple[str, ...] = ()) -> AnswerForm:
    """Return a form of the table above, as keyword arguments of `llm_adapters_lab.tasks.base.Task`.

    Args:
        kind: name of the form.
        labels: the allowed answers; for "label" only.
        read: the labels to look for in generated text; default: `labels`.
    """
    if kind == "number":
        return AnswerForm(
            extract=number,
            same=same_number,
            same_originally=same_number_originally,
            labels=(),
            max_new_tokens=256,
            answers="number",
        )
    if kind == "text":
        return AnswerForm(extract=first_line, same=same_line, labels=(), max_new_tokens=64, answers="any text")
    extract: Callable[[str, Rule], str | None] = letter
    if kind == "letter":
        labels, limit = LETTERS, 256
    else:
        extract, limit = partial(label, labels=read or labels), 32
    return AnswerForm(extract=extract, same=same_text, labels=labels, max_new_tokens=limit, answers=" | ".join(labels))


def first_line(text: str, rule: Rule = "lab") -> str | None:
    """Return the first line of `text` that is not blank, or None, under either rule."""
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


def same_line(a: str, b: str) -> bool:
    """Return whether two texts are equal, ignoring case, white space and how an accent is written."""
    first, second = (unicodedata.normalize("NFC", text).casefold().split() for text in (a, b))
    return first == second


def parse_options(instruction: str, labels: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return the options that a question lists.

    - letters: ``(A) 23.65 (B) 1000`` after the last ``Answer Choices:``; ``A ) 38 , B ) 27`` after ``The options:``.
    - answer1, solution1, ...: ``Answer1: dry palms Answer2: wet palms``, up to the last ``Answer format:``.
    - true, false: not listed; the labels are the options.

    Args:
        instruction: the question.
        labels: the answers the task allows, in order; empty for numbers.

    Returns:
        (label, text) pairs in the order of the question; empty if the question lists fewer than two.
    """
    if not labels:
        return ()
    if set(labels) == set(TRUTH):
        return tuple((name, name) for name in labels)
    if len(labels[0]) == 1:
        start = max(instruction.rfind(lead) for lead in ("Answer Choices:", "The options:")) + 1
        found = _split(instruction, start, len(instruction), labels, r"\(?(?<!\w){}\s?\)")
        return tuple((name, text.removesuffix(" ,")) for name, text in found)
    end = instruction.rfind("Answer format:")
    return _split(instruction, 0, end if end >= 0 else len(instruction), labels, r"(?<!\w)(?i:{}):")


def _split(text: str, start: int, end: int, labels: tuple[str, ...], mark: str) -> tuple[tuple[str, str], ...]:
    """Split ``text[start:end]`` at the marks of the labels, up to the first label that has none."""
    marks: list[re.Match[str]] = []
    for name in labels:
        found = re.compile(mark.format(re.escape(name))).search(text, marks[-1].end() if marks else start, end)
        if found is None:
            break
        marks.append(found)
    if len(marks) < 2:
        return ()
    ends = [*(m.start() for m in marks[1:]), end]
    return tuple((n, text[m.end() : e].strip()) for n, m, e in zip(labels, marks, ends, strict=False))
