"""What a question offers to choose from, read from its own text.

==========================  ==========================================  ==================================
Labels                      How the options stand in the question       End of the last one
==========================  ==========================================  ==================================
true, false                 not at all: the labels are the options
answer1.., solution1..,     ``Answer1: dry palms Answer2: wet palms``   the last ``Answer format:``
ending1.., option1..
letters                     ``(A) 23.65 (B) 1000``, after the last      end of the text
                            ``Answer Choices:`` where there is one;
                            MathQA has ``A ) 38 , B ) 27`` after
                            ``The options:``
==========================  ==========================================  ==================================
"""

from __future__ import annotations

import re

Options = tuple[tuple[str, str], ...]

_TRUTH = ("true", "false")
_CHOICES = ("Answer Choices:", "The options:")
_FORMAT = re.compile(r"Answer format:")


def offered(instruction: str, labels: tuple[str, ...]) -> Options:
    """Return the options of a question.

    Args:
        instruction: the question with its options.
        labels: the answers the task allows, in their order; empty for numbers.

    Returns:
        (label, text) pairs in the order of the question, white space around a text taken off. Empty where the
        question names no options or fewer than two of them.
    """
    if not labels:
        return ()
    if set(labels) == set(_TRUTH):
        return tuple((name, name) for name in labels)
    if len(labels[0]) == 1:
        start = max(instruction.rfind(lead) for lead in _CHOICES) + 1
        found = _split(instruction, start, len(instruction), labels, r"\(?(?<!\w){}\s?\)")
        return tuple((name, text.removesuffix(" ,")) for name, text in found)
    ends = [match.start() for match in _FORMAT.finditer(instruction)]
    return _split(instruction, 0, ends[-1] if ends else len(instruction), labels, r"(?<!\w)(?i:{}):")


def _split(text: str, start: int, end: int, labels: tuple[str, ...], mark: str) -> Options:
    """Cut ``text[start:end]`` at the mark of each label in turn, until one is missing."""
    marks: list[re.Match[str]] = []
    for name in labels:
        found = re.compile(mark.format(re.escape(name))).search(text, marks[-1].end() if marks else start, end)
        if found is None:
            break
        marks.append(found)
    ends = [*(m.start() for m in marks[1:]), end]
    if len(marks) < 2:
        return ()
    return tuple((n, text[m.end() : e].strip()) for n, m, e in zip(labels, marks, ends, strict=False))
