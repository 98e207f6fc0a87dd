"""All panels in one, around the spec being edited and the run being followed.

The values in all panels make up one `RunSpec`, whose run id is in the status bar. The tab Monitor shows its run; if
that is active, the tab stays with it whatever is edited. All state is on disk or in the panels: a new lab, for instance
after a restart of the kernel, opens with the active run.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.evaluation.spec import EvalSpec
from llm_adapters_lab.markup import el
from llm_adapters_lab.runs.background import working
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import State, spec_of, state
from llm_adapters_lab.tasks.registry import all_tasks
from llm_adapters_lab.training.spec import TrainSpec
from widgets.forms.form import Form
from widgets.kit.elements import Collapsible
from widgets.kit.panel import Panel, guarded, page
from widgets.kit.status import StatusBar
from widgets.panels.chat_panel import ChatPanel
from widgets.panels.data_panel import DataPanel
from widgets.panels.inspect_panel import InspectPanel
from widgets.panels.model_panel import ModelPanel
from widgets.panels.run_panel import RunPanel
from widgets.panels.runs_panel import RunsPanel
from widgets.panels.spec_files import ExportPanel, UploadPanel

FIRST_PRESET = "quickstart"
"""The preset that a new lab starts with."""
SEARCH_SECONDS = 5.0
"""Seconds between two searches for other active runs."""
TABS = ("Setup", "Data", "Training", "Monitor", "Compare", "Inspect", "Playground")


class Lab(Panel):
    """The whole laboratory.

    Attributes:
        model: base, adapter, placement.
        data: training data.
        train: training.
        evaluation: evaluation.
        run: the run being followed.
        runs: all runs.
        inspect: views into one run.
        chat: prompts for one run.
        export: the spec as code.
        upload: a spec from a file.
        bar: id, state and Start.
        tabs: the tabs.
    """

    def __init__(
        self, root: str | Path = "runs", spec: RunSpec | None = None, *, run_id: str = "", process: bool = True
    ) -> None:
        """Build the lab.

        Args:
            root: folder of all runs.
            spec: the initial spec.
            run_id: instead of a spec, any unambiguous prefix of the id of a run to show. By default, the active run
                that was started last; if none is active, a preset that takes less than a minute.
            process: start runs in separate processes, which survive page and kernel; otherwise in a thread of the
                kernel, which knows adapters defined in its cells.
        """
        super().__init__()
        self.root = Path(root).resolve()
        self._spec: RunSpec | None = None
        self._last_search, self._shown_in = 0.0, dict[Any, str]()
        first = spec_of(run_id, self.root) if run_id else spec or self._active() or RunSpec.load(FIRST_PRESET)
        with self.silently():
            self._build(first, process)
        self.spec = first
        if self.run.run_id and self.run.state.name != "unfinished":
            self.open("Monitor")

    @property
    def spec(self) -> RunSpec | None:
        """The spec that Start runs, or None while a panel has an invalid value; setting it fills all panels."""
        return self._spec

    @spec.setter
    def spec(self, spec: RunSpec) -> None:
        with self.silently():
            self.model.spec = self.data.spec = spec
            self.train.value, self.evaluation.value = spec.train, spec.eval
        self._changed()

    def open(self, tab: str) -> None:
        """Open a tab by its title."""
        self.tabs.selected_index = TABS.index(tab)

    @guarded
    def follow(self, run_id: str) -> None:
        """Show a run in the tabs Monitor, Inspect and Playground; the other panels keep their values."""
        self.run.spec = spec_of(run_id, self.root)
        self.open("Monitor")

    def close(self) -> None:
        """Stop polling and close all panels. Runs continue."""
        for panel in (self.run, self.runs, self.inspect, self.chat):
            panel.close()
        super().close()

    def _active(self) -> RunSpec | None:
        for run in working(self.root):
            try:
                return spec_of(run.id, self.root)
            except LabError:  # of another version of the lab
                continue
        return None

    def _build(self, spec: RunSpec, process: bool) -> None:
        scored = [name for name, task in all_tasks().items() if "test" in task.splits]
        self.model, self.data = ModelPanel(spec, self.root), DataPanel(spec)
        self.train = Form(TrainSpec, spec.train, prefix="train.")
        self.evaluation = Form(EvalSpec, spec.eval, offers={"tasks": scored}, prefix="eval.")
        self.run = RunPanel(spec, self.root, process=process)
        self.runs, self.inspect, self.chat = RunsPanel(self.root), InspectPanel(self.root), ChatPanel(self.root)
        self.export, self.upload = ExportPanel(spec), UploadPanel(self._load)
        self.bar = StatusBar(self._start, self.follow)
        heads = [W.HTML(el("h3", name)) for name in ("Training", "Evaluation")]
        forms = W.VBox([heads[0], self.train.widget, heads[1], self.evaluation.widget])
        later = [panel.widget for panel in (self.run, self.runs, self.inspect, self.chat)]
        self.tabs = W.Tab([self.model.widget, self.data.widget, forms, *later], titles=TABS, selected_index=0)
        export = Collapsible("Export as code (YAML · Python · CLI · papermill)", self.export.widget)
        upload = Collapsible("Load a spec from a file", self.upload.widget)
        self.widget = page(self.bar.widget, self.problem, self.tabs, export.widget, upload.widget)
        for panel in (self.model, self.data, self.train, self.evaluation):
            panel.observe(self._changed)
        self.run.observe(self._update_bar)
        self.run.on_clone(self._load)
        self.runs.on_open(self.follow)
        self.tabs.observe(self._opened, "selected_index")

    @guarded
    def _changed(self, _: Any = None) -> None:
        """Make one spec of the values in the panels."""
        if self.quiet:
            return
        chosen, data, train, score = self.model.spec, self.data.form.value, self.train.value, self.evaluation.value
        self._spec = None
        if chosen and data and train and score:
            self._spec = chosen.model_copy(update={"data": data, "train": train, "eval": score})
            self.data.use_context(self._spec)
            if not self.run.state.works:
                self.run.spec = self._spec
        self.export.spec = self._spec
        self._estimate()
        self._update_bar()

    def _estimate(self) -> None:
        """Estimate the cost of the spec while the tab that shows it is open."""
        self.model.costs.show(self._spec if TABS[self.tabs.selected_index] == "Setup" else None)

    @guarded
    def _update_bar(self, _: Any = None) -> None:
        parts: dict[str, Any] = {"Setup": self.model.spec, "Data": self.data.form.value}
        parts["Training"] = self.train.value and self.evaluation.value
        found, detail = State("unfinished"), ""
        if self._spec and self._spec.id == self.run.run_id:
            found = self.run.state
            detail = self.run.progress.text.value if found.works else ""
        elif self._spec:
            found = state(Run(self.root / self._spec.id))
        self.bar.show(self._spec, found, detail, [name for name, value in parts.items() if not value])
        if time.monotonic() - self._last_search > SEARCH_SECONDS:
            self._last_search = time.monotonic()
            own = self._spec.id if self._spec else ""
            self.bar.show_others([run for run in working(self.root) if run.id != own])

    @guarded
    def _start(self) -> None:
        if self._spec is not None:
            self.run.spec = self._spec
            self.open("Monitor")
            self.run.start.click()
            self._last_search = 0.0
            self._update_bar()

    @guarded
    def _load(self, spec: RunSpec) -> None:
        """Fill the panels with a spec from a file or another run."""
        self.spec = spec
        self.open("Setup")

    @guarded
    def _opened(self, change: Any) -> None:
        """Refresh the panel of a tab that was opened."""
        self._estimate()
        panels: dict[str, Any] = {"Compare": self.runs, "Inspect": self.inspect, "Playground": self.chat}
        panel = panels.get(TABS[change["new"]])
        if panel is None:
            return
        panel.refresh()
        if panel is not self.runs and self._shown_in.get(panel) != self.run.run_id and self.run.is_adapted:
            panel.run_id = self._shown_in[panel] = self.run.run_id
