"""The table of runs: a page of lines, under headings where they are grouped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import ipywidgets as W

from llm_adapters_lab.archive import Entry, Group
from widgets.run_rows import Line, Shapes, head, heading

PAGE = 25
"""Runs on a page: every line has controls of its own, which a browser must hold."""


class RunTable:
    """Lines of runs with buttons to turn the page.

    Attributes:
        lines: by run id, those on the page.
        page: from 0.
        back: button.
        further: button.
        widget: what is shown.
    """

    def __init__(self, used: Callable[[Line, str], None]) -> None:
        """Make an empty table; `used` is called as `Line` says."""
        self._used = used
        self.lines: dict[str, Line] = {}
        self.page = 0
        self._shown: Callable[[], object] = lambda: None
        self._headings: dict[str, Any] = {}
        self._shapes = Shapes()
        self._head = head(self._shapes)
        self.back: Any = W.Button(description="Previous page", layout=W.Layout(width="auto"))
        self.further: Any = W.Button(description="Next page", layout=W.Layout(width="auto"))
        self.back.on_click(lambda _: self._turn(-1))
        self.further.on_click(lambda _: self._turn(1))
        self.place: Any = W.Label()
        self.rows: Any = W.VBox(layout=W.Layout(width="100%"))
        self.turning: Any = W.HBox([self.back, self.place, self.further])
        self.widget: Any = W.VBox([self.rows, self.turning], layout=W.Layout(width="100%"))

    def show(self, groups: Sequence[Group], field: str, chosen: Collection[str]) -> None:
        """Show runs.

        Args:
            groups: of runs; one of all where they are not grouped.
            field: by which they are grouped; "" for not at all, and then there are no headings.
            chosen: ids of the runs that are ticked.
        """
        self._shown = lambda: self.show(groups, field, chosen)
        runs = [(group, entry) for group in groups for entry in group.entries]
        last = max(0, -(-len(runs) // PAGE) - 1)
        self.page = min(max(self.page, 0), last)
        page = runs[self.page * PAGE : (self.page + 1) * PAGE]
        before, self.lines = self.lines, {entry.id: self._line(entry, entry.id in chosen) for _, entry in page}
        headings, self._headings = self._headings, {g.value: self._heading(field, g) for g, _ in page if field}
        children: list[Any] = []
        for group, entry in page:
            title = self._headings.get(group.value)
            children += [] if title is None or title in children else [title]
            children.append(self.lines[entry.id].widget)
        # Only what has changed is sent: nobody loses the control they are in.
        self.rows.children = [self._head, *children] if children else []
        for line in [line for name, line in before.items() if name not in self.lines]:
            line.close()
        for title in [title for name, title in headings.items() if name not in self._headings]:
            title.close()
        self.place.value = f"page {self.page + 1} of {last + 1}"
        self.back.disabled, self.further.disabled = self.page == 0, self.page == last
        self.turning.layout.display = "flex" if last else "none"

    def _line(self, entry: Entry, chosen: bool) -> Line:
        line = self.lines.get(entry.id) or Line(entry.id, self._shapes, self._used)
        line.show(entry, chosen)
        return line

    def _heading(self, field: str, group: Group) -> Any:
        title = self._headings.get(group.value) or W.HTML()
        title.value = heading(field, group)
        return title

    def _turn(self, by: int) -> None:
        self.page += by
        self._shown()
