"""The list of runs in Monitor: one widget with a row for each run, its progress, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import anywidget
import traitlets

from widgets.kit.elements import look, static

Action = Literal["stop", "kill", "resume", "start", "up", "remove", "clone", "keep", "all"]
"""What a button of a row, or of the head of a part, asks for; those of a head come without a run."""


def row(
    run_id: str,
    name: str,
    sign: str,
    state: str,
    text: str = "",
    detail: str = "",
    *,
    done: float | None = None,
    color: str = "",
    tip: str = "",
    actions: Sequence[Action] = (),
) -> dict[str, Any]:
    """Return a row.

    Args:
        run_id: of the run.
        name: of the run.
        sign: of its state.
        state: its name.
        text: at the end of the first line.
        detail: the second line.
        done: how far the run is, 0..1, as a bar; None for no bar.
        color: of its curves; "" if none are shown.
        tip: more text, while the mouse is on the row.
        actions: buttons of the row.
    """
    return {
        "id": run_id,
        "name": name,
        "sign": sign,
        "state": state,
        "text": text,
        "detail": detail,
        "done": done,
        "color": color,
        "tip": tip,
        "actions": list(actions),
    }


def part(
    title: str, rows: Sequence[dict[str, Any]], note: str = "", action: Action | Literal[""] = "", label: str = ""
) -> dict[str, Any]:
    """Return a part of the list; its head has a note, and a button with a label if `action` is given."""
    return {"title": title, "rows": list(rows), "note": note, "action": action, "label": label}


class RunList(anywidget.AnyWidget):
    """Rows of runs in parts; a click selects a run, with Ctrl or by the checkbox several.

    Attributes:
        parts: as made by `part`.
        selected: ids of the selected runs, also set by the browser.
    """

    _esm, _css = static("run_list.js"), look("monitor.css")
    parts: Any = traitlets.List().tag(sync=True)
    selected: Any = traitlets.List().tag(sync=True)

    def __init__(self, act: Callable[[Action, str], object], **traits: Any) -> None:
        """Make an empty list; `act` is called with what a button asks for, and the id of the run."""
        super().__init__(**traits)
        self._act = act
        self.on_msg(self._heard)

    def _heard(self, _: Any, content: Any, buffers: Any) -> None:
        self._act(content["action"], content["run"])
