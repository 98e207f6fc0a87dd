"""Run panel: starts a run in a process of its own, shows how it goes, stops it and takes it up again.

What is shown comes from the record. The panel keeps nothing that matters: one that is made anew with the run id shows
the same, whoever started the run and wherever. It looks by a task in the kernel's own loop, never by a thread, so its
clock stands still while a cell works; the run does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.markup import el
from llm_adapters_lab.runs import background
from llm_adapters_lab.runs.background import State, beside, spec_of
from llm_adapters_lab.runs.event_log import Place, last_lines, news
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.recovery.failures import goes_on
from llm_adapters_lab.runs.spec import RunSpec
from widgets.figures.accuracy_view import Results
from widgets.figures.training_curves import Curves
from widgets.kit import kernel_runs as threads
from widgets.kit.collapsible import Fold
from widgets.kit.errors import guarded, message
from widgets.kit.panel import Panel
from widgets.kit.progress import SIGNS, Progress

LOG_LINES = 40
_STEADY = "font-variant-numeric: tabular-nums; line-height: 1.5"


class RunPanel(Panel):
    """Start, Stop, Resume and Clone; progress, curves, log and errors of one run.

    Attributes:
        run: the record; None while there is no spec.
        state: as last seen.
        progress: bar and figures.
        curves: loss and norms.
        results: accuracy, once it is finished.
    """

    def __init__(
        self,
        spec: RunSpec | None = None,
        root: str | Path = "runs",
        *,
        run_id: str = "",
        every: float = 1.0,
        process: bool = True,
    ) -> None:
        """Show a run, started or not.

        Args:
            spec: of the run.
            root: folder of all runs.
            run_id: instead of a spec, the id of a run that was started before, or the beginning of it.
            every: seconds between two looks; there are none by themselves outside a kernel, see `refresh`.
            process: start runs in a process of their own; else in a thread of the kernel, see `threads`.
        """
        super().__init__()
        self.root, self._way = Path(root).resolve(), background if process else threads
        self.run: Run | None = None
        self.state = State("unfinished")
        self._spec: RunSpec | None = None
        self._last: dict[str, dict[str, Any]] = {}
        self._listeners: list[Callable[[RunSpec], None]] = []
        self._build()
        self._forget()
        self.spec = spec_of(run_id, self.root) if run_id else spec
        self._look_every(every, self.refresh)

    @property
    def spec(self) -> RunSpec | None:
        """What Start would run; setting it shows the run of that spec, as far as there is one."""
        return self._spec

    @spec.setter
    def spec(self, spec: RunSpec | None) -> None:
        if spec != self._spec or spec is None:
            self._spec, self.run = spec, Run(self.root / spec.id) if spec else None
            self._forget()
        self.refresh()

    @property
    def run_id(self) -> str:
        """Id of the run that is shown; "" for none."""
        return self.run.id if self.run else ""

    @property
    def is_adapted(self) -> bool:
        """Whether the run is finished and has left an adapter."""
        return self.state.name == "finished" and self._spec is not None and self._spec.adapter is not None

    def on_clone(self, listener: Callable[[RunSpec], None]) -> None:
        """Call `listener` with the spec when Clone is clicked, for instance to put it into a form."""
        self._listeners.append(listener)

    @guarded
    def refresh(self) -> None:
        """Look once, and show what is there."""
        self.heartbeat.value = f"last looked at {time.strftime('%H:%M:%S')}; the run does not need this page"
        self._see()
        self._tell()

    def _see(self) -> None:
        if self.run is None:
            self._say(State("unfinished", "There is no spec yet."))
            return
        found = self._way.state(self.run)
        self._read(self.run, until=time.monotonic() + 0.5)
        self.curves.update(all_of_them=not found.works)
        self._say(found)
        self.progress.show(found, self._last)
        self.results.show(self._spec if found.name == "finished" else None)
        self.log.value = "\n".join(last_lines(beside(self.run, "log"), LOG_LINES))

    def _build(self) -> None:
        wide = W.Layout(width="100%")
        self.title, self.status, self.error = W.HTML(), W.HTML(), W.HTML()
        self.start = W.Button(
            description="Start", button_style="primary", tooltip="Start the run; it does not need this page"
        )
        self.halt = W.Button(description="Stop", tooltip="Stop after the step it is at")
        self.resume = W.Button(description="Resume")
        self.clone = W.Button(description="Clone", tooltip="Take this spec as the beginning of another")
        for button, callback in (
            (self.start, self._start),
            (self.resume, self._start),
            (self.halt, self._stop),
            (self.clone, self._clone),
        ):
            button.on_click(callback)
        self.progress = Progress()
        self.heartbeat = W.Label()
        # A text area shows what it is given as it stands.
        self.log = W.Textarea(disabled=True, tooltip="log of the process", rows=8, layout=wide)
        self.curves, self.results = Curves(), Results(self.root)
        folded = Fold("Log of the process", self.log).widget
        buttons = W.HBox([self.start, self.halt, self.resume, self.clone])
        self.widget = W.VBox(
            [
                *(self.title, buttons, self.problem, self.status, self.error),
                *(self.progress.widget, self.results.widget, self.curves.widget, folded, self.heartbeat),
            ],
            layout=wide,
        )

    def _forget(self) -> None:
        """Be as if nothing had been read."""
        self._place, self._last = Place(), {}
        self.problem.value, self.problem_of, self.log.value = "", "", ""
        adapter = self._spec.adapter if self._spec else None
        self.curves.clear(adapter.type if adapter else None)
        self.title.value = ""
        self.progress.show(State("unfinished"), {})
        if self._spec:
            words = f"{self._spec.base}, {adapter.type if adapter else 'no adapter'}, {self._spec.data.task}"
            self.title.value = el("div", el("b", self.run_id), f" · {words}")

    def _read(self, run: Run, until: float) -> None:
        """Take in what is new in the log; a long one takes several looks."""
        while True:
            found = news(run.log, self._place)
            if found.anew:
                self._last = {}
                self.curves.clear(self.curves.kind)
            for event in found.events:
                self._last[event["event"]] = event
            self._place = found.place
            self.curves.add(found.events)
            if not found.more or time.monotonic() > until:
                return

    def _say(self, found: State) -> None:
        """Show a state, and allow what can be done in it."""
        self.state = found
        begun = self.run is not None and (found.name != "unfinished" or bool(self._last))
        self.start.disabled = self.run is None or begun
        self.resume.disabled = not begun or found.works or found.name == "finished"
        self.halt.disabled = not found.works
        self.halt.description = "Stop now" if found.name == "stopping" else "Stop"
        self.clone.disabled = self.run is None
        self.resume.tooltip = note = "" if self.resume.disabled else self._resumption()
        bad = found.name in ("failed", "dead")
        words = found.reason if not bad else "The reason stands below."
        if found.name == "finished" and self.run:
            scores = self.run.summary.get("scores", {}).items()
            words = ", ".join(f"{task} {100 * score['accuracy']:.1f}%" for task, score in scores)
            if held := self.run.summary.get("adapter_bytes"):
                words += f" · adapter {held / 1000:,.1f} kB"
        head = el("b", f"{SIGNS[found.name]} {found.name if begun else 'not started'}")
        words = words if begun or self.run is None else ""
        text = " · ".join(part for part in (words, note) if part)
        self.status.value = el("div", head, f"  {text}", style=_STEADY, role="status")
        trace = self._last.get("Failed", {}).get("traceback") if found.name == "failed" else ""
        folded = [el("details", el("summary", "traceback"), el("pre", trace, style="overflow: auto"))] if trace else []
        self.error.value = message(found.reason, *folded) if bad else ""

    def _resumption(self) -> str:
        return f"Resume goes on {goes_on(self.run, self._spec)}." if self.run and self._spec else ""

    @guarded
    def _start(self, button: Any) -> None:
        if self._spec is None:
            raise BadSpec("There is no spec to run. Choose a base and an adapter first.")
        self._way.launch(self._spec, self.root)
        self.refresh()

    @guarded
    def _stop(self, button: Any) -> None:
        if self.run is not None:
            self._way.stop(self.run, now=self.state.name == "stopping")
        self.refresh()

    @guarded
    def _clone(self, button: Any) -> None:
        if self._spec is not None:
            for listener in self._listeners:
                listener(self._spec)
