"""The answers to a batch of prompts as a table, which can be saved as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import ipywidgets as W

from llm_adapters_lab.markup import el
from widgets.kit.delivery import Delivery
from widgets.kit.elements import button, toolbar


class AnswerTable:
    """A table with a button that saves it through the browser.

    Attributes:
        rows: the cells; the first row are the heads.
        delivery: the file that was saved last.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.rows: list[list[str]] = []
        self.table, self.delivery = W.HTML(), Delivery()
        self.save = button("Save as CSV", "Save the table", disabled=True, click=self._save)
        self.widget = W.VBox([self.table, toolbar(self.save, self.delivery.widget)], layout=W.Layout(width="auto"))

    def clear(self, heads: Sequence[str]) -> None:
        """Start anew with these columns."""
        self.rows = [[*heads]]
        self.delivery.clear()
        self.show()

    def show(self) -> None:
        """Show all rows."""
        head, *rows = self.rows
        cells = [el("tr", *(el("td", text) for text in row)) for row in rows]
        heads = el("thead", el("tr", *(el("th", text, scope="col") for text in head)))
        self.table.value = el("div", el("table", heads, el("tbody", *cells)), class_="lab-batch", tabindex="0")
        self.save.disabled = not rows

    def _save(self, _: Any) -> None:
        text = io.StringIO()
        csv.writer(text).writerows(self.rows)
        self.delivery.deliver("answers.csv", text.getvalue().encode())
