"""A fold with the last prompts of the playground, to come back to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.results.formatting import ago
from widgets.kit.elements import Collapsible, button
from widgets.kit.prompt_history import MOST, Entry, PromptHistory


class HistoryList:
    """A list that is read when it is unfolded.

    Attributes:
        history: what is kept.
        list: the prompts, newest first.
        clear: forgets them.
        fold: shows and hides both.
    """

    def __init__(self, root: Path, recall: Callable[[Entry], None]) -> None:
        """Make the fold; `recall` is called with the prompt that is selected."""
        self.history, self._recall = PromptHistory(root), recall
        self._entries: list[Entry] = []
        self.list = W.Select(rows=6, tooltip="Earlier prompts", layout=W.Layout(width="auto"))
        self.clear = button("Clear", f"Forget the last {MOST} prompts, kept in the folder of runs", click=self._forget)
        self.fold = Collapsible("History", W.VBox([self.list, self.clear], layout=W.Layout(width="auto")))
        self.widget = self.fold.widget
        self.fold.button.observe(self.refresh, "value")
        self.list.observe(self._picked, "value")

    def add(self, entry: Entry) -> None:
        """Add a prompt."""
        self.history.add(entry)
        self.refresh()

    def refresh(self, _: Any = None) -> None:
        """Read the prompts again, if they are shown."""
        if self.fold.button.value:
            self._entries = self.history.read()[::-1]
            self.list.options = [(_line(entry), number) for number, entry in enumerate(self._entries)]
            self.list.value, self.clear.disabled = None, not self._entries

    def _picked(self, change: Any) -> None:
        if change["new"] is not None and self.list.index is not None:
            self._recall(self._entries[change["new"]])

    def _forget(self, _: Any) -> None:
        self.history.clear()
        self.refresh()


def _line(entry: Entry) -> str:
    said = "; ".join(f"{name}: {' '.join(text.split())[:40]}" for name, text in entry["answers"])
    return f"{ago(entry['at'])} · {' '.join(entry['question'].split())[:60]} → {said}"
