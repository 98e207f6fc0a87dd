"""The forms an answer can take: how it is read from generated text, and when it is right.

=======  ===========================  ==================================  ==============
Form     Gold answer                  Right if                            Tokens at most
=======  ===========================  ==================================  ==============
number   ``"12"``, ``"-0.5"``         the two differ by 0.001 at most     256
letter   ``"A"`` to ``"E"``           it is the same letter               256
label    one of a given list          it is the same label                32
text     any text                     the first line is the same, but     64
                                      for capitals and white space
=======  ===========================  ==================================  ==============
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from llm_adapters_lab.tasks.base import Rule
from llm_adapters_lab.tasks.extraction import label, letter, number, same_number, same_text

Kind = Literal["number", "letter", "label", "text"]
LETTERS = tuple("ABCDE")
ANSWERS = tuple(f"answer{i}" for i in range(1, 6))
TRUTH = ("true", "false")


@dataclass(frozen=True)
class Form:
    """How answers of one form are read and judged; the fields are those of `llm_adapters_lab.tasks.base.Task`."""

    extract: Callable[[str, Rule], str | None]
    same: Callable[[str, str], bool]
    max_new_tokens: int


def form(kind: Kind, labels: tuple[str, ...] = ()) -> Form:
    """Return a form of the table above.

    Args:
        kind: its name.
        labels: the answers to look for; used by labels alone.
    """
    if kind == "number":
        return Form(number, same_number, 256)
    if kind == "letter":
        return Form(letter, same_text, 256)
    if kind == "label":
        return Form(partial(_read_label, labels), same_text, 32)
    return Form(first_line, same_line, 64)


def _read_label(labels: tuple[str, ...], text: str, rule: Rule) -> str | None:
    return label(text, labels, rule)


def first_line(text: str, rule: Rule = "lab") -> str | None:
    """Return the first line of `text` that is not blank, or None; both rules read alike.

    Args:
        text: generated text.
        rule: unused.
    """
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


def same_line(a: str, b: str) -> bool:
    """Say whether two texts are the same but for capitals and white space."""
    return a.casefold().split() == b.casefold().split()
