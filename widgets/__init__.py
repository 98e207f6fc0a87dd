"""Panels for JupyterLab, Notebook, VS Code and Voila; `Lab()` is all of them in one."""

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
