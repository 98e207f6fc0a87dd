"""Progress: how far a run has come, as a bar and in figures."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import ipywidgets as W

from llm_adapters_lab.runs.background import State

SIGNS = {
    "finished": "✓",
    "running": "▶",
    "stopping": "◼",
    "stopped": "◼",
    "failed": "✗",
    "dead": "✗",
    "unfinished": "○",
}
_COLOURS = {"finished": "success", "failed": "danger", "dead": "danger"}


class Progress:
    """A bar with words beside it.

    Attributes:
        bar: its value is 0..1, of the training or of the task that is being scored.
        words: what it says.
        widget: both.
    """

    def __init__(self) -> None:
        """Make an empty bar."""
        self.bar = W.FloatProgress(min=0, max=1, layout=W.Layout(width="260px"))
        self.words = W.Label(layout=W.Layout(flex="1 1 auto"))
        self.widget = W.HBox([self.bar, self.words])

    def show(self, state: State, last: Mapping[str, Mapping[str, Any]]) -> None:
        """Show how far a run is.

        Args:
            state: of the run.
            last: its last event of each class, by class name.
        """
        self.bar.bar_style = _COLOURS.get(state.name, "")
        share, words = (0.0, "") if state.name == "running" and state.reason else _share(last)  # a reason: it loads
        self.bar.value, self.words.value = (1.0, "") if state.name == "finished" else (share, words)


def _share(last: Mapping[str, Mapping[str, Any]]) -> tuple[float, str]:
    step, scoring = last.get("Step"), last.get("Scoring")
    if scoring:
        done = f"scoring {scoring['task']} {scoring['done']} of {scoring['total']}"
        return scoring["done"] / max(1, scoring["total"]), done
    if step:
        left = datetime.timedelta(seconds=round(step["seconds_left"]))
        speed = f"loss {step['loss']:.3f} · {step['tokens_per_second']:,.0f} tokens/s · {left} left"
        return step["step"] / max(1, step["steps"]), f"step {step['step']} of {step['steps']} · {speed}"
    return 0.0, ""
