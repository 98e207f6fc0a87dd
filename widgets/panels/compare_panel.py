"""The panel that compares runs side by side, with significance tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as W

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.appearance import Look, looks
from llm_adapters_lab.results.comparison import compare, differences, mean_accuracy, remarks, task_names
from llm_adapters_lab.results.formatting import interval, item_cells, percent
from llm_adapters_lab.results.paired_tests import LEVEL, differing_questions, disagreements, pairs
from llm_adapters_lab.results.run_index import words
from llm_adapters_lab.results.seed_groups import seeds
from llm_adapters_lab.runs.record import Run
from widgets.figures.figure_view import figure_output, table
from widgets.kit.elements import column, field, show_if
from widgets.kit.panel import Panel, error_text, guarded, note

MAX_RUNS = 20
"""Maximum number of runs that a figure can show."""
MAX_ITEMS = 50
"""Maximum number of items that are listed."""
LONG = 40
"""Number of characters above which a cell may wrap."""


def legend(names: Mapping[str, Look]) -> Html:
    """Return the name, colour and id of every run."""
    lines = []
    for run_id, look in names.items():
        dot = el("span", class_="lab-dot", style=f"background: {look.colour}", aria_hidden="true")
        lines.append(el("div", dot, " ", el("b", look.name), f"  {run_id}"))
    return el("div", *lines)


def scores(runs: Sequence[Run]) -> Html | None:
    """Return the accuracy of every run on every dataset with its 95% interval; None if nothing was scored."""
    names, tasks = looks(runs), task_names(runs)
    if not tasks:
        return None
    rows = [row for row in compare(runs) if row["task"]]
    texts = {(r["task"], r["run"]): f"{percent(r['accuracy'])} ({interval(r['low'], r['high'])})" for r in rows}
    lines = [{"dataset": task} | {look.name: texts.get((task, i), "–") for i, look in names.items()} for task in tasks]
    if len(tasks) > 1:
        lines.append({"dataset": "mean"} | {names[run.id].name: percent(mean_accuracy(run, tasks)) for run in runs})
    notes = ["Accuracy with its 95 % Wilson interval in brackets.", *remarks(rows)]
    return _table("Accuracy by dataset", lines, notes)


def significance(runs: Sequence[Run]) -> Html | None:
    """Return paired tests of all runs against the first, and the spread over seeds; None for fewer than two runs."""
    lines, paired = [], pairs(runs)
    for row in paired:
        # `pairs` has the opposite sign; here a positive difference is a gain over the reference.
        gain, low, high = (f"{0 - 100 * (row[key] or 0):+.1f}" for key in ("difference", "high", "low"))
        line = {"run": row["second"], "reference": row["first"], "dataset": row["task"], "items": row["items"]}
        line |= {"run only ✓": row["only_second"], "reference only ✓": row["only_first"]}
        verdict = el("mark", row["verdict"]) if row["verdict"].endswith("is better") else row["verdict"]
        tested = {"difference": f"{gain} ({low} to {high})", "p": f"{row['p']:.2g}"} if row["items"] else {}
        lines.append(line | {"difference": "–", "p": "–"} | tested | {"verdict": verdict})
    if not lines:
        return None
    notes = [
        "✓: items that only one of the two got right. Difference in percentage points with its 95 % bootstrap "
        "interval; p of the exact McNemar test on the items that both runs were asked alike. Not corrected for "
        f"multiple testing: if nothing differs, 1 test in {1 / LEVEL:.0f} finds a difference by chance."
    ]
    notes += differing_questions(paired)
    notes += [
        f"{row['name']}, {row['task']}: {percent(row['mean'])} ± {100 * row['deviation']:.1f} over the seeds "
        f"{', '.join(map(str, row['seeds']))}."
        for row in seeds(runs)
    ]
    return el("div", _table("Significance of the differences", lines, notes), items(runs))


def items(runs: Sequence[Run]) -> Html:
    """Return a list, closed at first, of the items that only one of the first and each other run got right."""
    done = [run for run in runs if run.done]
    found = [item_cells(item) for run in done[1:] for item in disagreements(done[0], run)]
    lines = [
        el("li", ", ".join(f"{name}: {value}" for name, value in cells.items() if value is not None))
        for cells in found[:MAX_ITEMS]
    ]
    more = f", of which {MAX_ITEMS} are shown; `compare --items` lists all" if len(found) > MAX_ITEMS else ""
    return el("details", el("summary", f"Items that only one run got right: {len(found)}{more}"), el("ul", *lines))


def differing(runs: Sequence[Run]) -> Html | None:
    """Return the spec fields that differ, marked where they differ from the first run; None if there are none."""
    names, lines = looks(runs), []
    for key, values in differences(runs).items():
        texts = {run.id: words(values[run.id]) if run.id in values else "–" for run in runs}
        first = texts[runs[0].id]
        cells = {names[i].name: text if text == first else el("mark", text) for i, text in texts.items()}
        lines.append({"field": key} | cells)
    notes = [f"Marked: differs from {names[runs[0].id].name}. –: not in the spec of this run."]
    return _table("Differing spec fields", lines, notes) if lines else None


def _table(title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> Html:
    wrapped = [{head: _wrapped(value) for head, value in row.items()} for row in rows]
    lines = (el("div", text, class_="lab-note") for text in notes)
    return el("section", el("h4", title), table(wrapped), *lines, class_="lab-table", aria_label=title)


def _wrapped(value: Any) -> Any:
    """Let a long cell, such as a path, wrap."""
    return el("div", value, class_="lab-long") if isinstance(value, str) and len(value) > LONG else value


def _accuracy(runs: Sequence[Run]) -> Any:
    return plots.accuracy(*runs) if task_names(runs) else None


def _parameters(runs: Sequence[Run]) -> Any:
    return plots.parameters_against_accuracy(*runs) if _comparable(runs) else None


def _comparable(runs: Sequence[Run]) -> bool:
    """Return whether any adapter was scored on the datasets of all runs."""
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
"""The parts from top to bottom: functions that return a figure, markup, or None if there is nothing to show."""
FIGURES = ("accuracy", "parameters", "losses")
TESTED = ("significance", "specs")
"""Parts that compare all runs with the first one."""


class ComparePanel(Panel):
    """The comparison of some runs.

    Attributes:
        runs: the readable ones among the given runs, finished ones first.
        against: the reference of the significance tests.
        parts: the widget of each of `PARTS`: `outputs` of a figure, `value` of a table.
        advice: what is missing for a full comparison.
        problem: what could not be shown, and why.
    """

    def __init__(self, runs: Sequence[Run] = ()) -> None:
        """Compare runs."""
        super().__init__()
        self.runs: list[Run] = []
        self.against = field(W.Dropdown, "reference", "420px")
        self.against.observe(self._reference_changed, "value")
        self.legend, self.advice = W.HTML(), W.HTML()
        self.parts: dict[str, Any] = {name: W.Output() if name in FIGURES else W.HTML() for name in PARTS}
        self.widget = column(self.legend, self.against, self.advice, self.problem, *self.parts.values())
        self.show(runs)

    @guarded
    def show(self, runs: Sequence[Run]) -> None:
        """Compare runs; the first finished one is the reference."""
        show_if(runs, self.widget)
        if len(runs) > MAX_RUNS:
            self._offer([])
            raise BadSpec(f"{len(runs)} runs are too many for one comparison. Select at most {MAX_RUNS}.")
        readable, faults = [], []
        for run in {run.id: run for run in runs}.values():
            try:
                looks([run])
                readable.append(run)
            except (LabError, OSError) as error:
                faults.append(f"{run.id} is left out. {error_text(error)}")
        self._offer(sorted(readable, key=lambda run: not run.done))
        if faults:
            raise LabError("\n".join(faults))

    def _offer(self, runs: list[Run]) -> None:
        self.runs, names, done = runs, looks(runs), [run for run in runs if run.done]
        with self.silently():
            self.against.options = [(names[run.id].name, run.id) for run in done]
            self.against.index = 0 if done else None
        show_if(len(done) > 1, self.against)
        self._draw()

    def _reference_changed(self, change: Any) -> None:
        if not self.quiet:
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
            except Exception as error:  # the other parts are still shown
                faults.append(f"{name}: {error_text(error)}")
            if name in FIGURES:
                part.outputs = (figure_output(made),) if made is not None else ()
            else:
                part.value = made or ""
            show_if(made is not None, part)
        if faults:
            raise LabError("\n".join(faults))

    def _missing(self) -> str:
        count, done = len(self.runs), sum(run.done for run in self.runs)
        if count == 1:
            return "Only one run. Select at least two to compare them."
        words = []
        if done < count:
            words.append(f"{count - done} of these {count} runs are unfinished; their results so far are shown.")
            words += ["Significance tests need two finished runs."] if done < 2 else []
        if any(run.summary.get("trainable_parameters") for run in self.runs) and not _comparable(self.runs):
            words.append("No adapter was scored on all datasets, so accuracy cannot be plotted against parameters.")
        return " ".join(words)
