"""Questions for a place that looks at one text: the examples of a run's tasks, or an item that another place names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as W

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models.blueprint import blueprint
from llm_adapters_lab.runs.rows import Rows, read_rows, scoring_format
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import Format, Written
from llm_adapters_lab.tasks.registry import get_task
from widgets.kit.elements import button, field, row


@dataclass(frozen=True)
class Asked:
    """A question as a run asks it.

    Attributes:
        head: what the model reads, as text.
        front: the same as token ids.
        target: the answer that it is to give.
    """

    head: str = ""
    front: Sequence[int] = ()
    target: str = ""

    @property
    def text(self) -> str:
        """Question and answer."""
        return self.head + self.target


class QuestionPicker:
    """A list of a run's tasks, and a button for the next example of the selected task.

    The examples are the ones that the run was evaluated on, or trained on if it was not evaluated.
    """

    def __init__(self) -> None:
        """Offer nothing yet."""
        self._spec = RunSpec()
        self._rows: dict[str, Rows] = {}
        self._next: dict[str, int] = {}
        self.task = field(W.Dropdown, "examples", "300px")
        self.another = button("Another example", "The next example of this task")
        self.widget = row(self.task, self.another)

    def offer(self, spec: RunSpec | None) -> None:
        """Offer the tasks of a run; the first is selected."""
        if spec == self._spec:
            return
        self._spec, self._rows, self._next = spec or RunSpec(), {}, {}
        names = (spec.eval.tasks or (spec.data.task,)) if spec else ()
        self.task.options = names
        self.task.value = names[0] if names else None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the base of this run."""
        return blueprint(*self._spec.base_parts).tokenizer

    @property
    def asked(self) -> Format:
        """How the selected task is asked in this run: as it was scored, else as it was trained.

        Raises:
            LabError: see `take`.
        """
        rows, name = self._read(), self.task.value
        if self._spec.data.form == "text" and name not in rows.test:
            raise BadSpec(f"{name} holds documents, which ask nothing. Type a text.")
        return scoring_format(self._spec, name, rows.test.get(name) or rows.train, self.tokenizer)

    @property
    def max_new_tokens(self) -> int:
        """The maximum number of tokens of an answer in the evaluation of this run."""
        return self._spec.eval.most_tokens(get_task(self.task.value))

    def shots(self) -> Sequence[Example]:
        """Return the solved examples that precede every prompt of the task.

        Raises:
            LabError: see `take`.
        """
        return self._read().shots.get(self.task.value, ()) if self._spec.eval.shots and self._spec.eval.tasks else ()

    def take(self) -> Example:
        """Return the next example of the task, starting with the first.

        Raises:
            BadSpec: no task is selected.
            LabError: its rows are missing or malformed.
        """
        rows = self.examples()
        number = self._next.get(self.task.value, 0)
        self._next[self.task.value] = number + 1
        return rows[number % len(rows)]

    def next(self) -> Asked:
        """Return the next example of the selected task.

        Raises:
            LabError: see `take`.
        """
        return self._asked(self.take())

    def find(self, item: str) -> Asked:
        """Return a row of the selected task by its id.

        Raises:
            BadSpec: there is no such row.
            LabError: see `take`.
        """
        found = next((row for row in self.examples() if row.id == item), None)
        if found is None:
            raise BadSpec(f"The run was not asked {item} of {self.task.value}. Take another example.")
        return self._asked(found)

    def offer_also(self, task: str) -> None:
        """Offer and select a task, whether or not the run was scored on it."""
        if task not in self.task.options:
            self.task.options = (*self.task.options, task)
        self.task.value = task

    def examples(self) -> list[Example]:
        """Return the rows of the selected task that the run was scored on, else those that it was trained on."""
        rows = self._read()
        return rows.test.get(self.task.value) or rows.train

    def written(self, count: int) -> list[Written]:
        """Return rows of the selected task with their answers, as token ids and labels.

        Args:
            count: maximum number of rows.
        """
        found, spec = self._read(), self.spec
        if spec.data.form == "text" and self.task.value not in found.test:
            samples = found.samples(self.tokenizer, spec.data)[0]
            return [Written("", sample.ids, sample.labels) for sample in samples[:count]]
        return self.asked.rows(self.examples()[:count])

    @property
    def spec(self) -> RunSpec:
        """The spec of the run whose tasks are offered."""
        return self._spec

    def _asked(self, example: Example) -> Asked:
        form = self.asked
        ((head, front),) = form.prompts([example], self.shots())
        return Asked(head, front, form.target(example))

    def _read(self) -> Rows:
        spec, task = self._spec, self.task.value
        if task is None:
            raise BadSpec("There is no task to take an example from. Pick a run first.")
        if task not in self._rows:
            # A task that was offered beside those of the run is asked as if the run had been scored on it.
            evaluated = task != spec.data.task or task in spec.eval.tasks
            changes: dict[str, Any] = {"eval": spec.eval.model_copy(update={"tasks": (task,) if evaluated else ()})}
            # Without an adapter the training rows are not read.
            self._rows[task] = read_rows(spec.model_copy(update=changes | ({"adapter": None} if evaluated else {})))
        return self._rows[task]
