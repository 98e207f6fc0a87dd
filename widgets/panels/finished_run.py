"""The base class of the panels for a finished run: pick a run, load its model, take examples of its tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.models.blueprint import blueprint
from llm_adapters_lab.results.appearance import looks
from llm_adapters_lab.runs.record import Run, list_runs
from llm_adapters_lab.runs.rows import Rows, read_rows, scoring_format
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import Format
from llm_adapters_lab.tasks.registry import get_task
from widgets.kit.elements import button, field, row, show_if
from widgets.kit.loaded_runs import LoadedRun, free_memory, load_run
from widgets.kit.panel import Panel
from widgets.kit.panel import schedule as schedule

NO_RUN = "There is no finished run with an adapter yet. Runs appear here when they finish."


class ExamplePicker:
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
        return self._spec.eval.max_new_tokens or get_task(self.task.value).max_new_tokens

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
        found = self._read()
        rows = found.test.get(self.task.value) or found.train
        number = self._next.get(self.task.value, 0)
        self._next[self.task.value] = number + 1
        return rows[number % len(rows)]

    def _read(self) -> Rows:
        spec, task = self._spec, self.task.value
        if task is None:
            raise BadSpec("There is no task to take an example from. Pick a run first.")
        if task not in self._rows:
            evaluated = task in spec.eval.tasks
            changes: dict[str, Any] = {"eval": spec.eval.model_copy(update={"tasks": (task,) if evaluated else ()})}
            # Without an adapter the training rows are not read.
            self._rows[task] = read_rows(spec.model_copy(update=changes | ({"adapter": None} if evaluated else {})))
        return self._rows[task]


class FinishedRunPanel(Panel):
    """A panel for a finished run with an adapter. The model of the selected run stays in memory.

    Attributes:
        box: the list of runs.
        missing: why a requested run is not in the list.
        examples: of the tasks of the run.
        status: what the panel is doing.
    """

    def __init__(self, root: str | Path, run_id: str) -> None:
        """Read the folder of all runs and select a run; see `run_id`."""
        super().__init__()
        self.root = Path(root)
        self._loaded: LoadedRun | None = None
        self.examples, self.status, self.missing = ExamplePicker(), W.Label(), W.Label()
        self.missing.observe(lambda change: show_if(change["new"], self.missing), "value")
        show_if(False, self.missing)
        self.box = field(W.Dropdown, "run", "440px")
        refresh = button("Refresh", "Read the folder of runs again", click=lambda _: self.refresh())
        self.picker = W.VBox([row(self.box, refresh), self.missing])
        self.run_id = run_id
        self.box.observe(self._box_changed, "value")

    @property
    def run(self) -> Run | None:
        """The selected run."""
        return Run(self.root / self.box.value) if self.box.value else None

    @property
    def run_id(self) -> str:
        """Id of the selected run, "" for none. Set it to any unambiguous prefix of an id, or to "" for the newest."""
        return self.box.value or ""

    @run_id.setter
    def run_id(self, name: str) -> None:
        self._list()
        known = [option for _, option in self.box.options]
        found = [name] if name in known else [option for option in known if option.startswith(name)]
        self.box.value = found[0] if found and (len(found) == 1 or not name) else None
        if name and self.box.value is None:
            problem = f"Several runs start with {name!r}." if found else f"{name} is not finished, or has no adapter."
            self.missing.value = f"{problem} Pick a run from the list."

    async def loaded(self) -> LoadedRun:
        """Return the run with its model; it is loaded without blocking the kernel's event loop.

        Raises:
            BadSpec: no run is selected.
            LabError: it cannot be loaded.
        """
        if (run := self.run) is None:
            raise BadSpec(self.missing.value or NO_RUN)
        found = await asyncio.to_thread(load_run, run)
        if run == self.run:
            self._loaded = found
        return found

    @property
    def has_loaded(self) -> bool:
        """Whether the model of the run is in memory."""
        return self._loaded is not None

    def refresh(self) -> None:
        """Read the folder again. The selected run stays selected; if there is none, the newest is selected."""
        self._list()
        if self.box.value is None:
            self.run_id = ""

    def close(self) -> None:
        """Release the model and remove the panel from the page."""
        self._release()
        super().close()

    def _picked(self) -> None:
        """Reset the panel for another run; for subclasses."""

    def _release(self) -> None:
        if self._loaded is not None:
            self._loaded = None
            free_memory()

    def _box_changed(self, change: Any = None) -> None:
        if not self.quiet:
            self._release()
            self.missing.value = ""
            self._picked()
            self._notify()

    def _list(self) -> None:
        """Read the folder, newest run first; the selected run stays selected."""
        found = [run for run in reversed(list_runs(self.root)) if run.done and _has_adapter(run)]
        named, before = looks(found), self.box.value
        with self.silently():  # setting the options selects the first one
            self.box.options = [(f"{named[run.id].name} · {run.id}", run.id) for run in found]
            self.box.value = before if any(run.id == before for run in found) else None
        if self.box.value != before:
            self._box_changed()
        self.missing.value = "" if found else NO_RUN


def _has_adapter(run: Run) -> bool:
    try:
        return run.spec.adapter is not None
    except (LabError, OSError):
        return False  # written by another version, or by hand
