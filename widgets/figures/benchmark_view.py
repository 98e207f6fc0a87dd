"""The view Benchmark of Compare: it starts a benchmark file, and shows its results so far."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field as attribute
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.markup import el
from llm_adapters_lab.privacy import tilde
from llm_adapters_lab.results.benchmark_report import standings, verdicts
from llm_adapters_lab.results.plots import benchmark_figures
from llm_adapters_lab.sweeps.benchmarks import Benchmark, benchmark
from widgets.figures.figure_card import Drawing, FigureCard, drawing
from widgets.kit import launching
from widgets.kit.elements import button, column, field, show_if, toolbar
from widgets.kit.panel import Panel, error_markup, guarded, message
from widgets.kit.workspace import Workspace

FOLDERS = (".", "papermill_runs/benchmarks", "../papermill_runs/benchmarks")
"""Where benchmark files are looked for, from the working directory."""
ABOUT = (
    "A benchmark gives every method the same budget to search its settings, repeats the best setting of each with "
    "several seeds, and tests which methods differ. Choose a file."
)


@dataclass(frozen=True)
class Progress:
    """A benchmark so far.

    Attributes:
        name: of the benchmark; "" without a valid file.
        plan: what it does, and how much of it is done, in words.
        verdicts: in sentences.
        drawings: its figures, by title.
        fault: the markup of what is wrong with the file.
    """

    name: str = ""
    plan: str = ""
    verdicts: tuple[str, ...] = ()
    drawings: Mapping[str, Drawing] = attribute(default_factory=dict)
    fault: str = ""


def files() -> dict[str, str]:
    """Return the paths of the benchmark files in `FOLDERS`, by file name."""
    found = dict[str, str]()
    for path in (path for folder in FOLDERS for path in sorted(Path(folder).glob("*.yaml"))):
        with suppress(OSError):
            if re.search("^methods:", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
                found.setdefault(path.name, str(path))
    return found


def progress(file: str, root: Path) -> Progress:
    """Read a benchmark file and the records of its runs; nothing is started.

    Raises:
        LabError: the file holds no valid benchmark, or a base or rows cannot be read.
    """
    what, stop = Benchmark.load(file), threading.Event()
    stop.set()
    outcome, places = benchmark(what, root=root, stop=stop), what.contests()
    pairs = len({(place.base, place.task) for place in places})
    searched = len(outcome.trials) if what.search.by != "tpe" else sum(map(what.room, places))
    count = searched + len(places) * len(what.seeds) + len({place.base for place in places})
    scored = [run for runs in (*outcome.finals.values(), outcome.bare.values()) for run in runs]
    done = sum(trial.run.done or trial.ended is not None for trial in outcome.trials) + sum(run.done for run in scored)
    plan = f"{len(what.methods)} methods, each with a search of {what.search.budget} and {len(what.seeds)} seeds"
    plan += f" for each of {pairs} pairs of task and base" if pairs > 1 else ""
    plan += f": {count:,} runs, {done:,} finished."
    found = standings(outcome)
    drawn = [drawing(figure) for figure in benchmark_figures(outcome, found)] if done else []
    said = tuple(text if done == count else f"So far, {text}" for text in verdicts(outcome, found))
    return Progress(what.name, plan, said, {each.title: each for each in drawn})


class BenchmarkView(Panel):
    """A benchmark file, what it does, and its results so far.

    Attributes:
        file: one of `files`.
        path: of another file, which is used if it is given.
        chosen: title of the figure that is shown.
    """

    def __init__(self, workspace: Workspace, changed: Callable[[], object]) -> None:
        """Choose the benchmark that was started last; `changed` has to call `refresh`, one call after another."""
        super().__init__()
        self.workspace, self._changed = workspace, changed
        self._read: tuple[Any, Progress] = (None, Progress())
        self._works = False
        self.file = field(W.Dropdown, "file", "260px", tooltip="benchmark file")
        self.path = W.Text(placeholder="or the path of a file", tooltip="path of a file", continuous_update=False)
        tip = "Start the benchmark in a process of its own, or continue it; finished runs are not repeated"
        self.start = button("Start", tip, "primary", disabled=True, click=lambda _: self._start())
        tip = "Start no further runs; active ones continue"
        self.halt = button("Stop", tip, disabled=True, click=lambda _: self._stop())
        self.chosen = field(W.Dropdown, "figure", "300px", tooltip="figure")
        self.plan, self.verdicts, self.card = W.HTML(), W.HTML().add_class("lab-verdict"), FigureCard()
        head = toolbar(self.file, self.path, self.start, self.halt)
        self._shown = column(self.chosen, self.card.widget)
        self.widget = column(head, self.plan, self.problem, self.verdicts, self._shown, css="lab-benchmark")
        last = launching.benchmark_process(workspace.root).get("file", "")
        self._offer()
        box = self.file if last in files().values() else self.path
        box.value = last
        for each in (self.file, self.path):
            each.observe(self._picked, "value")
        self.chosen.observe(lambda _: self._draw(), "value")
        self._poll(1.0, self._look)

    async def refresh(self) -> None:
        """Show the state of the chosen benchmark; its records are read only if a run has changed its state."""
        self._offer()
        file, runs = self.path.value.strip() or self.file.value, self.workspace.runs.entries
        changed_at = os.path.getmtime(file) if os.path.isfile(file) else 0
        key = (file, changed_at, {run_id: entry.state.name for run_id, entry in runs.items()})
        if key != self._read[0]:
            if file and file != (self._read[0] or ("",))[0]:
                self._say("Reading the file and its runs …")
            try:
                found = await asyncio.to_thread(progress, file, self.workspace.root) if file else Progress(plan=ABOUT)
            except Exception as error:
                found = Progress(fault=error_markup(error))
            self._read = key, found
        self._show()

    def _picked(self, change: Any) -> None:
        if not self.quiet:
            with self.silently():
                (self.path if change["owner"] is self.file else self.file).value = ""
            self._changed()

    def _offer(self) -> None:
        options = [("choose", ""), *files().items()]
        if [*self.file.options] != options:
            with self.silently():
                before = self.file.value
                self.file.options = options
                self.file.value = before if before in dict(options).values() else ""

    def _show(self) -> None:
        found = self._read[1]
        root, name = self.workspace.root, found.name
        self._works = bool(name) and launching.is_active(root, name)
        self.problem.value = found.fault or message(launching.why_ended(root, name) if name and not self._works else "")
        where = tilde(str(launching.beside(root, name, "log")))
        self._say(found.plan + (f" It is active; its output is in {where}." if self._works else ""))
        self.start.disabled, self.halt.disabled = not found.name or self._works, not self._works
        self.verdicts.value = "".join(el("div", text) for text in found.verdicts)
        titles, before = [*found.drawings], self.chosen.value
        with self.silently():
            if [*self.chosen.options] != titles:
                self.chosen.options = titles
                self.chosen.value = before if before in titles else next(iter(titles), None)
        show_if(titles, self._shown)
        self._draw()

    def _say(self, text: str) -> None:
        self.plan.value = el("div", text, role="status")

    def _draw(self) -> None:
        shown = self._read[1].drawings.get(self.chosen.value)
        if shown and not self.quiet and shown is not self.card.drawing:
            self.card.show(shown)

    @guarded
    def _start(self) -> None:
        launching.start_benchmark(self._read[0][0], self.workspace.root)
        self._show()

    @guarded
    def _stop(self) -> None:
        launching.stop_benchmark(self.workspace.root, self._read[1].name)

    def _look(self) -> None:
        """Notice that the process has ended."""
        if self._works and not launching.is_active(self.workspace.root, self._read[1].name):
            self._changed()
