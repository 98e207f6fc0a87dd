"""Questions for a place that looks at one text: the examples of a run's tasks, or an item that another place names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.rows import Rows, read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import Written
from widgets.panels.finished_run import ExamplePicker


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


class QuestionPicker(ExamplePicker):
    """The examples of the tasks of a run, of which one can be named."""

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
        rows, spec = self.examples()[:count], self.spec
        if spec.data.form == "text" and self.task.value not in self._read().test:
            samples = self._read().samples(self.tokenizer, spec.data)[0]
            return [Written("", sample.ids, sample.labels) for sample in samples[:count]]
        return self.asked.rows(rows)

    @property
    def spec(self) -> RunSpec:
        """The spec of the run whose tasks are offered."""
        return self._spec

    def _read(self) -> Rows:
        task, spec = self.task.value, self._spec
        if task is not None and task not in (*spec.eval.tasks, spec.data.task, *self._rows):  # as if it had been scored
            changes = {"eval": spec.eval.model_copy(update={"tasks": (task,)}), "adapter": None}
            self._rows[task] = read_rows(spec.model_copy(update=changes))
        return super()._read()

    def _asked(self, example: Example) -> Asked:
        form = self.asked
        ((head, front),) = form.prompts([example], self.shots())
        return Asked(head, front, form.target(example))
