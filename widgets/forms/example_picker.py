"""Questions of the tasks of a run, one at a time: those it was scored on, or else those it learnt from."""

from __future__ import annotations

from typing import Any

import ipywidgets as W

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.rows import Rows, read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.registry import get_task


class Examples:
    """A list of tasks and a button for another question of the same.

    Attributes:
        task: the list.
        another: the button.
        front: solved questions that stand before every prompt of the run.
        widget: both.
    """

    def __init__(self) -> None:
        """Offer nothing yet."""
        self._spec: RunSpec | None = None
        self._rows: dict[str, Rows] = {}
        self._next: dict[str, int] = {}
        self.task: Any = W.Dropdown(description="examples", layout=W.Layout(width="300px", max_width="100%"))
        self.another: Any = W.Button(description="Another example", tooltip="The next question of this task")
        self.widget: Any = W.HBox([self.task, self.another], layout=W.Layout(flex_flow="row wrap"))

    def offer(self, spec: RunSpec | None) -> None:
        """Offer the tasks of a run; the first one is chosen."""
        if spec is not None and spec == self._spec:
            return
        self._spec, self._rows, self._next = spec, {}, {}
        names = (spec.eval.tasks or (spec.data.task,)) if spec else ()
        self.task.options = names
        self.task.value = names[0] if names else None

    @property
    def template(self) -> str:
        """Prompt form in which the run asks the questions of the task."""
        if self._spec is None or self.task.value is None:
            return ""
        if self._spec.eval.protocol == "paper":
            return prompts.ORIGINAL
        return self._spec.data.template or get_task(self.task.value).template

    @property
    def max_new_tokens(self) -> int:
        """Most tokens of an answer, as scored."""
        if self._spec is None or self.task.value is None:
            return 32
        return self._spec.eval.max_new_tokens or get_task(self.task.value).max_new_tokens

    def front(self) -> str:
        """Return the solved questions that stand before every prompt of the task; "" for none.

        Raises:
            LabError: see `take`.
        """
        if self._spec is None or not self._spec.eval.shots or not self._spec.eval.tasks:
            return ""
        return prompts.demonstrations(self._read().shots.get(self.task.value, ()), self.template)

    def take(self) -> Example:
        """Return the next question of the task, from the first one on.

        Raises:
            BadSpec: there is none.
            LabError: its rows are missing or malformed.
        """
        found = self._read()
        rows = found.test.get(self.task.value) or found.train
        number = self._next.get(self.task.value, 0)
        self._next[self.task.value] = number + 1
        return rows[number % len(rows)]

    def _read(self) -> Rows:
        spec, task = self._spec, self.task.value
        if spec is None or task is None:
            raise BadSpec("There is no task to take an example from. Pick a run first.")
        if task not in self._rows:
            scored = task in spec.eval.tasks
            tasks = (task,) if scored else ()
            changes: dict[str, Any] = {"eval": spec.eval.model_copy(update={"tasks": tasks})}
            # Without an adapter the training rows are not read.
            self._rows[task] = read_rows(spec.model_copy(update=changes | ({"adapter": None} if scored else {})))
        return self._rows[task]
