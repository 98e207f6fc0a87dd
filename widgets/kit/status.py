"""The status of a run: its sign, its progress, and the status bar of the lab."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as W

from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.markup import el
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import State
from widgets.kit.elements import button, row, show_if

SIGNS = {
    "finished": "✓",
    "running": "▶",
    "stopping": "◼",
    "stopped": "◼",
    "failed": "✗",
    "dead": "✗",
    "unfinished": "○",
    "queued": "◌",
}
_COLOURS = {"finished": "success", "failed": "danger", "dead": "danger"}
_MAX_OTHERS = 3
"""Maximum number of other active runs that get a button."""


class Progress:
    """A progress bar for the training or the task being scored, and a text with step, loss and time left."""

    def __init__(self) -> None:
        """Start at zero."""
        self.bar = W.FloatProgress(min=0, max=1, layout=W.Layout(width="260px"))
        self.text = W.Label()
        self.widget = row(self.bar, self.text)

    def show(self, state: State, last: Mapping[str, Mapping[str, Any]]) -> None:
        """Show the progress of a run, from its state and its last event of each class."""
        loading = state.name == "running" and state.reason
        fraction, text = (1.0, "") if state.name == "finished" else (0.0, "") if loading else _progress(last)
        self.bar.bar_style, self.bar.value, self.text.value = _COLOURS.get(state.name, ""), fraction, text


def _progress(last: Mapping[str, Mapping[str, Any]]) -> tuple[float, str]:
    step, scoring = last.get("Step"), last.get("Scoring")
    if scoring:
        done = f"scoring {scoring['task']} {scoring['done']} of {scoring['total']}"
        return scoring["done"] / max(1, scoring["total"]), done
    if step:
        left = datetime.timedelta(seconds=round(step["seconds_left"]))
        measures = "".join(f"{name} {value:.3f} · " for name, value in step.get("measures", {}).items())
        speed = f"loss {step['loss']:.3f} · {measures}{step['tokens_per_second']:,.0f} tokens/s · {left} left"
        return step["step"] / max(1, step["steps"]), f"step {step['step']} of {step['steps']} · {speed}"
    return 0.0, ""


def summary(spec: RunSpec) -> str:
    """Return a spec in one line: base, adapter with its size and placement, training data, evaluation tasks."""
    parts = [spec.base, _adapter(spec.adapter) if spec.adapter else "no adapter"]
    if spec.adapter:
        length = f"{spec.train.max_steps} steps" if spec.train.max_steps else f"{spec.train.epochs:g} epochs"
        parts.append(f"trained on {spec.data.task}, {length}")
    count = len(spec.eval.tasks)
    tasks = spec.eval.tasks[0] if count == 1 else f"{count} tasks"
    parts.append(f"evaluated on {tasks}" if count else "not evaluated")
    return " · ".join(parts)


def _adapter(config: AdapterConfig) -> str:
    own = [name for name in type(config).model_fields if name not in AdapterConfig.model_fields]
    size = next((f" {name} {value}" for name in own if type(value := getattr(config, name)) is int), "")
    return f"{config.type}{size.replace('_', ' ')}{f' at {config.at}' if config.at else ''}"


class StatusBar:
    """The bar with the spec being edited, the state of its run, a button to start it, and the other active runs.

    Its clock shows whether the kernel is alive: after a restart the page looks the same, but the clock has stopped.
    """

    def __init__(self, start: Callable[[], None], follow: Callable[[str], None]) -> None:
        """Make an empty bar; `start` is called by its button, `follow` with the id of another run."""
        self._follow, self._ids = follow, tuple[str, ...]()
        self.start = button("Start", style="primary", disabled=True, click=lambda _: start())
        self.status, self.clock, self.others = W.HTML(), W.HTML(), row()
        self.status.add_class("lab-status")
        line = W.HBox([self.start, self.status, self.clock], layout=W.Layout(align_items="center", width="100%"))
        self.widget = W.VBox([line, self.others])
        self.widget.add_class("lab-bar")
        show_if(False, self.others)

    def show(self, spec: RunSpec | None, state: State, detail: str, invalid: Sequence[str] = ()) -> None:
        """Show a spec with state and progress (`detail`) of its run; without a spec, the tabs with `invalid` values."""
        self.clock.value = el("span", time.strftime("%H:%M:%S"), class_="lab-note", title="last update")
        self.start.disabled = spec is None
        if spec is None:
            where = f" Correct the fields marked ✗ in {' and '.join(invalid)}." if invalid else ""
            self.status.value = el("div", el("b", "✗ The spec is not valid yet."), where, role="alert")
            return
        started = state.name != "unfinished"
        resumes = started and not state.works and state.name != "finished"
        self.start.description = "Resume" if resumes else "Show run" if started else "Start"
        self.start.tooltip = "Open the tab Monitor" if started else "Start the run and monitor it"
        name = f"{SIGNS[state.name]} {state.name if started else 'not started'}"
        head = el("div", el("code", spec.id), "  ", el("b", name), f" · {detail}" if detail else "", role="status")
        self.status.value = el("div", head, el("div", summary(spec), class_="lab-note"))

    def show_others(self, runs: Sequence[Run]) -> None:
        """Offer to follow other active runs."""
        ids = tuple(run.id for run in runs[:_MAX_OTHERS])
        if ids == self._ids:
            return
        self._ids, before = ids, self.others.children
        buttons = [button(name, "Follow this run", click=lambda b: self._follow(b.description)) for name in ids]
        more = f"and {len(runs) - _MAX_OTHERS} more" if len(runs) > _MAX_OTHERS else ""
        label = W.HTML(el("b", f"{SIGNS['running']} other active runs:"))
        self.others.children = [label, *buttons, W.Label(more)] if ids else []
        show_if(ids, self.others)
        for widget in before:
            widget.close()
