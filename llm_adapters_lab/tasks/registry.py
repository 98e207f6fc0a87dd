"""Find a task by name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.tasks import custom, mini_tongues, reasoning_gym
from llm_adapters_lab.tasks.base import TASKS, Task

DESCRIBED = {
    custom.PREFIX: custom.task,
    reasoning_gym.PREFIX: reasoning_gym.task,
    mini_tongues.PREFIX: mini_tongues.task,
}
"""Makes the task that a name describes, by the beginning of the name."""


@cache
def all_tasks() -> dict[str, Task]:
    """Return the registry of all tasks by name, after importing every module of this package."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return TASKS


def get_task(name: str) -> Task:
    """Return the task called `name`: a registered one, or one that its name describes, such as ``own:questions.csv``.

    Raises:
        BadSpec: there is no such task; the message suggests the closest names.
    """
    known = all_tasks()
    for prefix, describe in DESCRIBED.items():
        if name.startswith(prefix):
            return describe(name)
    if name not in known:
        raise BadSpec(f"There is no task {name!r}. {choices(name, known)}")
    return known[name]


def split_names(text: str) -> list[str]:
    """Split a comma-separated list of task names; a part that is no task name belongs to the ``own:`` name before it.

    ``own:mine.csv?labels=yes,sir|no,boolq`` names two tasks.
    """
    names: list[str] = []
    for part in text.split(","):
        starts_name = part.strip() in all_tasks() or part.strip().startswith(tuple(DESCRIBED))
        if names and names[-1].startswith(custom.PREFIX) and not starts_name:
            names[-1] += "," + part.rstrip()
        elif part.strip():
            names.append(part.strip())
    return names
