"""The lab: one draft in Setup, many runs, and one selection that Monitor, Compare, Inspect and Playground show.

All state is on disk or in the fields of Setup: a new lab, for instance after a restart of the kernel, shows the runs
that are active and those in the queue. In a kernel `Lab()` returns at once, and the page fills when PyTorch is loaded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ipywidgets as W

from llm_adapters_lab.markup import el
from llm_adapters_lab.runs.queue import queued
from llm_adapters_lab.runs.record import check_writable
from llm_adapters_lab.runs.status import spec_of
from widgets import panels
from widgets.kit.panel import Panel, error_markup, guarded, page, schedule
from widgets.kit.workspace import Workspace

if TYPE_CHECKING:
    from llm_adapters_lab.runs.spec import RunSpec

PLACES = ("Setup", "Monitor", "Compare", "Inspect", "Playground")
EVERY = 1.0
"""Seconds between two looks at the runs."""
PATIENCE = 1.0
"""Seconds to wait for a page, which may not be open."""
_SHELL = ("bar", "tabs", "coach", "setup")


class Lab(Panel):
    """The whole laboratory.

    Attributes:
        workspace: the runs and the selection.
        bar: the draft in two lines, with Start.
        setup: the draft.
        monitor: active, queued and recent runs.
        compare: results side by side.
        inspect: views into a run.
        playground: prompts for several runs.
        tabs: the places.
        coach: the tour of a beginner; None otherwise.
    """

    def __init__(
        self,
        root: str | Path = "runs",
        spec: RunSpec | None = None,
        *,
        run_id: str = "",
        process: bool = True,
        level: Literal["full", "beginner"] = "full",
        locked: Collection[str] = (),
        text: Literal["normal", "large"] = "normal",
    ) -> None:
        """Build the lab.

        Args:
            root: folder of all runs.
            spec: the initial draft; by default, a preset that takes less than a minute.
            run_id: any unambiguous prefix of the id of a run to show.
            process: start runs in separate processes, which survive page and kernel; otherwise in a thread of the
                kernel, which knows adapters defined in its cells.
            level: "beginner" shows six fields and a tour.
            locked: dotted fields of a spec that cannot be changed, such as "train.epochs"; or parts, such as "eval".
            text: "large" for a projector.

        Raises:
            CannotWrite: runs cannot be kept under `root`.
        """
        super().__init__()
        check_writable(Path(root))
        self.workspace = Workspace(root, process=process, read=False)
        self._given: dict[str, Any] = {"spec": spec, "run_id": run_id, "level": level, "locked": tuple(locked)}
        self._open = "Setup"
        self._slots = {name: W.VBox() for name in PLACES}
        self._body = W.VBox(
            [W.HTML(el("div", "Loading PyTorch and transformers …", class_="lab-loading", role="status"))]
        )
        self.widget = page(self.problem, self._body)
        if text == "large":
            self.widget.add_class("lab-large")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel
            _load()
            self._show_all()
        else:
            self._task = loop.create_task(self._arrive())

    def __getattr__(self, name: str) -> Any:
        """Build a place, or the bar with Setup, when it is first used."""
        if "_slots" not in self.__dict__ or (name not in _SHELL and name.title() not in PLACES):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in _SHELL:
            self._build()
        else:
            self.__dict__[name] = found = getattr(panels, f"{name.title()}Panel")(self.workspace)
            self._slots[name.title()].children = [found.widget]
        return self.__dict__[name]

    @property
    def root(self) -> Path:
        """Folder of all runs."""
        return self.workspace.root

    @property
    def spec(self) -> RunSpec | None:
        """The spec that Start runs, the first of a sweep, or None while it is not valid; setting it fills Setup."""
        found: RunSpec | None = self.setup.spec
        return found

    @spec.setter
    def spec(self, spec: RunSpec) -> None:
        self.setup.spec = spec

    def open(self, place: str) -> None:
        """Open a place by its name."""
        self.tabs.selected_index = PLACES.index(place)

    def close(self) -> None:
        """Stop looking at runs and close all places. Runs continue."""
        for name in PLACES:
            if (found := self.__dict__.get(name.lower())) is not None:
                found.close()
        if "bar" in self.__dict__:
            self.bar.costs.stop()
        super().close()

    async def _arrive(self) -> None:
        """Load what the places need without blocking the event loop, build them one by one, and follow the runs."""
        try:
            await asyncio.to_thread(_load)
            await self.workspace.runs.refresh_soon()
            for name in PLACES:
                getattr(self, name.lower())
                await self._caught_up()
            self._show_all()
        except Exception as error:
            self.problem.value = error_markup(error)
            return
        while True:
            await asyncio.sleep(EVERY)
            self.bar.beat.beat += 1
            try:
                await self.workspace.runs.refresh_soon()
            except Exception as error:
                self.problem.value = error_markup(error)

    async def _caught_up(self) -> None:
        """Wait for the page, if there is one, to load what was built: modules of widgets have two seconds to load."""
        beat = self.bar.beat
        beat.beat += 1
        until = time.monotonic() + PATIENCE
        while beat.seen < beat.beat and time.monotonic() < until:
            await asyncio.sleep(0.02)

    def _show_all(self) -> None:
        """Build what is missing, and open Monitor if there is something to see."""
        for name in PLACES:
            getattr(self, name.lower())
        runs, wanted = self.workspace.runs, self._given["run_id"]
        if wanted or (runs.working() and self._given["spec"] is None):
            self.open("Monitor")

    def _build(self) -> None:
        """Build Setup, the bar and the tabs."""
        spec, level, locked, run_id = (self._given[name] for name in ("spec", "level", "locked", "run_id"))
        runs, selection = self.workspace.runs, self.workspace.selection
        if not runs.entries:  # asked for before they were read
            runs.refresh()
        if run_id:
            spec = spec_of(run_id, self.root)
        working = [each.id for each in runs.working()]
        selection.ids = [spec.id] if run_id else working[:1] or list(runs.entries)[:1]
        setup = self.__dict__["setup"] = panels.SetupPanel(self.workspace, spec, level=level, locked=locked)
        self.__dict__["bar"] = panels.DraftBar(panels.CostStrip(self.root), self._start)
        self._slots["Setup"].children = [setup.widget]
        self.__dict__["tabs"] = W.Tab(list(self._slots.values()), titles=PLACES, selected_index=0)
        self.__dict__["coach"] = self._tour() if level == "beginner" else None
        tour = [self.coach.widget] if self.coach else []
        self._body.children = [self.bar.widget, *tour, self.tabs]
        setup.observe(self._update)
        runs.observe(self._update)
        self.workspace.on_go(self._go)
        self.workspace.on_clone(self._clone)
        self.tabs.observe(self._opened, "selected_index")
        self._update()

    def _tour(self) -> Any:
        mark, setup, bar = panels.Mark, self.setup, self.bar
        marks = [
            mark("The model", "Pick a base. nano is small enough for any computer.", "Setup", setup.cards["base"]),
            mark("The method", "What is trained, and how large it is.", "Setup", setup.cards["adapter"]),
            mark("The data", "What it is trained on. See rows shows it to you.", "Setup", setup.cards["data"]),
            mark("Start", "Look at the cost in the bar, then start. You may close the page.", "Setup", bar.widget),
            mark("The result", "Watch it in Monitor; compare runs and look inside next.", "", self.tabs),
        ]
        return panels.Coach(marks, self.open)

    @guarded
    def _update(self, _: Any = None) -> None:
        """Show the draft and the number of runs."""
        runs, setup = self.workspace.runs, self.setup
        draft = setup.draft
        known = runs.entries.get(draft.spec.id) if draft and len(draft.points) == 1 else None
        busy = len(queued(self.root)) + len(runs.working())
        self.bar.show(draft, setup.faults, known, busy, setup.waiting)
        self.bar.costs.show(draft)
        titles = list(PLACES)
        titles[0] += " ✗" if setup.faults else ""
        titles[1] += f" ● {busy}" if busy else ""
        titles[2] += f" ({len(runs.entries)})" if runs.entries else ""
        if tuple(titles) != self.tabs.titles:
            self.tabs.titles = titles

    @guarded
    def _start(self) -> None:
        schedule(self._start_draft)

    async def _start_draft(self) -> None:
        """Start or queue the runs of the draft, and show them."""
        draft = self.setup.draft
        if draft is None:
            return
        self.bar.start.disabled = True
        try:
            started = await asyncio.to_thread(panels.start, draft.specs, self.workspace)
            self.workspace.runs.refresh()
            self.workspace.selection.ids = [run.id for run in started]
            self.problem.value = ""
            self.open("Monitor")
        except Exception as error:
            self.problem.value = error_markup(error)
        self._update()

    def _go(self, place: str) -> None:
        """Open a place, which takes the question that was handed over even if it is open already."""
        if self._open == place:
            getattr(getattr(self, place.lower()), "opened", lambda: None)()
        self.open(place)

    def _clone(self, spec: RunSpec, parent: str) -> None:
        """Make a spec the draft, as a copy of a run."""
        self.setup.copy(spec, self.workspace.runs.names.get(parent, parent))
        self.open("Setup")

    @guarded
    def _opened(self, change: Any) -> None:
        """Tell the places which of them is shown."""
        for name, told in ((self._open, "hidden"), (PLACES[change["new"]], "opened")):
            getattr(getattr(self, name.lower()), told, lambda: None)()
        self._open = PLACES[change["new"]]


def _load() -> None:
    """Import what the places need."""
    for name in panels.__all__:
        getattr(panels, name)
