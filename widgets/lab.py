"""Lab: all panels in one, around one spec and one run that is followed.

What is edited in any panel makes one `RunSpec`, whose run id stands in the bar. The tab Run follows that run; while a
run works, it stays with it, whatever is edited meanwhile. Nothing is kept that is not on disk or in the panels: a lab
made anew, after a restart of the kernel for instance, opens on the run that works.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.evaluation.spec import EvalSpec
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.runs.background import State, spec_of, state, working
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.registry import all_tasks
from llm_adapters_lab.training.spec import TrainSpec
from widgets.forms.form import Form
from widgets.kit.accessibility import Names
from widgets.kit.collapsible import Fold
from widgets.kit.errors import guarded
from widgets.kit.panel import Panel
from widgets.kit.status_bar import Bar
from widgets.panels.chat_panel import TryPanel
from widgets.panels.data_panel import Data
from widgets.panels.inspect_panel import InspectPanel
from widgets.panels.model_panel import Choose
from widgets.panels.reproduce_panel import HandOver
from widgets.panels.run_panel import RunPanel
from widgets.panels.runs_panel import RunsPanel
from widgets.panels.upload_panel import LoadSpec

FIRST = "quickstart"
"""Preset a new lab begins with."""
OFTEN = 5.0
"""Seconds between two searches for other runs at work."""
TABS = ("Choose", "Data", "Train & score", "Run", "Runs", "Inspect", "Try")
_LOOK = Path(__file__).with_name("lab.css")


class Lab(Panel):
    """The whole laboratory.

    Attributes:
        choose: base, adapter, placement.
        data: what is learnt.
        train: how it is trained.
        score: what it is scored on.
        run: the run that is followed.
        runs: all runs.
        inspect: a look inside one.
        attempt: questions to one.
        hand_over: the same run without a browser.
        load: a spec from a file.
        bar: id, state and Start.
        tabs: the tabs.
    """

    def __init__(
        self, root: str | Path = "runs", spec: RunSpec | None = None, *, run_id: str = "", process: bool = True
    ) -> None:
        """Build the lab.

        Args:
            root: folder of all runs.
            spec: to begin with.
            run_id: instead of a spec, the id of a run to show, or the beginning of it. Default for both: the run that
                was started last of those at work; if none is, a first run that takes less than a minute.
            process: start runs in processes of their own, which outlive page and kernel; else in a thread of the
                kernel, which knows what is defined in its cells.
        """
        super().__init__()
        self.root, self._quiet = Path(root).resolve(), True
        self._spec: RunSpec | None = None
        self._looked, self._handed = 0.0, dict[Any, str]()
        first = spec_of(run_id, self.root) if run_id else spec or self._at_work() or RunSpec.load(FIRST)
        self._make(first, process)
        self._arrange()
        self._connect()
        self.spec = first
        if self.run.run_id and self.run.state.name != "unfinished":
            self.open("Run")

    @property
    def spec(self) -> RunSpec | None:
        """What Start would run, or None while something in the panels is wrong; set, it fills all panels."""
        return self._spec

    @spec.setter
    def spec(self, spec: RunSpec) -> None:
        self._quiet = True
        try:
            self.choose.spec = self.data.spec = spec
            self.train.value, self.score.value = spec.train, spec.eval
        finally:
            self._quiet = False
        self._changed()

    def open(self, tab: str) -> None:
        """Bring a tab to the front, by its title."""
        self.tabs.selected_index = TABS.index(tab)

    @guarded
    def follow(self, run_id: str) -> None:
        """Show a run in the tabs Run, Inspect and Try; what stands in the other panels stays."""
        self.run.spec = spec_of(run_id, self.root)
        self.open("Run")

    def close(self) -> None:
        """Look no more. Runs go on."""
        for panel in (self.run, self.runs, self.inspect, self.attempt):
            panel.close()
        super().close()

    def _at_work(self) -> RunSpec | None:
        for run in working(self.root):
            try:
                return spec_of(run.id, self.root)
            except LabError:  # of another version of the lab
                continue
        return None

    def _make(self, spec: RunSpec, process: bool) -> None:
        scored = [name for name, task in all_tasks().items() if "test" in task.splits]
        self.choose, self.data = Choose(spec, self.root), Data(spec)
        self.train = Form(TrainSpec, spec.train, prefix="train.")
        self.score = Form(EvalSpec, spec.eval, offers={"tasks": scored}, prefix="eval.")
        self.run = RunPanel(spec, self.root, process=process)
        self.runs, self.inspect, self.attempt = RunsPanel(self.root), InspectPanel(self.root), TryPanel(self.root)
        self.hand_over, self.load = HandOver(spec), LoadSpec(self._take)
        self.bar = Bar(self._start, self.follow)

    def _arrange(self) -> None:
        forms = [W.HTML(el("h3", "Training")), self.train.widget, W.HTML(el("h3", "Scoring")), self.score.widget]
        panels = (self.choose, self.data, W.VBox(forms), self.run, self.runs, self.inspect, self.attempt)
        self.tabs = W.Tab([getattr(panel, "widget", panel) for panel in panels], titles=TABS, selected_index=0)
        below = [
            Fold("Hand over: the same run without a browser", self.hand_over.widget).widget,
            Fold("Load a spec from a file", self.load.widget).widget,
        ]
        look = W.HTML(el("style", Html(_LOOK.read_text(encoding="utf-8"))), layout=W.Layout(display="none"))
        self.widget = W.VBox(
            [look, Names(layout=W.Layout(display="none")), self.bar.widget, self.problem, self.tabs, *below]
        )
        self.widget.add_class("lab")

    def _connect(self) -> None:
        for panel in (self.choose, self.data, self.train, self.score):
            panel.observe(self._changed)
        self.run.observe(self._look)
        self.run.on_clone(self._take)
        self.runs.on_open(self.follow)
        self.tabs.observe(self._opened, "selected_index")

    @guarded
    def _changed(self, _: Any = None) -> None:
        """Make one spec of what stands in the panels."""
        if self._quiet:
            return
        chosen, learnt, train, score = self.choose.spec, self.data.form.value, self.train.value, self.score.value
        self._spec = None
        if chosen and learnt and train and score:
            self._spec = chosen.model_copy(update={"data": learnt, "train": train, "eval": score})
            self.data.look_with(self._spec)
            if not self.run.state.works:
                self.run.spec = self._spec
        self.hand_over.spec = self._spec
        self._count()
        self._look()

    def _count(self) -> None:
        """Work out what the spec costs while somebody may read it."""
        self.choose.costs.show(self._spec if TABS[self.tabs.selected_index] == "Choose" else None)

    @guarded
    def _look(self, _: Any = None) -> None:
        """Bring the bar up to date."""
        parts: dict[str, Any] = dict(zip(TABS, (self.choose.spec, self.data.form.value), strict=False))
        parts[TABS[2]] = self.train.value and self.score.value
        found, detail = State("unfinished"), ""
        if self._spec and self._spec.id == self.run.run_id:
            found = self.run.state
            detail = self.run.progress.words.value if found.works else ""
        elif self._spec:
            found = state(Run(self.root / self._spec.id))
        self.bar.show(self._spec, found, detail, [name for name, value in parts.items() if not value])
        if time.monotonic() - self._looked > OFTEN:
            self._looked = time.monotonic()
            own = self._spec.id if self._spec else ""
            self.bar.show_others([run for run in working(self.root) if run.id != own])

    @guarded
    def _start(self) -> None:
        if self._spec is not None:
            self.run.spec = self._spec
            self.open("Run")
            self.run.start.click()
            self._looked = 0.0
            self._look()

    @guarded
    def _take(self, spec: RunSpec) -> None:
        """Put a spec into the panels, from a file or another run."""
        self.spec = spec
        self.open("Choose")

    @guarded
    def _opened(self, change: Any) -> None:
        """A tab has come to the front: it shows what is there by now."""
        self._count()
        panels: dict[str, Any] = {"Runs": self.runs, "Inspect": self.inspect, "Try": self.attempt}
        panel = panels.get(TABS[change["new"]])
        if panel is None:
            return
        panel.refresh()
        if panel is not self.runs and self._handed.get(panel) != self.run.run_id and self.run.is_adapted:
            panel.run_id = self._handed[panel] = self.run.run_id
