"""The lab for JupyterLab, Notebook, VS Code and Voila: `Lab()` has five places, each of which also works on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_adapters_lab._lazy import attach

if TYPE_CHECKING:
    from widgets.forms.form import Form as Form
    from widgets.lab import Lab as Lab
    from widgets.panels.compare_panel import ComparePanel as ComparePanel
    from widgets.panels.inspect_panel import InspectPanel as InspectPanel
    from widgets.panels.monitor_panel import MonitorPanel as MonitorPanel
    from widgets.panels.playground_panel import PlaygroundPanel as PlaygroundPanel
    from widgets.panels.setup_panel import SetupPanel as SetupPanel

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "forms.form": "Form",
        "lab": "Lab",
        "panels.compare_panel": "ComparePanel",
        "panels.inspect_panel": "InspectPanel",
        "panels.monitor_panel": "MonitorPanel",
        "panels.playground_panel": "PlaygroundPanel",
        "panels.setup_panel": "SetupPanel",
    },
)
