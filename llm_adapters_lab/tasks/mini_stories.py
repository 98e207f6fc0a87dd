"""A grammar of small number stories, of which `llm_adapters_lab.tasks.mini` makes questions.

The corpus that `nano` was pre-trained on (``benchmarks/nano/corpus.py``) is made of the same stories. Of each list of
phrases, names or objects, even indices are for training an adapter and odd ones for testing it; pre-training uses all
(part ``"all"``).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeVar

from llm_adapters_lab.tasks import mini_phrases as phrases

Part = Literal["train", "test", "all"]
Calculation = tuple[int, str, int, int]  # left, sign, right, result
T = TypeVar("T")


@dataclass(frozen=True)
class Story:
    """A story and the calculation behind it."""

    text: str
    question: str  # for the result
    clause: str  # the question after "wants to know"
    outcome: str  # a closing sentence that states the result
    steps: tuple[Calculation, ...]

    @property
    def working(self) -> str:
        """The calculation as text, e.g. ``12 + 7 = 19 , 19 - 4 = 15``."""
        return " , ".join(f"{a} {sign} {b} = {r}" for a, sign, b, r in self.steps)


def share(items: Sequence[T], part: Part) -> Sequence[T]:
    """Return the items of one part: even indices train, odd ones test."""
    return items if part == "all" else items[part == "test" :: 2]


def allowed(a: int, b: int, part: Part) -> bool:
    """Return whether a pair of operands, in either order, belongs to `part`; a quarter of the pairs are for testing."""
    low, high = sorted((a, b))
    return part == "all" or (zlib.crc32(f"{low},{high}".encode()) % 4 == 0) == (part == "test")


def words(rng: Random, part: Part) -> dict[str, str]:
    """Draw three names, two objects and a container."""
    n, m, k = rng.sample(share(phrases.NAMES, part), 3)
    o, p = rng.sample(share(phrases.OBJECTS, part), 2)
    u, us = rng.choice(share(phrases.UNITS, part))
    return {"n": n, "m": m, "k": k, "o": o, "p": p, "u": u, "us": us}


def step(rng: Random, sign: str, part: Part, left: int | None = None) -> Calculation | None:
    """Draw a calculation with a result of 1 to 60 (products: up to 108); None if none starts at `left`."""
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
        rng: random generator.
        part: which phrases, words and pairs of operands may occur.
        kind: a sequence of ``+`` and ``-`` (things come and go), ``all``, ``more``, ``*`` or ``/``.
        aside: add a sentence with an irrelevant number.
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
    one = {
        "all": (phrases.BOTH, phrases.ALL),
        "more": (phrases.BOTH, phrases.MORE),
        "*": (phrases.TIMES, phrases.PRODUCT),
        "/": (phrases.SHARE, phrases.QUOTIENT),
    }
    if kind in one:
        forms, asked = one[kind]
        sentences = [rng.choice(share(forms, part)).format(**values)]
    else:
        asked = phrases.NOW
        sentences = [rng.choice(share(phrases.START, part)).format(**values)]
        for _, sign, b, _ in steps:
            form = rng.choice(share(phrases.GAIN if sign == "+" else phrases.LOSE, part))
            sentences.append(form.format(**values | {"b": b}))
    if aside:
        sentences.insert(rng.randint(1, len(sentences)), rng.choice(share(phrases.ASIDE, part)).format(**values))
    question, clause, outcome = (form.format(**values) for form in rng.choice(share(asked, part)))
    return Story(" ".join(sentences), question, clause, outcome, tuple(steps))


@dataclass(frozen=True)
class Claim:
    """Two numbers and a claim about them."""

    text: str
    doubt: str  # asks whether the claim is true
    remark: str  # states the claim; the speaker {k} is not filled in
    comparison: str  # the fact in the order of the claim, e.g. "12 is more than 7"
    holds: bool  # whether the claim is true


def claim(rng: Random, part: Part) -> Claim:
    """Draw a comparison of two different numbers up to 40."""
    while True:
        a, b = rng.randint(2, 40), rng.randint(2, 40)
        if a != b and allowed(a, b, part):
            break
    values: dict[str, object] = {**words(rng, part), "a": a, "b": b}
    # The tasks omit claims of "fewer": nano has read them but not learnt to judge them.
    said, larger = rng.choice(phrases.CLAIMS if part == "all" else share(phrases.CLAIMS[:2], part))
    values["claim"] = said.format(**values)
    doubt, remark = (form.format(**values) for form in rng.choice(share(phrases.DOUBTS, part)))
    comparison = f"{a} is {'more' if a > b else 'less'} than {b}"
    return Claim(rng.choice(share(phrases.BOTH, part)).format(**values), doubt, remark, comparison, (a > b) == larger)
