"""Coach marks: five steps through the lab for a first visit, each with a ring around what it is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ipywidgets as W

from llm_adapters_lab.markup import el
from widgets.kit.elements import button, row, show_if


class Mark(NamedTuple):
    """One step.

    Attributes:
        title: a few words.
        text: a sentence or two.
        place: the place that it opens; "" for none.
        target: the widget that gets a ring.
    """

    title: str
    text: str
    place: str
    target: Any


class Coach:
    """A card with the current step, and buttons to the next one and out.

    Attributes:
        step: number of the current step, from 0; None once it was left.
    """

    def __init__(self, marks: Sequence[Mark], go: Callable[[str], object]) -> None:
        """Show the first step; `go` opens a place."""
        self._marks, self._go = marks, go
        self.words = W.HTML()
        self.back = button("Back", click=lambda _: self._show((self.step or 0) - 1))
        self.next = button("Next", style="primary", click=lambda _: self._show((self.step or 0) + 1))
        self.skip = button("Close the tour", click=lambda _: self._show(None))
        self.widget = W.VBox([self.words, row(self.next, self.back, self.skip)]).add_class("lab-coach")
        self.step: int | None = None
        self._show(0)

    def _show(self, step: int | None) -> None:
        for mark in self._marks:
            mark.target.remove_class("lab-ring")
        self.step = None if step is None or step >= len(self._marks) else max(0, step)
        show_if(self.step is not None, self.widget)
        if self.step is None:
            return
        mark = self._marks[self.step]
        mark.target.add_class("lab-ring")
        head = el("b", f"{self.step + 1} of {len(self._marks)} · {mark.title}")
        self.words.value = el("div", head, " ", mark.text, role="status")
        self.back.disabled = self.step == 0
        self.next.description = "Next" if self.step + 1 < len(self._marks) else "Done"
        if mark.place:
            self._go(mark.place)
