"""Panels for JupyterLab, Notebook, VS Code and Voila; `Lab()` is all of them in one.

Names are loaded when first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from widgets.choose import Choose
    from widgets.data import Data
    from widgets.form import Form
    from widgets.hand_over import HandOver
    from widgets.inspect_panel import InspectPanel
    from widgets.lab import Lab
    from widgets.run_panel import RunPanel
    from widgets.runs_panel import RunsPanel
    from widgets.try_panel import TryPanel

__all__ = ["Lab", "Choose", "Data", "RunPanel", "RunsPanel", "InspectPanel", "TryPanel", "Form", "HandOver"]

_HOME = {
    **{"Lab": "lab", "Choose": "choose", "Data": "data", "Form": "form", "HandOver": "hand_over"},
    **{"RunPanel": "run_panel", "RunsPanel": "runs_panel", "InspectPanel": "inspect_panel", "TryPanel": "try_panel"},
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
