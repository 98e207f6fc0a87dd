"""Rows and tasks, and the registry to which every task file adds its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Rule = Literal["lab", "original"]


@dataclass(frozen=True)
class Example:
    """One question with its answer.

    Attributes:
        id: unique within the task and split, e.g. ``boolq/test/17``.
        instruction: what is asked.
        input: further text for the question, mostly empty.
        output: what the model learns to say after the prompt.
        answer: the short gold answer, e.g. ``"12"``, ``"true"``, ``"answer2"``.
        options: on choice sets what is offered, as (label, text) pairs in the order of the question, e.g.
            ``(("answer1", "dry palms"), ("answer2", "wet palms"))``; empty for numbers, and where the question names
            none.
    """

    id: str
    instruction: str
    input: str
    output: str
    answer: str
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Task:
    """One benchmark or training set.

    Attributes:
        name: as written in a spec.
        summary: one line: what is asked, and where the rows come from.
        load: ``load(split, root)`` gives the rows of ``"train"`` or ``"test"``; `root` is the data folder or None.
        extract: ``extract(text, rule)`` gives the answer read from generated text, or None where there is none.
        same: ``same(extracted, gold)`` says whether they agree.
        labels: the answers a choice task allows; empty for numbers.
        template: the prompt form of `llm_adapters_lab.tasks.prompts`.
        max_new_tokens: generation limit in tokens.
        splits: the splits this task can serve.
        source: origin and licence of the rows.
    """

    name: str
    summary: str
    load: Callable[[str, Path | None], list[Example]]
    extract: Callable[[str, Rule], str | None]
    same: Callable[[str, str], bool]
    labels: tuple[str, ...] = ()
    template: str = "alpaca"
    max_new_tokens: int = 32
    splits: tuple[str, ...] = ("train", "test")
    source: str = ""
    extra: dict[str, str] = field(default_factory=dict)


TASKS: dict[str, Task] = {}


def register_task(task: Task) -> Task:
    """Add a task to the registry and return it."""
    TASKS[task.name] = task
    return task
