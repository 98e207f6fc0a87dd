"""Panels for JupyterLab, Notebook, VS Code and Voila; `Lab()` is all of them in one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_adapters_lab._lazy import attach

if TYPE_CHECKING:
    from widgets.forms.form import Form as Form
    from widgets.lab import Lab as Lab
    from widgets.panels.chat_panel import ChatPanel as ChatPanel
    from widgets.panels.data_panel import DataPanel as DataPanel
    from widgets.panels.inspect_panel import InspectPanel as InspectPanel
    from widgets.panels.model_panel import ModelPanel as ModelPanel
    from widgets.panels.run_panel import RunPanel as RunPanel
    from widgets.panels.runs_panel import RunsPanel as RunsPanel
    from widgets.panels.spec_files import ExportPanel as ExportPanel

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "forms.form": "Form",
        "lab": "Lab",
        "panels.chat_panel": "ChatPanel",
        "panels.data_panel": "DataPanel",
        "panels.inspect_panel": "InspectPanel",
        "panels.model_panel": "ModelPanel",
        "panels.run_panel": "RunPanel",
        "panels.runs_panel": "RunsPanel",
        "panels.spec_files": "ExportPanel",
    },
)
