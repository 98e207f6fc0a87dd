"""Compare panel: some runs side by side, and how sure one may be that they differ.

It only shows what the library says: `comparison`, `paired` and `plots`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as W

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.appearance import looks
from llm_adapters_lab.results.comparison import mean_accuracy, task_names
from llm_adapters_lab.runs.record import Run
from widgets.figures.compare_tables import differing, legend, scores, significance
from widgets.figures.figure_view import picture
from widgets.kit.errors import guarded, note, why
from widgets.kit.panel import Panel

MOST = 20
"""Runs that one figure can hold, at the very most."""


def _accuracy(runs: Sequence[Run]) -> Any:
    return plots.accuracy(*runs) if task_names(runs) else None


def _parameters(runs: Sequence[Run]) -> Any:
    return plots.parameters_against_accuracy(*runs) if _placed(runs) else None


def _placed(runs: Sequence[Run]) -> bool:
    """Say whether an adapter has a place among parameters and accuracy, which counts the datasets of all runs."""
    tasks = task_names(runs)
    return any(run.summary.get("trainable_parameters") and mean_accuracy(run, tasks) is not None for run in runs)


def _losses(runs: Sequence[Run]) -> Any:
    return plots.loss_curve(*runs) if any(next(run.events("Step"), None) for run in runs) else None


PARTS: dict[str, Callable[[Sequence[Run]], Any]] = {
    "accuracy": _accuracy,
    "scores": scores,
    "significance": significance,
    "parameters": _parameters,
    "losses": _losses,
    "specs": differing,
}
"""What is shown, from above: functions that give a figure, markup, or None for nothing to show."""
FIGURES = ("accuracy", "parameters", "losses")
TESTED = ("significance", "specs")
"""Parts that set one run against the others."""


class ComparePanel(Panel):
    """What is shown for the chosen runs.

    Attributes:
        runs: that are compared, without those that cannot be read; finished ones first.
        against: the run that the others are tested against.
        parts: for each of `PARTS` what shows it: `outputs` of a figure, `value` of a table.
        advice: what is missing.
        problem: what could not be shown, and why.
    """

    def __init__(self, runs: Sequence[Run] = ()) -> None:
        """Compare runs, or none yet."""
        super().__init__()
        self.runs: list[Run] = []
        self._quiet = False
        named = {"style": {"description_width": "initial"}, "layout": W.Layout(width="420px", max_width="98%")}
        self.against: Any = W.Dropdown(description="test against", **named)
        self.against.observe(self._turned, "value")
        self.legend, self.advice = W.HTML(), W.HTML()
        self.parts: dict[str, Any] = {name: W.Output() if name in FIGURES else W.HTML() for name in PARTS}
        shown = [self.legend, self.against, self.advice, self.problem, *self.parts.values()]
        self.widget: Any = W.VBox(shown, layout=W.Layout(width="100%"))
        self.show(runs)

    @guarded
    def show(self, runs: Sequence[Run]) -> None:
        """Compare runs; the others are tested against the first that is finished."""
        self.widget.layout.display = "flex" if runs else "none"
        if len(runs) > MOST:
            self._offer([])
            raise BadSpec(f"{len(runs)} runs are too many for one comparison. Choose {MOST} at most.")
        readable, faults = [], []
        for run in {run.id: run for run in runs}.values():
            try:
                looks([run])
                readable.append(run)
            except (LabError, OSError) as error:
                faults.append(f"{run.id} is left out. {why(error)}")
        self._offer(sorted(readable, key=lambda run: not run.done))
        if faults:
            raise LabError("\n".join(faults))

    def _offer(self, runs: list[Run]) -> None:
        self.runs, self._quiet = runs, True
        try:
            names, done = looks(runs), [run for run in runs if run.done]
            self.against.options = [(names[run.id].name, run.id) for run in done]
            self.against.index = 0 if done else None
        finally:
            self._quiet = False
        self.against.layout.display = "" if len(done) > 1 else "none"
        self._draw()

    @guarded
    def _turned(self, change: Any) -> None:
        if not self._quiet:
            self._draw()

    @guarded
    def _draw(self) -> None:
        self.legend.value = legend(looks(self.runs)) if self.runs else ""
        self.advice.value = note(self._missing())
        tested = sorted(self.runs, key=lambda run: run.id != self.against.value)
        faults = []
        for name, make in PARTS.items():
            part, made = self.parts[name], None
            try:
                made = make(tested if name in TESTED else self.runs) if self.runs else None
            except Exception as error:  # one part that fails must not hide the others
                faults.append(f"{name}: {why(error)}")
            if name in FIGURES:
                part.outputs = (picture(made),) if made is not None else ()
            else:
                part.value = made or ""
            part.layout.display = "none" if made is None else ""
        if faults:
            raise LabError("\n".join(faults))

    def _missing(self) -> str:
        count, done = len(self.runs), sum(run.done for run in self.runs)
        if count == 1:
            return "One run by itself. Choose two or more to compare them."
        words = []
        if done < count:
            words.append(f"{count - done} of these {count} runs are not finished; they are shown as far as they are.")
            words += ["There is nothing to test: that takes two finished runs."] if done < 2 else []
        if any(run.summary.get("trainable_parameters") for run in self.runs) and not _placed(self.runs):
            words.append("None was scored on the datasets of all, so parameters are not set against accuracy.")
        return " ".join(words)
