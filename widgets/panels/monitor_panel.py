"""Monitor: all active, queued and recent runs at the left, and what the selected ones do at the right.

Everything shown comes from the records, so it is the same wherever a run was started, and it continues if the page or
the kernel does not.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ipywidgets as W
import psutil

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.events import row_remarks
from llm_adapters_lab.markup import el
from llm_adapters_lab.results.appearance import colours
from llm_adapters_lab.results.curves import Curves
from llm_adapters_lab.results.formatting import ago, clock, date, percent, size
from llm_adapters_lab.results.health import hints
from llm_adapters_lab.results.plots.runs import POINTS
from llm_adapters_lab.results.run_index import Entry
from llm_adapters_lab.runs import background, queue
from llm_adapters_lab.runs.event_log import last_lines
from llm_adapters_lab.runs.machine_load import MachineLoad, machine_load
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import State, beside, process_of, resumes_at, spec_of, stage
from widgets.figures.curves_view import CurvesView, series
from widgets.figures.run_head import (
    accuracy_dots,
    answers,
    ended,
    figures,
    gauge,
    hint_line,
    ordinal,
    progress,
    result,
    sentence,
    stages,
    state_words,
    title,
)
from widgets.figures.run_list import Action, RunList, part, row
from widgets.kit import kernel_runs, launching, warm
from widgets.kit.elements import Collapsible, button, card, show_if, text_area
from widgets.kit.panel import Panel, error_markup, guarded, message, schedule
from widgets.kit.status import SIGNS
from widgets.kit.workspace import Workspace

EVERY = 1.0
"""Seconds between two looks at the active runs."""
RECENT, TOGETHER = 40, 30
"""Recent runs in the list, and runs whose curves are shown together."""
LOG_LINES, ANSWERS, PATIENCE = 40, 5, 0.4
"""Lines of the log, answers, and seconds that reading may take at a time."""
RESUMABLE = ("stopped", "failed", "dead", "unfinished")
"""States of runs that Resume continues."""
MACHINE = 3.0
"""Seconds between two measurements of the machine."""


@dataclass
class _Followed:
    """A run whose log is read.

    Attributes:
        curves: as far as they have been read.
        memory: step and bytes of memory of its process, while it was watched.
        drawn: what the browser has: number of events and of runs beside it, and whether it was active.
        data: the curves as drawn.
    """

    curves: Curves
    memory: list[tuple[float, float]] = field(default_factory=list)
    drawn: tuple[Any, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)

    def draw(self, works: bool, together: int) -> None:
        """Make the curves for the browser, unless they would look as they do there."""
        count = len(self.curves) + len(self.curves.validation) + len(self.curves.distances)
        known = self.drawn[0] if self.drawn[1:] == (together, works) else -1
        # While it works, fewer new points than these would make no visible difference.
        if known < 0 or count < known or (count - known) * POINTS > (count if works else 0):
            self.data, self.drawn = series(self.curves, works, together, self.memory), (count, together, works)


@dataclass
class _Seen:
    """What one look at the disk has found.

    Attributes:
        waiting: the queued runs, in order.
        kept: whether a process starts them.
        stages: of active runs without events, by id.
        ends: last events and time of the last one of runs that are not active, by id.
        machine: its load, if it was measured.
        summary: of the first selected run.
        base: the bare base of the first selected run, and the scores of it.
        spec: of the first selected run.
        said: its latest answers.
        hints: what is remarkable about its training and its rows.
        log: the output of its process.
    """

    waiting: list[Run] = field(default_factory=list)
    kept: bool = False
    stages: dict[str, str] = field(default_factory=dict)
    ends: dict[str, tuple[dict[str, Any], float]] = field(default_factory=dict)
    machine: MachineLoad | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    base: RunSpec | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    spec: RunSpec | None = None
    said: list[dict[str, Any]] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    log: str = ""


class MonitorPanel(Panel):
    """All runs and what can be done with them, and the curves of the selected ones.

    Attributes:
        workspace: the runs and the selection.
        list: the runs.
        curves: the curves of the selected runs.
        state: of the first selected run.
    """

    def __init__(self, workspace: Workspace | str | Path = "runs", *, every: float = EVERY) -> None:
        """Show the runs of a workspace.

        Args:
            workspace: or a folder of runs, for a panel that works alone.
            every: seconds between two looks at active runs; outside a kernel the panel does not look by itself.
        """
        super().__init__()
        self.workspace = Workspace.of(workspace)
        self._alone = self.workspace is not workspace
        self._shown, self._measured, self._busy, self._again = self._alone, -MACHINE, False, False
        self._followed: dict[str, _Followed] = {}
        self._ends: dict[str, tuple[Any, dict[str, Any], float]] = {}
        self._seen, self.state = _Seen(), State("unfinished")
        self._build()
        for shared in (self.workspace.runs, self.workspace.selection):
            shared.observe(self._changed)
        if not self.workspace.selection.ids and self.workspace.runs.entries:
            working = [entry.id for entry in self.workspace.runs.working()]
            self.workspace.selection.ids = working[:1] or [next(iter(self.workspace.runs.entries))]
        self.refresh()
        self._poll(every, self._tick)

    def opened(self) -> None:
        """Show the present state, and keep it up to date."""
        self._shown = True
        self.refresh()

    def hidden(self) -> None:
        """Stop reading logs."""
        self._shown = False

    def close(self) -> None:
        """Stop looking at runs and remove the panel from the page. Runs continue."""
        for shared in (self.workspace.runs, self.workspace.selection):
            shared.unobserve(self._changed)
        super().close()

    def refresh(self) -> None:
        """Look at the runs and show what is new; in a kernel this does not block."""
        schedule(self._refresh)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        self._shown = True
        return super()._repr_mimebundle_(**options)

    def _build(self) -> None:
        self.list = RunList(self._act)
        self.list.observe(self._chosen, "selected")
        self.machine, self.head, self.error, self.say = W.HTML(), W.HTML(), W.HTML(), W.HTML()
        self.machine.add_class("lab-machine")
        self.title = W.HTML()
        self.stop = button("Stop", "Stop after the current step", click=lambda _: self._act_on_first("stop"))
        self.resume = button("Resume", style="primary", click=lambda _: self._act_on_first("resume"))
        self.base = button("Evaluate base", "Evaluate the base model for comparison", click=self._evaluate)
        self.warm = button(
            "Warm start", "A new draft whose training starts from this adapter", click=lambda _: self._clone(warm=True)
        )
        self.clone = button("Clone", "A new draft from this run", click=lambda _: self._act_on_first("clone"))
        self.tools = [self.stop, self.resume, self.base, self.warm, self.clone]
        top = W.HBox([self.title, *self.tools]).add_class("lab-run-top")
        self.curves, self.log = CurvesView(), text_area("log of the process", 8, disabled=True)
        self.dots, self.answers = W.HTML(), W.HTML()
        self.scores, self.latest = card("Accuracy", self.dots), card("Latest answers", self.answers)
        head = card("", top, self.head, self.error, self.say, css="lab-run-head")
        more = W.VBox([self.scores, self.latest]).add_class("lab-monitor-more")
        log = Collapsible("Log of the process", self.log)
        side = W.VBox([self.list, self.machine]).add_class("lab-monitor-side")
        plot = card("", self.curves)
        main = W.VBox([self.problem, head, plot, more, log.widget]).add_class("lab-monitor-main")
        self.widget = W.VBox([side, main]).add_class("lab-monitor")

    def _tick(self) -> None:
        if self._shown:
            self.refresh()

    def _changed(self) -> None:
        if self._shown:
            self.refresh()

    def _chosen(self, change: Any) -> None:
        self.workspace.selection.ids = change["new"]

    async def _refresh(self) -> None:
        """Look at the disk in a thread, then show what it has found."""
        if self._busy:
            self._again = True
            return
        self._busy = True
        try:
            if self._alone:
                await self.workspace.runs.refresh_soon()
            self._again = True
            while self._again:
                self._again = False
                self._seen = await asyncio.to_thread(self._look, tuple(self.workspace.selection.ids))
                self._show()
            if self.problem_of == "_refresh":
                self.problem.value, self.problem_of = "", ""
        except Exception as error:
            self.problem.value, self.problem_of = error_markup(error), "_refresh"
        finally:
            self._busy = False
        self._notify()

    def _look(self, selected: Sequence[str]) -> _Seen:
        """Read what is new; called in a thread, so it changes no widget."""
        runs, root = self.workspace.runs, self.workspace.root
        seen = _Seen(queue.queued(root))
        seen.kept = queue.keeper(root) is not None
        active = [entry.run for entry in runs.working()]
        followed = list(dict.fromkeys([*(run.id for run in active), *selected[:TOGETHER]]))
        self._followed = {name: self._followed.get(name) or _Followed(Curves(runs.run(name))) for name in followed}
        until = time.monotonic() + PATIENCE
        for each in self._followed.values():
            if each.curves.read(max(0.0, until - time.monotonic())) and time.monotonic() > until:
                self._again = True
        for run in active:
            seen.stages[run.id] = stage(run)
            self._measure(run)
        together = sum(name in self._followed for name in selected[:TOGETHER])
        for name in selected[:TOGETHER]:
            self._followed[name].draw(name in seen.stages, together)
        for entry in list(runs.entries.values())[: RECENT + len(seen.waiting) + len(active)]:
            if not entry.state.works:
                seen.ends[entry.id] = self._end(entry.run)
        if time.monotonic() - self._measured > MACHINE:
            seen.machine, self._measured = machine_load(), time.monotonic()
        if selected:
            self._look_closely(runs.run(selected[0]), seen)
        return seen

    def _look_closely(self, run: Run, seen: _Seen) -> None:
        if run.id not in seen.ends:
            seen.ends[run.id] = self._end(run)
        with suppress(OSError, LabError):
            seen.spec = spec_of(run.id, run.folder.parent)
        seen.summary = run.summary if run.done else {}
        if run.done and seen.spec and seen.spec.adapter and seen.spec.eval.tasks:
            seen.base = seen.spec.model_copy(update={"adapter": None})
            base = Run(run.folder.parent / seen.base.id)
            seen.scores = base.summary.get("scores", {}) if base.done else {}
        seen.hints = [*hints(self._followed[run.id].curves), *row_remarks(seen.summary)]
        for line in reversed(last_lines(run.folder / "predictions.jsonl", ANSWERS + 1)):
            with suppress(ValueError):  # the last line may be incomplete
                seen.said.append(json.loads(line))
        seen.log = "\n".join(last_lines(beside(run, "log"), LOG_LINES))

    def _end(self, run: Run) -> tuple[dict[str, Any], float]:
        """Return the last events of a run that is not active, by class, and the time of the last one."""
        try:
            found = run.log.stat()
        except OSError:
            return {}, 0.0
        mark = (found.st_mtime_ns, found.st_size)
        if self._ends.get(run.id, (None,))[0] != mark:
            last: dict[str, Any] = {}
            for line in last_lines(run.log, 12):
                with suppress(ValueError):
                    event = json.loads(line)
                    last[event["event"]] = event
            self._ends[run.id] = mark, last, found.st_mtime
        return self._ends[run.id][1:]

    def _measure(self, run: Run) -> None:
        """Note the memory of the process of an active run."""
        process, each = process_of(run), self._followed[run.id]
        if process and len(each.curves):
            with suppress(psutil.Error):
                used = psutil.Process(process["pid"]).memory_info().rss
                each.memory.append((each.curves.columns["step"][-1], float(used)))

    def _show(self) -> None:
        runs, selected = self.workspace.runs, list(self.workspace.selection.ids)
        fields = {i: runs.entries[i].fields if i in runs.entries else {} for i in selected[:TOGETHER]}
        hues = colours(fields)
        first = self.workspace.selection.first
        self.state = self._state(first)
        self._show_list(hues)
        if list(self.list.selected) != selected:
            self.list.selected = selected
        self._show_curves(hues)
        self._show_head(first)
        self._show_more(first, hues.get(first, ""))
        if self._seen.machine:
            self.machine.value = _machine(self._seen.machine)

    def _state(self, run_id: str) -> State:
        run = self.workspace.runs.run(run_id)
        if not self.workspace.process and run_id:
            return kernel_runs.state(run)
        entry = self.workspace.runs.entries.get(run_id)
        return entry.state if entry else State("unfinished", "There is no such run.")

    def _show_list(self, hues: Mapping[str, str]) -> None:
        seen, entries = self._seen, self.workspace.runs.entries
        places = {run.id: place for place, run in enumerate(seen.waiting, 1)}
        working = [entry for entry in entries.values() if entry.state.works]
        waiting = [entries[run.id] for run in seen.waiting if run.id in entries and entries[run.id] not in working]
        rest = [entry for entry in entries.values() if entry not in working and entry not in waiting]
        chosen = [entry for entry in rest[RECENT:] if entry.id in self.workspace.selection.ids]
        parts = [part("Running", [self._working(entry, hues) for entry in working])] if working else []
        if waiting:
            still = not seen.kept and not working
            note = "nothing starts them" if still else f"{len(waiting)}"
            rows = [self._waiting(entry, places[entry.id], hues) for entry in waiting]
            parts.append(part("Queued", rows, note, "keep" if still else "", "Start the queue"))
        note = f"{min(len(rest), RECENT)} of {len(rest)}" if len(rest) > RECENT else ""
        more: tuple[Any, str] = ("all", "All in Compare") if len(rest) > RECENT else ("", "")
        recent = [self._recent(entry, hues) for entry in [*rest[:RECENT], *chosen]]
        parts.append(part("Recent", recent, note or ("" if rest else "no runs yet"), *more))
        if self.list.parts != parts:
            self.list.parts = parts

    def _name(self, run_id: str) -> str:
        return self.workspace.runs.names.get(run_id, run_id)

    def _row(self, entry: Entry, hues: Mapping[str, str], **more: Any) -> dict[str, Any]:
        tip = f"{entry.id}\nstarted {date(entry.begun)}" + (f"\n{entry.state.reason}" if entry.state.reason else "")
        more |= {"color": hues.get(entry.id, ""), "tip": tip}
        return row(entry.id, self._name(entry.id), SIGNS[entry.state.name], entry.state.name, **more)

    def _working(self, entry: Entry, hues: Mapping[str, str]) -> dict[str, Any]:
        last, now = self._last(entry.id), self._seen.stages.get(entry.id, "")
        done, where = progress(last)
        step = last.get("Step")
        if entry.state.name == "stopping":
            return self._row(entry, hues, detail="stops after this step", done=done, actions=["kill", "clone"])
        if now:
            return self._row(entry, hues, detail=f"loading {now}", done=0.0, actions=["stop", "clone"])
        left = f" · {clock(step['seconds_left'])} left" if step and step["step"] < step["steps"] else ""
        return self._row(entry, hues, detail=(where or "starting") + left, done=done, actions=["stop", "clone"])

    def _waiting(self, entry: Entry, place: int, hues: Mapping[str, str]) -> dict[str, Any]:
        actions: list[Action] = ["start", *(["up"] if place > 1 else []), "remove", "clone"]  # type: ignore[list-item]
        return self._row(entry, hues, detail=f"queued ({ordinal(place)})", actions=actions)

    def _recent(self, entry: Entry, hues: Mapping[str, str]) -> dict[str, Any]:
        last, at = self._seen.ends.get(entry.id, ({}, 0.0))
        when = ago(at or entry.begun)
        actions: list[Action] = ["clone"] if entry.fields else []
        if entry.state.name == "finished":
            took = f"took {clock(last['Finished']['seconds'])} · " if "Finished" in last else ""
            text = percent(entry.accuracy) if entry.scores else ""
            return self._row(entry, hues, text=text, detail=took + when, actions=actions)
        actions = ["resume", *actions] if entry.fields else []
        bad = entry.state.name in ("failed", "dead") or bool(entry.fault)
        words = "unreadable" if entry.fault else state_words(entry.state)
        told = (entry.fault or entry.state.reason).partition("\n")[0] if bad else ended(last)
        return self._row(entry, hues, detail=f"{words} · {told or when}", actions=actions)

    def _last(self, run_id: str) -> dict[str, dict[str, Any]]:
        """Return the last event of each class, of the present phase."""
        each = self._followed.get(run_id)
        return each.curves.last if each else {}

    def _show_curves(self, hues: Mapping[str, str]) -> None:
        ids = [name for name in hues if name in self._followed]
        live: dict[str, Any] = {}
        settled: dict[str, Any] = {}
        for name in ids:
            if len((each := self._followed[name]).curves):
                (live if each.data.get("live") else settled)[name] = each.data
        looks = [{"id": name, "name": self._name(name), "color": hues[name]} for name in ids]
        words = "No training yet: it has not taken its first step." if ids else "Select a run at the left."
        if ids and not live and not settled and all(self._is_base(name) for name in ids):
            words = "The bare base is only evaluated, so it has no curves."
        for name, value in (("words", words), ("looks", looks), ("settled", settled), ("live", live)):
            if getattr(self.curves, name) != value:
                setattr(self.curves, name, value)

    def _is_base(self, run_id: str) -> bool:
        entry = self.workspace.runs.entries.get(run_id)
        return entry is not None and bool(entry.fields) and entry.fields.get("adapter.type") is None

    def _show_head(self, run_id: str) -> None:
        seen, found = self._seen, self.state
        others = len(self.workspace.selection.ids) - 1
        entry = self.workspace.runs.entries.get(run_id)
        self._show_tools(found if run_id else None)
        if not run_id:
            self.title.value = el("div", "Select a run at the left, or start one in Setup.", class_="lab-run-line")
            self.head.value = self.say.value = self.error.value = ""
            return
        place = next((i for i, run in enumerate(seen.waiting, 1) if run.id == run_id), 0)
        last = self._last(run_id)
        more = f"+{others} selected" if others > 0 else ""
        self.title.value = title(self._name(run_id), run_id, found, place if found.name == "queued" else 0, more)
        now, (done, where) = seen.stages.get(run_id, ""), progress(last)
        finished, bad = found.name == "finished", found.name in ("failed", "dead")
        if found.works and (now or not where):
            lines = [gauge(0), stages(now or "first step")]
        elif found.works:
            lines = [gauge(done), sentence(where, figures(last))]
        elif finished:
            told = result(seen.summary, last.get("Finished", {}).get("seconds"))
            lines = [gauge(1), el("div", told, class_="lab-run-say")]
        else:
            reached = f"{'stopped ' if found.name == 'stopped' else ''}at {ended(last)}" if where else ""
            why = "" if bad or reached else found.reason.partition("\n")[0]
            lines = [gauge(done), sentence(reached, why, self._resumption(run_id))]
        self.head.value = el("div", *lines, class_=f"lab-is-{found.name}")
        trace = last.get("Failed", {}).get("traceback") if found.name == "failed" else ""
        folded = [el("details", el("summary", "traceback"), el("pre", trace))] if trace else []
        fault = entry.fault if entry else ""
        self.error.value = message(fault) if fault else message(found.reason, *folded) if bad else ""
        self.say.value = hint_line(seen.hints)

    def _resumption(self, run_id: str) -> str:
        """Return what Resume does, for a run that can be resumed."""
        if self.state.name not in RESUMABLE or self._seen.spec is None:
            return ""
        return f"Resume continues {resumes_at(self.workspace.runs.run(run_id), self._seen.spec)}."

    def _show_tools(self, found: State | None) -> None:
        """Show the buttons that apply to the state of a run; None for no run."""
        seen, name = self._seen, found.name if found else ""
        finished, trained = name == "finished", seen.spec is not None and seen.spec.adapter is not None
        show_if(name in ("running", "stopping"), self.stop)
        self.stop.description = "Stop now" if name == "stopping" else "Stop"
        show_if(name in RESUMABLE and seen.spec, self.resume)
        show_if(finished and seen.base is not None and not seen.scores, self.base)
        other = self.workspace.runs.entries.get(seen.base.id) if seen.base else None
        self.base.disabled = works = other is not None and (other.state.works or other.state.name == "queued")
        self.base.description = "Evaluating base …" if works else "Evaluate base"
        show_if(finished and trained, self.warm)
        show_if(seen.spec, self.clone)

    def _show_more(self, run_id: str, colour: str) -> None:
        seen = self._seen
        scores = seen.summary.get("scores", {})
        show_if(scores, self.scores)
        self.dots.value = accuracy_dots(scores, colour or "#7f868e", seen.scores) if scores else ""
        show_if(seen.said, self.latest)
        self.answers.value = answers(seen.said[:ANSWERS]) if seen.said else ""
        if self.log.value != seen.log:
            self.log.value = seen.log

    def _act(self, action: Action, run_id: str) -> None:
        """Do what a button of the list asks for."""
        run = self.workspace.runs.run(run_id)
        if action == "all":
            self.workspace.go("Compare")
        elif action == "clone":
            self._clone(run_id)
        else:
            schedule(lambda: self._do(action, run))

    def _act_on_first(self, action: Action) -> None:
        stopping = action == "stop" and self.state.name == "stopping"
        self._act("kill" if stopping else action, self.workspace.selection.first)

    @guarded
    def _clone(self, run_id: str = "", *, warm: bool = False) -> None:
        """Make a copy of a run the draft; `warm` lets its training start from the adapter of the run."""
        run_id = run_id or self.workspace.selection.first
        spec = spec_of(run_id, self.workspace.root)
        if warm and spec.adapter:
            spec = spec.model_copy(update={"adapter": spec.adapter.model_copy(update={"start": run_id})})
        self.workspace.clone(spec, run_id)

    @guarded
    def _evaluate(self, _: Any) -> None:
        if (spec := self._seen.base) is not None:
            schedule(lambda: self._work(lambda: launching.start([spec], self.workspace)))

    async def _do(self, action: Action, run: Run) -> None:
        backend = background if self.workspace.process else kernel_runs
        works: dict[str, Callable[[], object]] = {
            "stop": lambda: backend.stop(run),
            "kill": lambda: backend.stop(run, now=True),
            "resume": lambda: launching.start([spec_of(run.id, self.workspace.root)], self.workspace),
            "start": lambda: launching.start_now(run),
            "up": lambda: queue.move_up(run),
            "remove": lambda: queue.remove(run),
            "keep": lambda: launching.keep(self.workspace),
        }
        if action not in works:
            raise BadSpec(f"There is no action {action!r}.")
        await self._work(works[action])
        if action == "stop" and self._task and self.workspace.process:
            warm.prepare()  # for Resume

    async def _work(self, work: Callable[[], object]) -> None:
        """Do something in a thread, and show its error or what has changed."""
        try:
            await asyncio.to_thread(work)
            if self.problem_of == "_work":
                self.problem.value, self.problem_of = "", ""
        except Exception as error:
            self.problem.value, self.problem_of = error_markup(error), "_work"
        await self.workspace.runs.refresh_soon()
        await self._refresh()


def _machine(load: MachineLoad) -> str:
    """Return the load of the machine in a line, and below what it means for runs."""
    cores = f"{load.processors} core{'s' * (load.processors > 1)}"
    parts = [f"CPU {percent(load.busy, 0)} of {cores}", f"memory {percent(load.used / load.total, 0)}"]
    parts += [f"GPU {percent(gpu.busy, 0)}, {size(gpu.used)}" for gpu in load.gpus]
    tips = [f"{size(load.used)} of {size(load.total)} of memory in use, by all programs; load {load.load:.1f}"]
    tips += [f"GPU: {size(gpu.used)} of {size(gpu.total)}" for gpu in load.gpus]
    warning = load.warning
    below = el("div", f"⚠ {warning}", class_="lab-warn", title=warning) if warning else ""
    return el("div", el("div", " · ".join(parts), title="\n".join(tips)), below, role="status")
