"""Bar: what would be run, how that stands, and which other runs are at work; always in sight."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as W

from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.runs.background import State
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from widgets.kit.progress import SIGNS

_OTHERS = 3
"""So many other runs at work have a button."""
_FAINT = "color: var(--jp-ui-font-color2, #5b6570); font-size: 90%"


def words(spec: RunSpec) -> str:
    """Return a spec in a line: base, adapter with its size and place, what is learnt and how much is scored."""
    parts = [spec.base, _adapter(spec.adapter) if spec.adapter else "no adapter"]
    if spec.adapter:
        much = f"{spec.train.max_steps} steps" if spec.train.max_steps else f"{spec.train.epochs:g} epochs"
        parts.append(f"learns {spec.data.task}, {much}")
    count = len(spec.eval.tasks)
    parts.append(f"scored on {spec.eval.tasks[0] if count == 1 else f'{count} tasks'}" if count else "not scored")
    return " · ".join(parts)


def _adapter(config: AdapterConfig) -> str:
    own = [name for name in type(config).model_fields if name not in AdapterConfig.model_fields]
    size = next((f" {name} {value}" for name in own if type(value := getattr(config, name)) is int), "")
    return f"{config.type}{size.replace('_', ' ')}{f' at {config.at}' if config.at else ''}"


class Bar:
    """A line for the spec, and one for each other run that works.

    Attributes:
        start: the button.
        said: id, spec and state.
        others: buttons with the ids of other runs at work.
        widget: what is shown.
    """

    def __init__(self, start: Callable[[], None], show: Callable[[str], None]) -> None:
        """Make an empty bar; `start` is called by its button, `show` with the id of another run."""
        self._show, self._ids = show, tuple[str, ...]()
        self.start: Any = W.Button(description="Start", button_style="primary", disabled=True)
        self.start.on_click(lambda _: start())
        self.said = W.HTML(layout=W.Layout(flex="1 1 0", min_width="220px"))
        self.others: Any = W.HBox(layout=W.Layout(display="none", align_items="center"))
        self.said.add_class("lab-said")
        self.clock = W.HTML()
        line = W.HBox([self.start, self.said, self.clock], layout=W.Layout(align_items="center", width="100%"))
        self.widget: Any = W.VBox([line, self.others])
        self.widget.add_class("lab-bar")

    def show(self, spec: RunSpec | None, state: State, detail: str, wrong: Sequence[str] = ()) -> None:
        """Show what would be run.

        Args:
            spec: None while there is none.
            state: of its run.
            detail: how far that is, in words.
            wrong: the tabs in which something has to be corrected.
        """
        # After a kernel restart the page looks alive; the clock tells that it is not.
        self.clock.value = el("span", time.strftime("%H:%M:%S"), style=_FAINT, title="last time the lab looked")
        self.start.disabled = spec is None
        if spec is None:
            where = f" Correct what is marked ✗ in {' and '.join(wrong)}." if wrong else ""
            self.said.value = el("div", el("b", "✗ There is nothing to run yet."), where, role="alert")
            return
        begun = state.name != "unfinished"
        again = begun and not state.works and state.name != "finished"
        self.start.description = "Resume" if again else "Show run" if begun else "Start"
        self.start.tooltip = "Start it, and show how it goes" if not begun else "Open the tab Run"
        name = f"{SIGNS[state.name]} {state.name}" if begun else f"{SIGNS['unfinished']} not started"
        head = el("div", el("code", spec.id), "  ", el("b", name), f" · {detail}" if detail else "", role="status")
        self.said.value = el("div", head, el("div", words(spec), style=_FAINT), style="line-height: 1.4")

    def show_others(self, runs: Sequence[Run]) -> None:
        """Offer a look at other runs that work."""
        ids = tuple(run.id for run in runs[:_OTHERS])
        if ids == self._ids:
            return
        self._ids, before = ids, self.others.children
        buttons = [W.Button(description=name, tooltip="Follow this run", layout={"width": "auto"}) for name in ids]
        for button in buttons:
            button.on_click(lambda button: self._show(button.description))
        more = f"and {len(runs) - _OTHERS} more" if len(runs) > _OTHERS else ""
        label: Html = el("b", f"{SIGNS['running']} also at work:")
        self.others.children = [W.HTML(label), *buttons, W.Label(more)] if ids else []
        self.others.layout.display = "flex" if ids else "none"
        for widget in before:
            widget.close()
