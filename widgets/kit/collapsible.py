"""Fold: something that is shown on request. The titles of ipywidgets' own accordion cannot be reached by the keys."""

from __future__ import annotations

from typing import Any

import ipywidgets as W


class Fold:
    """A button, and below it what it shows and hides.

    Attributes:
        button: its value says whether it is open.
        widget: both.
    """

    def __init__(self, title: str, content: Any) -> None:
        """Be closed."""
        self.button: Any = W.ToggleButton(layout=W.Layout(width="auto"))
        self._title, self._box = title, W.VBox([content])
        self.button.observe(self._turned, "value")
        self.button.add_class("lab-fold")
        self.widget: Any = W.VBox([self.button, self._box])
        self._turned()

    def _turned(self, change: Any = None) -> None:
        self.button.description = f"{'▾' if self.button.value else '▸'} {self._title}"
        self._box.layout.display = "flex" if self.button.value else "none"
