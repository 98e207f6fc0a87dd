"""Find a task by name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.tasks import custom
from llm_adapters_lab.tasks.base import TASKS, Task


@cache
def _import_all() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")


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
        return custom.task(name)
    if name not in known:
        raise BadSpec(f"There is no task {name!r}. {choices(name, known)}")
    return known[name]
