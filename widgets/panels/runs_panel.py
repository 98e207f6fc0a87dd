"""Runs panel: all runs in a table, to filter, sort, group, annotate, open, compare and delete.

What is shown is read from the disk by `refresh`, whoever did the runs; while one works the panel looks by itself.
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
from llm_adapters_lab.runs.background import state
from llm_adapters_lab.runs.record import Run, write_note
from widgets.figures.run_table import FALLING, SORTS, Line, RunTable
from widgets.kit.errors import guarded, message, note
from widgets.kit.panel import Panel
from widgets.panels.compare_panel import ComparePanel


class RunsPanel(Panel):
    """Table of all runs under a root.

    Attributes:
        entries: all runs as last read, newest first.
        shown: those that the filter leaves, in order.
        table: the lines on the page.
        compare: what is shown for the chosen runs.
    """

    def __init__(self, root: str | Path = "runs", *, every: float = 5.0) -> None:
        """Read the runs.

        Args:
            root: folder of all runs.
            every: seconds between two looks at runs at work; there are none by themselves outside a kernel.
        """
        super().__init__()
        self.root = Path(root).resolve()
        self.entries: list[Entry] = []
        self.shown: list[Entry] = []
        self._chosen: list[str] = []
        self._doomed: list[str] = []
        self._groups: list[Group] = []
        self._quiet = False
        self._listeners: list[Callable[[str], None]] = []
        self._build()
        self._connect()
        self.refresh()
        self._look_every(every, self._notice)

    @property
    def chosen(self) -> list[str]:
        """Ids of the chosen runs in the order they were chosen, also those the filter hides; may be set."""
        return list(self._chosen)

    @chosen.setter
    def chosen(self, ids: Iterable[str]) -> None:
        known = {entry.id for entry in self.entries}
        self._take([name for name in dict.fromkeys(ids) if name in known])

    def on_open(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the run id when Open is clicked."""
        self._listeners.append(listener)

    @guarded
    def refresh(self) -> None:
        """Read all runs again."""
        self.entries = entries(self.root)
        self.looked.value = f"last looked at {time.strftime('%H:%M:%S')}, in {self.root}"
        self._offer()
        self._arrange()
        known = {entry.id for entry in self.entries}
        if not known.issuperset(self._chosen):
            self._take([name for name in self._chosen if name in known])

    def _build(self) -> None:
        def labelled(width: str) -> dict[str, Any]:
            return {"style": {"description_width": "initial"}, "layout": W.Layout(width=width, max_width="98%")}

        def button(name: str, tooltip: str = "", style: str = "") -> Any:
            return W.Button(description=name, tooltip=tooltip, button_style=style, layout=W.Layout(width="auto"))

        hint = {
            "placeholder": "words, or field=value, e.g. adapter.rank=8",
            "tooltip": "Enter filters; empty shows all",
        }
        self.filter: Any = W.Text(description="filter", continuous_update=False, **hint, **labelled("380px"))
        self.sort: Any = W.Dropdown(description="sort by", options=list(SORTS), **labelled("190px"))
        self.falling: Any = W.Checkbox(description="falling", value=True, indent=False, layout=W.Layout(width="90px"))
        self.group: Any = W.Dropdown(description="group by", options=[("nothing", "")], **labelled("300px"))
        self.all, self.none = button("Choose all", "that the filter leaves"), button("Choose none")
        self.contrast = button("Compare", "Show the chosen runs side by side, below", "primary")
        self.remove, self.renew = button("Delete", "Ask whether to delete the chosen runs"), button("Refresh")
        self.sure, self.keep = button("Yes, delete", style="danger"), button("Keep")
        self.question, self.wrong, self.counts = (W.HTML() for _ in range(3))
        self.looked = W.Label()
        self.table, self.compare = RunTable(self._used), ComparePanel()
        self.confirm = W.VBox([self.question, W.HBox([self.keep, self.sure])], layout=W.Layout(display="none"))
        wrap = W.Layout(flex_flow="row wrap", align_items="center")
        asked = W.HBox([self.filter, self.sort, self.falling, self.group], layout=wrap)
        doing = [self.all, self.none, self.contrast, self.remove, self.renew, self.counts]
        parts = [asked, self.wrong, W.HBox(doing, layout=wrap), self.confirm, self.problem, self.table.widget]
        self.widget: Any = W.VBox([*parts, self.looked, self.compare.widget], layout=W.Layout(width="100%"))

    def _connect(self) -> None:
        for box in (self.filter, self.sort, self.falling, self.group):
            box.observe(self._asked, "value")
        self.all.on_click(lambda _: self._take([*self._chosen, *(entry.id for entry in self.shown)]))
        self.none.on_click(lambda _: self._take([]))
        self.contrast.on_click(self._compare)
        self.remove.on_click(self._ask)
        self.renew.on_click(lambda _: self.refresh())
        self.sure.on_click(self._delete)
        self.keep.on_click(lambda _: self._spare())

    def _offer(self) -> None:
        """Offer the fields to group by, first those in which the runs differ."""
        fields = [entry.fields for entry in self.entries if entry.fields]
        keys = dict.fromkeys(key for given in fields for key in given)
        values = {key: {words(given[key]) if key in given else "" for given in fields} for key in keys}
        names = sorted(keys, key=lambda key: len(values[key]) == 1)
        options = [(f"{key} ({len(values[key])} groups)" if len(values[key]) > 1 else key, key) for key in names]
        before, self._quiet = self.group.value, True
        try:
            self.group.options = [("nothing", ""), *options]
            self.group.value = before if before in keys else ""
        finally:
            self._quiet = False

    @guarded
    def _asked(self, change: Any) -> None:
        """Filter, order or groups have been changed."""
        if self._quiet:
            return
        if change["owner"] is self.sort:
            self._quiet = True
            self.falling.value, self._quiet = self.sort.value in FALLING, False
        self.table.page = 0
        self._arrange()

    def _arrange(self) -> None:
        self.wrong.value, left = "", list[Entry]()
        try:
            left = matching(self.entries, self.filter.value)
        except BadSpec as error:
            self.wrong.value = message(str(error))
        left = ordered(left, SORTS[self.sort.value], self.falling.value)
        self._groups = grouped(left, self.group.value) if self.group.value else [Group("", left, None, True)]
        self.shown = [entry for group in self._groups for entry in group.entries]
        self._draw()

    def _draw(self) -> None:
        self.table.show(self._groups, self.group.value, set(self._chosen))
        hidden = len(set(self._chosen) - {entry.id for entry in self.shown})
        counts = f"{len(self.entries)} runs, {len(self.shown)} shown, {len(self._chosen)} chosen"
        counts += f" ({hidden} of them hidden by the filter)" if hidden else ""
        none = "There are no runs yet. Start one in the Run panel; it will stand here."
        self.counts.value = note(counts if self.entries else none)
        self.contrast.disabled = self.remove.disabled = not self._chosen

    @guarded
    def _take(self, ids: Iterable[str]) -> None:
        """Choose runs."""
        self._chosen = list(dict.fromkeys(ids))
        self._spare()
        self._draw()
        self._tell()

    @guarded
    def _used(self, line: Line, what: str) -> None:
        """A control of a line has been used."""
        if what == "chosen":
            others = [name for name in self._chosen if name != line.id]
            self._take([*others, line.id] if line.chosen.value else others)
        elif what == "open":
            for listener in self._listeners:
                listener(line.id)
        else:
            write_note(Run(self.root / line.id), line.note.value)
            self.refresh()

    @guarded
    def _compare(self, button: Any) -> None:
        self.compare.show([Run(self.root / name) for name in self._chosen])

    @guarded
    def _ask(self, button: Any) -> None:
        """Delete has been clicked: say what would go, and wait for Yes."""
        self._doomed, self.problem.value = list(self._chosen), ""
        count = len(self._doomed)
        head = el("b", f"Delete {count} run{'s' * (count != 1)} for good, with adapters and answers?")
        names = el("div", ", ".join(self._doomed), style="overflow-wrap: anywhere; max-height: 12em; overflow: auto")
        self.question.value = el("div", head, names, style="line-height: 1.4", role="alert")
        self.confirm.layout.display = "flex"

    def _spare(self) -> None:
        """Take the question back."""
        self._doomed, self.question.value, self.confirm.layout.display = [], "", "none"

    @guarded
    def _delete(self, button: Any) -> None:
        doomed, refused = self._doomed, []
        self._spare()
        for name in doomed:
            try:
                delete(Run(self.root / name))
            except (LabError, OSError) as error:
                refused.append(str(error))
        self.refresh()
        if refused:
            raise LabError("\n".join(refused))

    @guarded
    def _notice(self) -> None:
        if any(state(entry.run).name != entry.state.name for entry in self.entries if entry.state.works):
            self.refresh()
