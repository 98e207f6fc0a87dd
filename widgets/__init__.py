"""Panels for JupyterLab, Notebook, VS Code and Voila; `Lab()` is all of them in one.

Names are loaded when first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from widgets.forms.form import Form
    from widgets.lab import Lab
    from widgets.panels.chat_panel import TryPanel
    from widgets.panels.data_panel import Data
    from widgets.panels.inspect_panel import InspectPanel
    from widgets.panels.model_panel import Choose
    from widgets.panels.reproduce_panel import HandOver
    from widgets.panels.run_panel import RunPanel
    from widgets.panels.runs_panel import RunsPanel

__all__ = ["Lab", "Choose", "Data", "RunPanel", "RunsPanel", "InspectPanel", "TryPanel", "Form", "HandOver"]

_HOME = {
    **{"Lab": "lab", "Form": "forms.form", "Choose": "panels.model_panel", "Data": "panels.data_panel"},
    **{"RunPanel": "panels.run_panel", "RunsPanel": "panels.runs_panel", "HandOver": "panels.reproduce_panel"},
    **{"InspectPanel": "panels.inspect_panel", "TryPanel": "panels.chat_panel"},
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
