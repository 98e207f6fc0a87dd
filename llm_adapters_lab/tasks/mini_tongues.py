"""Embedded tasks in languages of their own: the stories of the mini tasks, with the words in another meaning.

``mini-tongue:3`` is language 3: a permutation of all words and of all digits, drawn from its number. The base knows
each word but no sentence, so that much has to be learnt: the rank of an adapter limits it, and languages contradict one
another. Test rows are other stories in the same words, as the meaning of a word that was never seen cannot be known.
``mini-tongue:1+2+3`` mixes rows of several languages for training; with `data.group: task` each row belongs to its
language.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache, partial
from pathlib import Path
from random import Random

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.tasks import mini_phrases, mini_stories
from llm_adapters_lab.tasks.base import Example, Task
from llm_adapters_lab.tasks.mini_rules import story_task

PREFIX = "mini-tongue:"
TRAIN_ROWS = 2000
TEST_ROWS = 200
KINDS = ("+", "-", "all", "more", "*", "/")
MOST = 16


@cache
def dictionary(number: int) -> dict[str, str]:
    """Return what the words and digits of a story become in a language."""
    lists = [value for name, value in vars(mini_phrases).items() if name.isupper()]
    texts = [part for value in lists for item in value for part in ([item] if isinstance(item, str) else item)]
    texts = [part for part in texts if isinstance(part, str)]
    words = sorted({word for text in texts for word in text.split() if word.isalpha()})
    rng, found = Random(f"{PREFIX}{number}"), dict[str, str]()
    for kind in (words, [*"0123456789"]):
        found |= zip(kind, rng.sample(kind, len(kind)), strict=True)
    return found


def translated(text: str, number: int) -> str:
    """Return a text in a language."""
    known = dictionary(number)
    return re.sub(r"[a-z]+|\d", lambda match: known.get(match[0], match[0]), text)


def _draw(number: int, split: str, count: int, besides: Collection[str] = ()) -> list[Example]:
    """Return different rows of a language, without those whose questions are in `besides`."""
    rng, rows = Random(f"{PREFIX}{number} {split}"), dict[str, Example]()
    while len(rows) < count:
        story = mini_stories.build(rng, "train", rng.choice(KINDS))
        asked, said = (translated(text, number) for text in (f"{story.text} {story.question}", story.working))
        if asked not in besides:
            rows[asked] = Example(f"{PREFIX}{number}/{split}/{len(rows)}", asked, "", said, said)
    return list(rows.values())


def _read(numbers: tuple[int, ...], split: str, root: Path | None) -> list[Example]:
    if split == "test":
        learnt = {row.instruction for row in _draw(numbers[0], "train", TRAIN_ROWS)}
        return _draw(numbers[0], "test", TEST_ROWS, learnt)
    rows = [row for number in numbers for row in _draw(number, "train", TRAIN_ROWS)]
    if len(numbers) > 1:
        Random(PREFIX).shuffle(rows)
    return rows


def task(name: str) -> Task:
    """Return the task of a name such as ``mini-tongue:1`` or ``mini-tongue:1+2+3``.

    Raises:
        BadSpec: it names no languages, one twice, or too many.
    """
    parts = name.removeprefix(PREFIX).split("+")
    numbers = tuple(int(part) for part in parts if re.fullmatch(r"\d{1,4}", part, re.ASCII))
    if len(numbers) < len(parts) or len({*numbers}) < len(numbers) or len(numbers) > MOST:
        raise BadSpec(f"{name!r}: give different numbers up to 9999, at most {MOST}: {PREFIX}1 or {PREFIX}1+2+3.")
    summary = f"stories in the languages {', '.join(map(str, numbers))}"
    return story_task(name, summary, partial(_read, numbers), mixed=len(numbers) > 1)
