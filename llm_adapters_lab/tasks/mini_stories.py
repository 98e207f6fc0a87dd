"""A grammar of small number stories: what `nano` reads in pre-training and what the embedded tasks ask about.

A `Story` is some sentences, the calculation behind them and three ways to speak of what is sought: as a question, as a
clause and as an outcome. `llm_adapters_lab.nano.corpus` makes running text of them, `llm_adapters_lab.tasks.mini`
questions.

The forms, names and objects at even places of their lists are for training an adapter, those at odd places for testing
it; pre-training reads all of them (part ``"all"``).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeVar

from llm_adapters_lab.tasks.mini_phrases import (
    ALL,
    ASIDE,
    BOTH,
    CLAIMS,
    DOUBTS,
    GAIN,
    LOSE,
    MORE,
    NAMES,
    NOW,
    OBJECTS,
    PRODUCT,
    QUOTIENT,
    SHARE,
    START,
    TIMES,
    UNITS,
)

Part = Literal["train", "test", "all"]
Calculation = tuple[int, str, int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class Story:
    """Sentences with the calculation behind them.

    Attributes:
        text: the sentences.
        question: what is sought, as a question.
        clause: the same after "wants to know".
        outcome: the same as a closing sentence, with the number.
        steps: the calculation as ``(left, sign, right, result)``.
    """

    text: str
    question: str
    clause: str
    outcome: str
    steps: tuple[Calculation, ...]

    @property
    def working(self) -> str:
        """The calculation in writing, e.g. ``12 + 7 = 19 , 19 - 4 = 15``."""
        return " , ".join(f"{a} {sign} {b} = {r}" for a, sign, b, r in self.steps)


def share(items: Sequence[T], part: Part) -> Sequence[T]:
    """Return the items of one part: even places train, odd places test."""
    return items if part == "all" else items[part == "test" :: 2]


def allowed(a: int, b: int, part: Part) -> bool:
    """Say whether a pair of operands, in either order, belongs to `part`; a quarter of the pairs are for testing."""
    low, high = sorted((a, b))
    return part == "all" or (zlib.crc32(f"{low},{high}".encode()) % 4 == 0) == (part == "test")


def words(rng: Random, part: Part) -> dict[str, str]:
    """Draw three names, two objects and a container."""
    n, m, k = rng.sample(share(NAMES, part), 3)
    o, p = rng.sample(share(OBJECTS, part), 2)
    u, us = rng.choice(share(UNITS, part))
    return {"n": n, "m": m, "k": k, "o": o, "p": p, "u": u, "us": us}


def step(rng: Random, sign: str, part: Part, left: int | None = None) -> Calculation | None:
    """Draw one calculation with a result of 1 to 60 (a product: up to 108), or None when `left` allows none."""
    for _ in range(200):
        if sign in "+-":
            a, b = left or rng.randint(3, 40), rng.randint(2, 20)
            r = a + b if sign == "+" else a - b
            if 1 <= r <= 60 and allowed(a, b, part):
                return a, sign, b, r
        else:
            b, r = rng.randint(2, 9), rng.randint(2, 12)
            if allowed(b, r, part):
                return (r, "*", b, r * b) if sign == "*" else (r * b, "/", b, r)
    return None


def build(rng: Random, part: Part, kind: str, aside: bool = False) -> Story:
    """Draw a story.

    Args:
        rng: source of chance.
        part: which forms, words and pairs of operands may occur.
        kind: a run of ``+`` and ``-`` (things come and go), ``all``, ``more``, ``*`` or ``/``.
        aside: add a sentence with a number that does not matter.
    """
    signs = {"all": "+", "more": "-"}.get(kind, kind)
    steps: list[Calculation] = []
    while len(steps) < len(signs):
        steps = []
        for sign in signs:
            drawn = step(rng, sign, part, steps[-1][3] if steps else None)
            if drawn is None:
                break
            steps.append(drawn)
    numbers = {"a": steps[0][0], "b": steps[0][2], "c": rng.randint(2, 40), "r": steps[-1][3]}
    values: dict[str, object] = {**words(rng, part), **numbers}
    one = {"all": (BOTH, ALL), "more": (BOTH, MORE), "*": (TIMES, PRODUCT), "/": (SHARE, QUOTIENT)}
    if kind in one:
        forms, asked = one[kind]
        sentences = [rng.choice(share(forms, part)).format(**values)]
    else:
        asked = NOW
        sentences = [rng.choice(share(START, part)).format(**values)]
        for _, sign, b, _ in steps:
            form = rng.choice(share(GAIN if sign == "+" else LOSE, part))
            sentences.append(form.format(**values | {"b": b}))
    if aside:
        sentences.insert(rng.randint(1, len(sentences)), rng.choice(share(ASIDE, part)).format(**values))
    question, clause, outcome = (form.format(**values) for form in rng.choice(share(asked, part)))
    return Story(" ".join(sentences), question, clause, outcome, tuple(steps))


@dataclass(frozen=True)
class Claim:
    """Two numbers and what somebody says of them.

    Attributes:
        text: the sentences.
        doubt: the claim as a question for its truth.
        remark: the claim as a remark, with a speaker ``{k}`` left open.
        comparison: what is so, e.g. ``12 is more than 7``, in the order of the claim.
        holds: whether the claim is true.
    """

    text: str
    doubt: str
    remark: str
    comparison: str
    holds: bool


def claim(rng: Random, part: Part) -> Claim:
    """Draw a comparison of two different numbers up to 40."""
    while True:
        a, b = rng.randint(2, 40), rng.randint(2, 40)
        if a != b and allowed(a, b, part):
            break
    values: dict[str, object] = {**words(rng, part), "a": a, "b": b}
    # Claims of "fewer" are left out of the tasks: nano has read them but not learnt to judge them.
    said, larger = rng.choice(CLAIMS if part == "all" else share(CLAIMS[:2], part))
    values["claim"] = said.format(**values)
    doubt, remark = (form.format(**values) for form in rng.choice(share(DOUBTS, part)))
    comparison = f"{a} is {'more' if a > b else 'less'} than {b}"
    return Claim(rng.choice(share(BOTH, part)).format(**values), doubt, remark, comparison, (a > b) == larger)
