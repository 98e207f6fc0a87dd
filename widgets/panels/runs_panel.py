"""The panel with the table of all runs: filter, sort, group, annotate, open, compare and delete them.

It shows what is on disk as of the last `refresh`, and refreshes itself when an active run ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.markup import el
from llm_adapters_lab.results.run_index import Entry, Group, delete, entries, grouped, matching, ordered, words
from llm_adapters_lab.runs.record import Run, write_note
from llm_adapters_lab.runs.status import state
from widgets.figures.run_table import DESCENDING, SORTS, RunRow, RunTable
from widgets.kit.elements import button, column, field, row, show_if
from widgets.kit.panel import Panel, guarded, message, note
from widgets.panels.compare_panel import ComparePanel


class RunsPanel(Panel):
    """The table of all runs in a folder, and the comparison of the selected ones.

    Attributes:
        entries: all runs as last read, newest first.
        shown: those that match the filter, in order.
        table: the rows on the page.
        compare: the comparison.
    """

    def __init__(self, root: str | Path = "runs", *, every: float = 5.0) -> None:
        """Read the runs.

        Args:
            root: folder of all runs.
            every: seconds between two checks of active runs; outside a kernel the panel does not check by itself.
        """
        super().__init__()
        self.root = Path(root).resolve()
        self.entries: list[Entry] = []
        self.shown: list[Entry] = []
        self._selected: list[str] = []
        self._to_delete: list[str] = []
        self._groups: list[Group] = []
        self._listeners: list[Callable[[str], None]] = []
        self._build()
        self.refresh()
        self._poll(every, self._check)

    @property
    def selected(self) -> list[str]:
        """Ids of the selected runs in the order of selection, including those that the filter hides; may be set."""
        return list(self._selected)

    @selected.setter
    def selected(self, ids: Iterable[str]) -> None:
        known = {entry.id for entry in self.entries}
        self._select([name for name in ids if name in known])

    def on_open(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the run id when Open is clicked."""
        self._listeners.append(listener)

    @guarded
    def refresh(self) -> None:
        """Read all runs again."""
        self.entries = entries(self.root)
        self.updated.value = f"Updated {time.strftime('%H:%M:%S')} · {self.root}"
        self._offer_groups()
        self._arrange()
        known = {entry.id for entry in self.entries}
        if not known.issuperset(self._selected):
            self._select([name for name in self._selected if name in known])

    def _build(self) -> None:
        hint = "words, or field=value, e.g. adapter.rank=8"
        self.filter = field(
            W.Text, "filter", "380px", placeholder=hint, tooltip="press Enter to filter", continuous_update=False
        )
        self.sort = field(W.Dropdown, "sort by", "190px", options=list(SORTS))
        self.descending = W.Checkbox(description="↓ descending", value=True, indent=False, layout={"width": "120px"})
        self.group = field(W.Dropdown, "group by", "300px", options=[("nothing", "")])
        boxes = (self.filter, self.sort, self.descending, self.group)
        for box in boxes:
            box.observe(self._order_changed, "value")
        self.select_all = button("Select all", "All runs that match the filter", click=self._select_all)
        self.clear_selection = button("Clear", "Clear the selection", click=lambda _: self._select([]))
        self.compare_selected = button("Compare", "Compare the selected runs below", "primary", click=self._compare)
        self.delete_selected = button("Delete", "Delete the selected runs, after confirmation", click=self._ask)
        refresh = button("Refresh", click=lambda _: self.refresh())
        self.confirm_delete = button("Delete", style="danger", click=self._delete)
        self.cancel_delete = button("Cancel", click=self._cancel)
        self.question, self.filter_error, self.counts, self.updated = W.HTML(), W.HTML(), W.HTML(), W.Label()
        self.table, self.compare = RunTable(self._used), ComparePanel()
        self.confirm = W.VBox([self.question, row(self.cancel_delete, self.confirm_delete)])
        show_if(False, self.confirm)
        buttons = row(
            self.select_all, self.clear_selection, self.compare_selected, self.delete_selected, refresh, self.counts
        )
        head = [row(*boxes), self.filter_error, buttons, self.confirm, self.problem]
        self.widget = column(*head, self.table.widget, self.updated, self.compare.widget)

    def _offer_groups(self) -> None:
        """Offer the fields to group by, first those in which the runs differ."""
        fields = [entry.fields for entry in self.entries if entry.fields]
        keys = dict.fromkeys(key for given in fields for key in given)
        values = {key: {words(given[key]) if key in given else "" for given in fields} for key in keys}
        names = sorted(keys, key=lambda key: len(values[key]) == 1)
        options = [(f"{key} ({len(values[key])} groups)" if len(values[key]) > 1 else key, key) for key in names]
        before = self.group.value
        with self.silently():
            self.group.options = [("nothing", ""), *options]
            self.group.value = before if before in keys else ""

    @guarded
    def _order_changed(self, change: Any) -> None:
        """Apply a new filter, order or grouping."""
        if self.quiet:
            return
        if change["owner"] is self.sort:
            with self.silently():
                self.descending.value = self.sort.value in DESCENDING
        self.table.page = 0
        self._arrange()

    def _arrange(self) -> None:
        self.filter_error.value, left = "", list[Entry]()
        try:
            left = matching(self.entries, self.filter.value)
        except BadSpec as error:
            self.filter_error.value = message(str(error))
        left = ordered(left, SORTS[self.sort.value], self.descending.value)
        self._groups = grouped(left, self.group.value) if self.group.value else [Group("", left, None, True)]
        self.shown = [entry for group in self._groups for entry in group.entries]
        self._draw()

    def _draw(self) -> None:
        self.table.show(self._groups, self.group.value, set(self._selected))
        hidden = len(set(self._selected) - {entry.id for entry in self.shown})
        counts = f"{len(self.entries)} runs, {len(self.shown)} shown, {len(self._selected)} selected"
        counts += f" ({hidden} hidden by the filter)" if hidden else ""
        self.counts.value = note(counts if self.entries else "There are no runs yet. Runs appear here when they start.")
        self.compare_selected.disabled = self.delete_selected.disabled = not self._selected

    @guarded
    def _select(self, ids: Iterable[str]) -> None:
        self._selected = list(dict.fromkeys(ids))
        self._cancel()
        self._draw()
        self._notify()

    def _select_all(self, _: Any) -> None:
        self._select([*self._selected, *(entry.id for entry in self.shown)])

    @guarded
    def _used(self, line: RunRow, control: str) -> None:
        """React to a control of a row."""
        if control == "selected":
            others = [name for name in self._selected if name != line.id]
            self._select([*others, line.id] if line.selected.value else others)
        elif control == "open":
            for listener in self._listeners:
                listener(line.id)
        else:
            write_note(Run(self.root / line.id), line.note.value)
            self.refresh()

    @guarded
    def _compare(self, _: Any) -> None:
        self.compare.show([Run(self.root / name) for name in self._selected])

    @guarded
    def _ask(self, _: Any) -> None:
        """Ask for a confirmation that names the runs."""
        self._to_delete, self.problem.value = list(self._selected), ""
        count = len(self._to_delete)
        head = el("b", f"Delete {count} run{'s' * (count != 1)} permanently, with adapters and answers?")
        names = el("div", ", ".join(self._to_delete), class_="lab-names")
        self.question.value = el("div", head, names, role="alert")
        show_if(True, self.confirm)

    def _cancel(self, _: Any = None) -> None:
        self._to_delete, self.question.value = [], ""
        show_if(False, self.confirm)

    @guarded
    def _delete(self, _: Any) -> None:
        names, refused = self._to_delete, []
        self._cancel()
        for name in names:
            try:
                delete(Run(self.root / name))
            except (LabError, OSError) as error:
                refused.append(str(error))
        self.refresh()
        if refused:
            raise LabError("\n".join(refused))

    @guarded
    def _check(self) -> None:
        if any(state(entry.run).name != entry.state.name for entry in self.entries if entry.state.works):
            self.refresh()
