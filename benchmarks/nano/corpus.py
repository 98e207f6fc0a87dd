"""The corpus that `nano` is pre-trained on: generated documents of one to five sentences.

A document tells a story and ends with the calculation, the outcome or both, or leaves the question open; others contain
number facts, true or false comparisons, and small talk. No document has a question followed by its answer: a base that
was trained on them can calculate and tell stories but has never answered, which is left to an adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from llm_adapters_lab.tasks import mini_stories

KINDS = ("+", "-", "all", "more", "*", "/", "++", "+-", "-+", "--")
KIND_WEIGHTS = (3, 3, 3, 3, 4, 4, 2, 2, 2, 2)
TALK = [
    "{n} has a question about the {o} .",
    "{m} does not know the answer .",
    "the answer of {n} is short .",
    "{n} likes three things : {o} , {p} and the sea .",
    "{n} says : good morning {m} !",
    "{m} asks : what is the time ?",
    "the list of {n} says : {o} and {p} .",
    "a good question needs a good answer .",
    "{n} writes the question and the answer in a book .",
    "is that so ? {m} can not say .",
]
OPEN = ["nobody knows .", "{m} does not say .", "we can not say .", "{k} goes home .", "that is a good question ."]


def story_document(rng: Random) -> str:
    """Return a story that ends with the calculation, the outcome, both, or an open question."""
    story = mini_stories.build(rng, "all", rng.choices(KINDS, KIND_WEIGHTS)[0], aside=rng.random() < 0.35)
    values = mini_stories.words(rng, "all")
    chance = rng.random()
    if chance < 0.12:
        return f"{story.text} {values['k']} asks : {story.question} {rng.choice(OPEN).format(**values)}"
    if chance < 0.2:
        return f"{story.text} {story.question} {rng.choice(OPEN).format(**values)}"
    story_text = story.text + (f" {values['k']} wants to know {story.clause} ." if rng.random() < 0.6 else "")
    if chance < 0.6:
        return f"{story_text} {story.working} ."
    if chance < 0.9:
        return f"{story_text} {story.working} . {story.outcome}"
    return f"{story_text} {story.outcome}"


def facts(rng: Random) -> str:
    """Return a few calculations."""
    lines = []
    for _ in range(rng.randint(2, 5)):
        if drawn := mini_stories.step(rng, rng.choice("++--*/"), "all"):
            a, sign, b, r = drawn
            lines.append(f"{a} {sign} {b} = {r} .")
    return " ".join(lines)


def truth(rng: Random) -> str:
    """Return a comparison with a verdict, or an open question."""
    claim, values = mini_stories.claim(rng, "all"), mini_stories.words(rng, "all")
    verdict = "true" if claim.holds else "false"
    remark = claim.remark.format(**values)
    kind = rng.random()
    if kind < 0.08:
        return f"{claim.text} {claim.doubt} {rng.choice(OPEN).format(**values)}"
    if kind < 0.6:
        return f"{claim.text} {remark} {claim.comparison} , that is {verdict} ."
    if kind < 0.7:
        return f"{claim.text} {remark} that is {verdict} ."
    if kind < 0.85:
        a, b = rng.sample(range(2, 61), 2)
        word, larger = rng.choice([("more", True), ("less", False), ("fewer", False)])
        return f"it is {'true' if (a > b) == larger else 'false'} that {a} is {word} than {b} ."
    pairs = [rng.sample(range(2, 61), 2) for _ in range(3)]
    return " ".join(f"{a} is {'more' if a > b else 'less'} than {b} ." for a, b in pairs)


def talk(rng: Random) -> str:
    """Return small talk that contains the words of questions and answers."""
    values = mini_stories.words(rng, "all")
    return " ".join(form.format(**values) for form in rng.sample(TALK, rng.randint(1, 3)))


def documents(seed: int) -> Iterator[str]:
    """Yield documents endlessly; the same `seed` gives the same documents on every machine."""
    rng = Random(f"nano corpus {seed}")
    while True:
        yield rng.choices((story_document, facts, truth, talk), (58, 10, 28, 4))[0](rng)


def vocabulary() -> list[str]:
    """Return every word the grammar can produce, sorted; numbers are spelt in digits."""
    rng, found = Random("nano vocabulary"), set()
    for make in (story_document, facts, truth, talk):
        for _ in range(4000):
            found.update(make(rng).split())
    found.update("question answer true false : ? .".split())
    return sorted(word for word in found if not word.isdigit())
