"""The rows of a data set as the model sees them, page by page, over the width of the panel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import ipywidgets as W

from llm_adapters_lab.markup import el
from llm_adapters_lab.runs.spec import RunSpec
from widgets.figures.figure_view import LiveFigure
from widgets.figures.row_preview import VIEWS, Look, Preview, length_histogram, look
from widgets.figures.row_view import legend
from widgets.kit.elements import Collapsible, button, row, segments, show_if
from widgets.kit.panel import Panel, error_text, errors_in, message, note, schedule


class RowsPage(Panel):
    """Hidden until rows are asked for.

    Attributes:
        shown: the rows; None for none.
        view: which of `VIEWS` is shown.
        back, forward, flagged: buttons to the rows before and after, and to the next one with a warning.
        search: only rows that contain this text are shown.
        prompts: the rows that are shown.
        warning: errors, contamination, rows that are too long.
        lengths: the histogram of lengths.
    """

    def __init__(self) -> None:
        """Show nothing."""
        super().__init__()
        self.shown: Preview | None = None
        self._at, self._asked = 0, 0
        self._numbers: Sequence[int] = ()
        self.view = segments(VIEWS, "How rows are shown")
        self.view.observe(lambda _: self._draw(), "value")
        self.back = button("◂ Previous", "Previous rows", click=lambda _: self._step(-1))
        self.forward = button("Next ▸", "Next rows", click=lambda _: self._step(1))
        self.flagged = button("Next warning", "Next row with a warning", click=self._to_warning)
        self.hide = button("Close", "Hide the rows", click=lambda _: show_if(False, self.widget))
        self.search = W.Text(placeholder="search in the rows", tooltip="Only rows that contain this text")
        self.search.observe(self._searched, "value")
        self.place, self.template, self.warning = W.HTML(), W.HTML(), W.HTML()
        self.prompts = W.HTML().add_class("lab-rows-list")
        self.lengths = LiveFigure()
        self._steps = row(self.view, self.back, self.forward, self.flagged, self.search, self.place)
        self._figure = Collapsible("Length of the rows", self.lengths)
        title = W.HTML(el("div", "Rows as the model sees them", class_="lab-card-title"))
        head = W.HBox([title, self.hide]).add_class("lab-rows-head")
        parts = [head, self._steps, self.warning, self.template, self.prompts, self._figure.widget]
        self.widget = W.VBox(parts).add_class("lab-card").add_class("lab-rows")
        self.clear()

    def clear(self) -> None:
        """Hide the rows, which are no longer those of the spec."""
        self._asked += 1
        self.shown, self._numbers, self._at = None, (), 0
        self.prompts.value = self.warning.value = self.template.value = self.place.value = ""
        self.lengths.figure = {}
        show_if(False, self.widget, self._steps, self._figure.widget)

    def open(self, spec: RunSpec) -> None:
        """Read and show the rows of a spec, off the event loop."""
        self.clear()
        asked = self._asked
        show_if(True, self.widget)
        self.template.value = note("Reading the rows …")

        async def work() -> None:
            try:
                found = await asyncio.to_thread(look, spec)
            except Exception as error:  # rows and templates of someone else may raise anything
                found = Look(None, warnings=error_text(error))
            if asked == self._asked:
                self.show(found, spec.data.max_tokens)

        schedule(work)

    def show(self, found: Look, limit: int) -> None:
        """Show rows that have been read; `limit` is the maximum length in tokens."""
        self.shown = found.preview
        show_if(True, self.widget)
        self.template.value, self.warning.value = found.template, message(found.warnings)
        if self.shown is None:
            return
        self._numbers = range(self.shown.count)
        self._at = min(self.shown.faults, default=0)
        self._draw()
        if found.lengths:
            self.lengths.figure = json.loads(length_histogram(found.lengths, limit, found.unit).to_json())
            show_if(True, self._figure.widget)

    def _step(self, by: int) -> None:
        if self.shown:
            self._at += by * self.shown.at_once
        self._draw()

    def _to_warning(self, _: Any) -> None:
        if self.shown and (marked := [place for place, n in enumerate(self._numbers) if n in set(self.shown.marked)]):
            last = self._at + self.shown.at_once - 1
            self._at = next((place for place in marked if place > last), marked[0])
        self._draw()

    def _searched(self, change: Any) -> None:
        if self.shown:
            self._numbers, self._at = self.shown.find(change["new"]), 0
            self._draw()

    def _draw(self) -> None:
        """Show the rows at the present place."""
        if (shown := self.shown) is None:
            return
        with errors_in(self.prompts):
            total = len(self._numbers)
            self._at = max(0, min(self._at, total - 1))
            numbers = self._numbers[self._at : self._at + shown.at_once]
            end = self._at + len(numbers)
            self.back.disabled, self.forward.disabled = self._at == 0, end >= total
            name, last = "sample" if shown.packed else "row", f"–{end:,}" if len(numbers) > 1 else ""
            of = f"of {total:,}" + (f" found in {shown.count:,}" if total < shown.count else "")
            where = f"{name}{'s' * bool(last)} {self._at + 1:,}{last} {of}"
            self.place.value = note(where if total else f"No row contains this text, of {shown.count:,}.")
            show_if(shown.marked, self.flagged)
            show_if(not shown.packed, self.search)
            show_if(True, self._steps)
            how = self.view.value
            key = legend() if how == VIEWS[0] and shown.view else ""
            self.prompts.value = key + "".join(shown.markup(number, how) for number in numbers)
