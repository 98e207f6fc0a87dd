"""What a task is, and how to add one.

A complete task, in a module of this package or in a notebook cell::

    def read(split, root):  # "train" or "test"; the data folder or None
        return [Example(f"capitals/{split}/0", instruction="Capital of Peru?", input="", output="Lima", answer="Lima")]

    register_task(Task(name="capitals", summary="capitals of the world", read=read, **answer_form("text")))

From then on ``data.task: capitals`` trains on it and ``eval.tasks: [capitals]`` scores on it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.signatures import checked

Rule = Literal["lab", "original"]


@dataclass(frozen=True)
class Example:
    """One question with its answer.

    Attributes:
        id: unique within the task and split, e.g. ``boolq/test/17``.
        instruction: the question.
        input: additional context for the question, usually empty.
        output: what the model learns to generate after the prompt.
        answer: the short gold answer, e.g. ``"12"``, ``"true"``, ``"answer2"``.
        options: for multiple choice, the offered (label, text) pairs in the order of the question, e.g.
            ``(("answer1", "dry palms"), ("answer2", "wet palms"))``; empty for numbers, and where the question lists
            none.
        messages: the turns of a chat, {"role": ..., "content": ...} each; `instruction` is then the text of those
            before the last answer, which is `output`.
        tools: the tools of a chat, as JSON schemas.
        rejected: for preference training, a worse answer than `output`.
        template: the template of the row, where neither a spec nor its task names one.
    """

    id: str
    instruction: str
    input: str
    output: str
    answer: str
    options: tuple[tuple[str, str], ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    rejected: str = ""
    template: str = ""


@dataclass(frozen=True)
class Task:
    """A benchmark or training set.

    Attributes:
        name: as written in a spec.
        summary: one line: what is asked, and where the rows come from.
        read: ``read(split, root)`` returns the rows of one of the `splits`; `root` is the data folder or None. It
            raises DataUnavailable if the data cannot be found, BadRow if they are malformed.
        extract: ``extract(text, rule)`` returns the answer found in generated text, or None if there is none.
        same: ``same(extracted, gold)`` returns whether the two agree.
        labels: the answers a choice task allows; empty for numbers and free text.
        max_new_tokens: generation limit in tokens.
        answers: the possible answers in words, for listings.
        template: a prompt template of `llm_adapters_lab.tasks.prompts`; empty: each row says which.
        splits: the splits the task has.
        source: origin and licence of the rows.
        same_originally: what `same` is under the rule "original", where that differs.
    """

    name: str
    summary: str
    read: Callable[[str, Path | None], list[Example]]
    extract: Callable[[str, Rule], str | None]
    same: Callable[[str, str], bool]
    labels: tuple[str, ...]
    max_new_tokens: int
    answers: str
    template: str = "alpaca"
    splits: tuple[str, ...] = ("train", "test")
    source: str = ""
    same_originally: Callable[[str, str], bool] | None = None

    @checked
    def load(self, split: str, root: Path | None = None) -> list[Example]:
        """Return the rows of a split.

        Args:
            split: ``"train"`` or ``"test"``.
            root: the data folder; None: the environment variable LAB_DATA, else a download.

        Raises:
            BadSpec: the task has no such split.
            DataUnavailable: the data were not found; the message says where they were looked for.
            BadRow: a file cannot be read, or a row lacks a field or holds a value that is not allowed.
        """
        if split not in self.splits:
            raise BadSpec(f"{self.name} has no {split!r} split. {choices(split, self.splits)}")
        return self.read(split, root)

    @checked
    def judge(self, text: str | None, gold: str, rule: Rule) -> tuple[str | None, bool]:
        """Return the answer that a rule finds in generated text, if any, and whether it agrees with the gold answer.

        The lab rule reads both in the Unicode form NFC, so that an accent may be written either way.
        """
        same = self.same
        if rule == "lab":
            text, gold = text and unicodedata.normalize("NFC", text), unicodedata.normalize("NFC", gold)
        else:
            same = self.same_originally or same
        extracted = self.extract(text, rule) if text is not None else None
        return extracted, extracted is not None and same(extracted, gold)


TASKS: dict[str, Task] = {}


def register_task(task: Task) -> Task:
    """Add a task to the registry and return it."""
    TASKS[task.name] = task
    return task
