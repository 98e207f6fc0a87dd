"""Tasks: where the rows come from, how a question is asked, how an answer is read and judged.

Every module of this folder registers its tasks with `register`; the folder imports itself, so a new file is a new task
and nothing else changes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from llm_adapters_lab.errors import BadSpec, choices

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
        template: the prompt form of `llm_adapters_lab.prompts`.
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


def register(task: Task) -> Task:
    """Add a task to the registry and return it."""
    TASKS[task.name] = task
    return task


@cache
def _import_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def all_tasks() -> dict[str, Task]:
    """Return every registered task by name."""
    _import_all()
    return TASKS


def split_names(text: str) -> list[str]:
    """Return the names of tasks in a list with commas; what is no name belongs to the own file before it.

    ``own:mine.csv?labels=yes,sir|no,boolq`` names two tasks.
    """
    names: list[str] = []
    for part in text.split(","):
        new = part.strip() in all_tasks() or part.strip().startswith("own:")
        if names and names[-1].startswith("own:") and not new:
            names[-1] += "," + part.rstrip()
        elif part.strip():
            names.append(part.strip())
    return names


def get_task(name: str) -> Task:
    """Return the task of that name, registered or, as in ``own:questions.csv``, described by it.

    Raises:
        BadSpec: there is none; the message offers the nearest names.
    """
    known = all_tasks()
    if name.startswith("own:"):
        from llm_adapters_lab.tasks import own

        return own.task(name)
    if name not in known:
        raise BadSpec(f"There is no task {name!r}. {choices(name, known)}")
    return known[name]
