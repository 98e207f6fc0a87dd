"""The five places of the lab, and the bar above them. Each place also works on its own; `Lab` combines them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_adapters_lab._lazy import attach

if TYPE_CHECKING:
    from widgets.forms.cost_strip import CostStrip as CostStrip
    from widgets.kit.launching import start as start
    from widgets.panels.coach import Coach as Coach
    from widgets.panels.coach import Mark as Mark
    from widgets.panels.compare_panel import ComparePanel as ComparePanel
    from widgets.panels.draft_bar import DraftBar as DraftBar
    from widgets.panels.inspect_panel import InspectPanel as InspectPanel
    from widgets.panels.monitor_panel import MonitorPanel as MonitorPanel
    from widgets.panels.playground_panel import PlaygroundPanel as PlaygroundPanel
    from widgets.panels.setup_panel import SetupPanel as SetupPanel

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "coach": "Coach Mark",
        "compare_panel": "ComparePanel",
        "draft_bar": "CostStrip DraftBar start",
        "inspect_panel": "InspectPanel",
        "monitor_panel": "MonitorPanel",
        "playground_panel": "PlaygroundPanel",
        "setup_panel": "SetupPanel",
    },
)
