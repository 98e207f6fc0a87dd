"""Listing the tasks is cheap, and a task is added as the package says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from textwrap import dedent

import pytest

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks import base
from llm_adapters_lab.tasks.answers import answer_form
from llm_adapters_lab.tasks.base import TASKS, Example, Task, register_task
from llm_adapters_lab.tasks.registry import get_task

HEAVY = ("torch", "transformers", "datasets", "pandas", "numpy", "pyarrow")


def test_listing_the_tasks_loads_nothing_heavy() -> None:
    code = "import sys; from llm_adapters_lab.tasks.registry import all_tasks; assert len(all_tasks()) >= 40;"
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def capitals() -> Iterator[Task]:
    """Register the task in the docstring of `llm_adapters_lab.tasks.base`."""
    _, _, after = str(base.__doc__).partition("::\n")
    code, _, _ = after.partition("\nFrom then on")
    names = {"Example": Example, "Task": Task, "register_task": register_task, "answer_form": answer_form}
    exec(dedent(code), names)
    yield get_task("capitals")
    del TASKS["capitals"]


def test_a_task_is_added_as_the_page_says(capitals: Task) -> None:
    spec = RunSpec.parse({"data": {"task": "capitals"}, "eval": {"tasks": ["capitals"]}})
    (row,) = get_task(spec.data.task).load("test")
    assert (row.id, row.input) == ("capitals/test/0", "")
    assert capitals.same(str(capitals.extract("lima \n...", "lab")), row.answer)
    with pytest.raises(BadSpec, match="capitals has no 'dev' split. Choose one of: test, train"):
        capitals.load("dev")


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(BadSpec, match="There is no task 'bolq'. Did you mean 'boolq'"):
        get_task("bolq")
