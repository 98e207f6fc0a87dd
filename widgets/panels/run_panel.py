"""The panel that starts, monitors, stops and resumes a run.

Everything shown comes from the record, so any panel with the same run id shows the same, wherever the run was started.
The panel polls in the kernel's event loop, without a thread: while a cell runs the panel stands still, but not the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as W
import plotly.graph_objects as go

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import row_remarks
from llm_adapters_lab.markup import el
from llm_adapters_lab.results.appearance import colour
from llm_adapters_lab.results.formatting import percent
from llm_adapters_lab.results.plots.runs import POINTS, accuracy, running_mean, thinned
from llm_adapters_lab.results.plots.style import INK, style
from llm_adapters_lab.runs import background
from llm_adapters_lab.runs.event_log import Cursor, last_lines, read_new
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.recovery.failures import resumes_at
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import State, beside, spec_of, state
from widgets.figures.figure_view import LiveFigure, figure_output
from widgets.kit import kernel_runs, warm
from widgets.kit.elements import Collapsible, button, column, row, show_if, text_area
from widgets.kit.panel import Panel, guarded, message, note
from widgets.kit.status import SIGNS, Progress

LOG_LINES = 40


class TrainingCurves:
    """Training and validation loss, gradient norm and ‖θ − θ₀‖, from the events of a run.

    Attributes:
        widget: shows the figure as of the last `update`.
    """

    def __init__(self, kind: str | None = None) -> None:
        """Make an empty figure in the colour of an adapter type."""
        self.widget = LiveFigure(layout={"width": "100%"})
        self.clear(kind)

    def clear(self, kind: str | None) -> None:
        """Remove all points."""
        self.kind = kind
        self._steps: list[tuple[int, float, float]] = []
        self._validation: list[tuple[int, float]] = []
        self._distances: list[tuple[int, float]] = []
        self._empty, self._drawn = self._figure().to_plotly_json(), -1
        self.update()

    def add(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Add events; `update` draws them."""
        for event in events:
            if event["event"] == "Step":
                self._steps.append((event["step"], event["loss"], event["gradient_norm"]))
            elif event["event"] == "Validated":
                self._validation.append((event["step"], event["loss"]))
            elif event["event"] == "Norms":
                self._distances.append((event["step"], math.hypot(*event["norms"].values())))

    def update(self, force: bool = True) -> None:
        """Draw all points; without `force`, only if enough new ones make a visible difference."""
        count = len(self._steps) + len(self._validation) + len(self._distances)
        new = count - self._drawn
        if new == 0 or (not force and 0 < new * POINTS < count):
            return
        self._drawn = count
        # As plain data: a figure object would validate every point, which is slow.
        traces = zip(self._empty["data"], self.points(), strict=True)
        data = [{**trace, "x": x, "y": y} for trace, (x, y) in traces]
        self.widget.figure = {"data": data, "layout": self._empty["layout"]} if count else {}

    def points(self) -> list[tuple[list[int], list[float]]]:
        """Return x and y of each trace: training loss raw and smoothed, validation loss, gradient norm, distance."""
        at = thinned(len(self._steps))
        steps = [self._steps[i][0] for i in at]
        raw, norms = [self._steps[i][1] for i in at], [self._steps[i][2] for i in at]
        smooth = running_mean([loss for _, loss, _ in self._steps], at, half=len(self._steps) // 40)
        return [(steps, raw), (steps, smooth), _pairs(self._validation), (steps, norms), _pairs(self._distances)]

    def _figure(self) -> go.Figure:
        hue = colour(self.kind)
        thin, thick = {"color": hue, "width": 1}, {"color": hue, "width": 2.2}
        marked = {"mode": "lines+markers"}
        traces: dict[str, dict[str, Any]] = {
            "train loss (raw)": {"line": thin, "opacity": 0.35, "hoverinfo": "skip"},
            "train loss (smoothed)": {"line": thick},
            "validation loss": {"line": thin | {"dash": "dot"}, "marker": {"size": 8}, **marked},
            "gradient norm": {"line": {"color": INK, "width": 1}, "yaxis": "y2"},
            "‖θ − θ₀‖": {"line": thin | {"dash": "dash"}, "yaxis": "y2", **marked},
        }
        figure = go.Figure([go.Scatter(name=name, **{"mode": "lines"} | look) for name, look in traces.items()])
        style(figure, "Training", "above: loss; below: norms", "step", "loss (nats)", 440)
        below = {"domain": [0, 0.26], "nticks": 4, "title": {"text": "norm", "font": {"size": 13}}}
        figure.update_layout(
            uirevision="kept",  # keeps the zoom
            yaxis={"domain": [0.34, 1], "rangemode": "tozero"},
            yaxis2=figure.layout.yaxis.to_plotly_json() | below,
            xaxis_anchor="y2",
        )
        return figure


def _pairs(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    kept = [points[i] for i in thinned(len(points))]
    return [x for x, _ in kept], [y for _, y in kept]


class AccuracyView(Panel):
    """The accuracy of a finished run, and a button that evaluates the bare base for comparison."""

    def __init__(self, root: Path) -> None:
        """Show nothing yet; `root` is the folder of all runs."""
        super().__init__()
        self.root = root
        self._spec: RunSpec | None = None
        self._drawn: tuple[str, ...] = ()
        self.plot, self.words = W.Output(), W.HTML()
        tip = "Shows what the adapter gains over the bare base"
        self.base = button("Evaluate the base model for comparison", tip, click=self._evaluate)
        self.widget = W.VBox([self.plot, row(self.base, self.words), self.problem])
        show_if(False, self.widget)

    def show(self, spec: RunSpec | None) -> None:
        """Show the run of a spec if it is finished; None shows nothing."""
        run = Run(self.root / spec.id) if spec else None
        self._spec, shown = spec, run is not None and run.done
        show_if(shown, self.widget)
        if not shown or spec is None or run is None:
            self._drawn, self.plot.outputs = (), ()
            return
        base = Run(self.root / _bare(spec).id)
        found, missing = state(base), bool(spec.eval.tasks) and not base.done
        runs = [base, run] if base.done and base.id != run.id else [run]
        wanted = tuple(each.id for each in runs)
        if wanted != self._drawn:
            self._drawn, self.plot.outputs = wanted, (figure_output(accuracy(*runs)),) if spec.eval.tasks else ()
        show_if(missing, self.base)
        self.base.disabled = found.works
        words = "" if spec.eval.tasks else "Nothing was evaluated: eval.tasks is empty."
        if missing:
            words = "evaluating the base …" if found.works else ""
            self.problem.value = message(found.reason) if found.name in ("failed", "dead") else self.problem.value
        self.words.value = note(words)

    @guarded
    def _evaluate(self, button: Any) -> None:
        if self._spec is not None:
            warm.launch(_bare(self._spec), self.root)
            self.show(self._spec)


def _bare(spec: RunSpec) -> RunSpec:
    return spec.model_copy(update={"adapter": None})


class RunPanel(Panel):
    """Buttons, progress, curves, log and errors of one run.

    Attributes:
        run: the record; None while there is no spec.
        state: as of the last refresh.
        progress: progress bar and text.
        curves: loss and norms.
        results: accuracy, once the run is finished.
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
            run_id: instead of a spec, any unambiguous prefix of the id of an existing run.
            every: seconds between two refreshes; outside a kernel the panel does not refresh itself.
            process: start runs in a separate process; else in a thread of the kernel, see `kernel_runs`.
        """
        super().__init__()
        self.root, self._backend = Path(root).resolve(), background if process else kernel_runs
        self._launch = warm.launch if process else kernel_runs.launch
        self.run: Run | None = None
        self.state = State("unfinished")
        self._spec: RunSpec | None = None
        self._last: dict[str, dict[str, Any]] = {}
        self._listeners: list[Callable[[RunSpec], None]] = []
        self._build()
        self._clear()
        self.spec = spec_of(run_id, self.root) if run_id else spec
        self._poll(every, self.refresh)

    @property
    def spec(self) -> RunSpec | None:
        """The spec that Start runs; setting it shows its run."""
        return self._spec

    @spec.setter
    def spec(self, spec: RunSpec | None) -> None:
        if spec != self._spec or spec is None:
            self._spec, self.run = spec, Run(self.root / spec.id) if spec else None
            self._clear()
        self.refresh()

    @property
    def run_id(self) -> str:
        """Id of the run; "" for none."""
        return self.run.id if self.run else ""

    @property
    def is_adapted(self) -> bool:
        """Whether the run is finished and has a trained adapter."""
        return self.state.name == "finished" and self._spec is not None and self._spec.adapter is not None

    def on_clone(self, listener: Callable[[RunSpec], None]) -> None:
        """Call `listener` with the spec when Clone is clicked."""
        self._listeners.append(listener)

    @guarded
    def refresh(self) -> None:
        """Read the record and show what is new."""
        self.heartbeat.value = f"Updated {time.strftime('%H:%M:%S')} · the run continues if you close this page"
        if self.run is None:
            self._show(State("unfinished", "There is no spec yet."))
        else:
            found = self._backend.state(self.run)
            self._read(self.run, until=time.monotonic() + 0.5)
            self.curves.update(force=not found.works)
            self._show(found)
            self.progress.show(found, self._last)
            self.results.show(self._spec if found.name == "finished" else None)
            self.log.value = "\n".join(last_lines(beside(self.run, "log"), LOG_LINES))
        self._notify()

    def _build(self) -> None:
        self.title, self.status, self.error, self.heartbeat = W.HTML(), W.HTML(), W.HTML(), W.Label()
        self.start = button("Start", "The run continues if you close this page", "primary", click=self._start)
        self.stop = button("Stop", "Stop after the current step", click=self._stop)
        self.resume = button("Resume", click=self._start)
        self.clone = button("Clone", "Start a new spec from this one", click=self._clone)
        self.progress, self.curves, self.results = Progress(), TrainingCurves(), AccuracyView(self.root)
        self.log = text_area("log of the process", 8, disabled=True)
        head = [self.title, row(self.start, self.stop, self.resume, self.clone), self.problem, self.status, self.error]
        log = Collapsible("Log of the process", self.log)
        shown = [part.widget for part in (self.progress, self.results, self.curves, log)]
        self.widget = column(*head, *shown, self.heartbeat)

    def _clear(self) -> None:
        """Clear everything that belongs to the previous run."""
        self._cursor, self._last = Cursor(), {}
        self.problem.value, self.problem_of, self.log.value = "", "", ""
        adapter = self._spec.adapter if self._spec else None
        self.curves.clear(adapter.type if adapter else None)
        self.title.value = ""
        self.progress.show(State("unfinished"), {})
        if self._spec:
            words = f"{self._spec.base}, {adapter.type if adapter else 'no adapter'}, {self._spec.data.task}"
            self.title.value = el("div", el("b", self.run_id), f" · {words}")

    def _read(self, run: Run, until: float) -> None:
        """Read the new events of the log; a long log takes several refreshes."""
        while True:
            found = read_new(run.log, self._cursor)
            if found.restarted:
                self._last = {}
                self.curves.clear(self.curves.kind)
            for event in found.events:
                self._last[event["event"]] = event
            self._cursor = found.cursor
            self.curves.add(found.events)
            if not found.more or time.monotonic() > until:
                return

    def _show(self, found: State) -> None:
        """Show a state, and enable the buttons that apply to it."""
        self.state = found
        started = self.run is not None and (found.name != "unfinished" or bool(self._last))
        self.start.disabled = self.run is None or started
        self.resume.disabled = not started or found.works or found.name == "finished"
        self.stop.disabled = not found.works
        self.stop.description = "Stop now" if found.name == "stopping" else "Stop"
        self.clone.disabled = self.run is None
        self.resume.tooltip = resumption = "" if self.resume.disabled else self._resumption()
        bad = found.name in ("failed", "dead")
        words = "The reason is below." if bad else found.reason
        if found.name == "finished" and self.run:
            scores = self.run.summary.get("scores", {}).items()
            words = ", ".join(f"{task} {percent(score['accuracy'])}" for task, score in scores)
            if size := self.run.summary.get("adapter_bytes"):
                words += f" · adapter {size / 1000:,.1f} kB"
        head = el("b", f"{SIGNS[found.name]} {found.name if started else 'not started'}")
        words = words if started or self.run is None else ""
        text = " · ".join(part for part in (words, resumption) if part)
        told = row_remarks(self.run.summary) if found.name == "finished" and self.run else []
        self.status.value = el("div", head, f"  {text}", *map(note, told), role="status")
        trace = self._last.get("Failed", {}).get("traceback") if found.name == "failed" else ""
        folded = [el("details", el("summary", "traceback"), el("pre", trace))] if trace else []
        self.error.value = message(found.reason, *folded) if bad else ""

    def _resumption(self) -> str:
        return f"Resume continues {resumes_at(self.run, self._spec)}." if self.run and self._spec else ""

    @guarded
    def _start(self, _: Any) -> None:
        if self._spec is None:
            raise BadSpec("There is no spec to run. Choose a base and an adapter first.")
        self._launch(self._spec, self.root)
        self.refresh()

    @guarded
    def _stop(self, _: Any) -> None:
        if self.run is not None:
            self._backend.stop(self.run, now=self.state.name == "stopping")
            if self._task and self._backend is background:
                warm.prepare()  # for Resume
        self.refresh()

    @guarded
    def _clone(self, _: Any) -> None:
        if self._spec is not None:
            for listener in self._listeners:
                listener(self._spec)
