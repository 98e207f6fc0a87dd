"""The place Compare: which runs are better, in words and figures, above the table of all runs.

Everything is computed in threads from the entries of the workspace, which are read once; only what has changed reaches
the page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ipywidgets as W
import plotly.graph_objects as go

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results.appearance import colours
from llm_adapters_lab.results.comparison import FORMAT, FORMAT_NOTE, leak
from llm_adapters_lab.results.entry_groups import EntryGroup, by_seed, differing, informative, shared_tasks
from llm_adapters_lab.results.formatting import percent
from llm_adapters_lab.results.group_tests import Answers, AnswerStore, Rival, Tier, cautions, rivals, tiers, verdict
from llm_adapters_lab.results.plots import groups as figures
from llm_adapters_lab.results.run_index import Entry, delete, matching
from llm_adapters_lab.runs.marks import mark
from llm_adapters_lab.runs.record import Run
from widgets.figures import run_grid
from widgets.figures.benchmark_view import BenchmarkView
from widgets.figures.compare_views import ItemView, specs, versus
from widgets.figures.figure_view import LiveFigure
from widgets.figures.run_grid import Column, RunGrid
from widgets.kit.elements import button, column, hide, row, segments, show_if
from widgets.kit.elements import field as control
from widgets.kit.panel import Panel, error_markup, guarded, message, schedule
from widgets.kit.workspace import Question, Workspace
from widgets.panels.run_actions import RunActions

VIEWS = ("Tiers", "By task", "Parameters", "Heat map", "Curves", "Parallel", "Items", "Specs", "Benchmark")
WIDE = ("Items", "Specs", "Parallel")
"""Views that take the room of the list beside them."""
LOW, HIGH, TALL = 194, 340, 900
"""Height of figures in pixels on a low and on a high page, and from which height of the window on it counts as high."""
CONTROLS = 32
"""Height of the controls above a figure in pixels."""
CURVES, AXES, REFERENCES = 40, 7, 200
"""Maximum number of groups with loss curves, of axes of parallel coordinates, and of offered references."""
BEST = ""
"""The reference if none is chosen: the group with the highest mean."""
EXTRA = ("interval", "tokens_per_second", "peak_memory_bytes", "state", "note", "id")
"""Columns that are offered besides fields that differ and results."""
MEAN, LOSS = "mean accuracy", "train loss"


@dataclass(frozen=True)
class Runs:
    """All runs, and what depends on nothing else.

    Attributes:
        entries: of the runs.
        names: by id.
    """

    entries: Sequence[Entry] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def groups(self) -> list[EntryGroup]:
        """The runs by seed."""
        return by_seed(self.entries, self.names)

    @cached_property
    def alone(self) -> list[EntryGroup]:
        """Each run by itself."""
        return by_seed(self.entries, self.names, together=False)

    @cached_property
    def apart(self) -> list[str]:
        """The fields in which the runs differ."""
        return differing(self.entries)

    @cached_property
    def ranked(self) -> list[str]:
        """The same, the most informative first."""
        return informative(self.entries, self.apart)


@dataclass(frozen=True)
class Rows:
    """What the table shows, computed by `arrange`.

    Attributes:
        groups: in order.
        known: all columns by key.
        shown: those that are shown.
        tasks: what the mean is taken over.
        rows: as plain data, by id of the row.
        lines: id and depth of each line, in order.
        heads: the columns as plain data.
        best: of `run_grid.best`.
        seeds_vary: whether any runs differ only in the seed.
        finished: groups of the finished runs.
        ids: of the runs that match the filter.
        offered: keys of the columns that can be chosen.
        fields: label and key of the fields that vary among finished runs, for the heat map.
        measures: what the heat map can show.
    """

    groups: list[EntryGroup] = field(default_factory=list)
    known: dict[str, Column] = field(default_factory=dict)
    shown: list[Column] = field(default_factory=list)
    tasks: tuple[str, ...] = ()
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: list[tuple[str, int]] = field(default_factory=list)
    heads: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, list[int]] = field(default_factory=dict)
    seeds_vary: bool = False
    finished: list[EntryGroup] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    offered: list[str] = field(default_factory=list)
    fields: list[tuple[str, str]] = field(default_factory=list)
    measures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """What is compared, computed by `compare`.

    Attributes:
        groups: scored on `tasks`, the best first.
        unscored: other groups.
        tasks: what the mean is taken over.
        tiers: of the groups.
        reference: of the verdict; None if nothing can be compared.
        rivals: the other groups beside it.
        colours: of all groups, by `EntryGroup.id`.
        problems: of runs whose answers cannot be read.
        verdict: in a sentence.
        versus: the rivals as a table.
    """

    groups: list[EntryGroup] = field(default_factory=list)
    unscored: list[EntryGroup] = field(default_factory=list)
    tasks: tuple[str, ...] = ()
    tiers: list[Tier] = field(default_factory=list)
    reference: EntryGroup | None = None
    rivals: list[Rival] = field(default_factory=list)
    colours: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    verdict: str = ""
    versus: str = ""


def arrange(
    runs: Runs,
    *,
    filter: str = "",
    together: bool = True,
    chosen: Sequence[str] = (),
    sort: tuple[str, bool] = ("accuracy", True),
    open: Sequence[str] = (),
) -> Rows:
    """Return what the table shows.

    Args:
        runs: all runs.
        filter: see `run_index.matching`.
        together: whether runs that differ only in the seed share a line.
        chosen: keys of columns; empty for those by default.
        sort: key of a column, or "name", and whether in descending order.
        open: ids of the rows whose seeds are shown.

    Raises:
        BadSpec: the filter cannot be understood.
    """
    left = {entry.id for entry in matching(runs.entries, filter)}
    varied = any(len(group.entries) > 1 for group in runs.groups)
    groups = [
        kept
        for group in (runs.groups if together else runs.alone)
        if (kept := _kept(group, left, runs.names)) is not None
    ]
    tasks = shared_tasks(groups)
    known = run_grid.columns(runs.entries, runs.apart, tasks)
    keys = [key for key in chosen if key in known] or run_grid.defaults(known, runs.apart)
    shown = [known[key] for key in known if key in keys]
    groups = run_grid.ordered(groups, known.get(sort[0]), sort[1], tasks)
    # The best of single seeds is the luckiest one.
    best = run_grid.best(groups, shown, tasks) if together or not varied else {}
    rows, lines = dict[str, dict[str, Any]](), list[tuple[str, int]]()
    for group in groups:
        key = run_grid.row_id(group)
        rows[key] = run_grid.row(group, shown, tasks)
        lines.append((key, 0))
        for one in by_seed(group.entries, runs.names, together=False) if key in open and len(group.entries) > 1 else ():
            rows[one.id] = run_grid.row(one, shown, tasks) | {"name": f"seed {one.fields['seed']}"}
            lines.append((one.id, 1))
    inside = [entry for group in groups for entry in group.entries]
    order = run_grid.importance(known, runs.ranked)
    offered = [key for key in known if key in order or key in keys or key in EXTRA]
    heads = run_grid.head(shown, rows.values(), order)
    finished = [done for group in groups if (done := _finished(group))]
    fields = [(known[key].label, key) for key in runs.ranked]
    measures = [MEAN, *dict.fromkeys(task for group in finished for run in group.entries for task in run.results), LOSS]
    table = (rows, lines, heads, best, varied)
    return Rows(groups, known, shown, tasks, *table, finished, {one.id for one in inside}, offered, fields, measures)


def _kept(group: EntryGroup, left: set[str], names: Mapping[str, str]) -> EntryGroup | None:
    """Return the part of a group that matches; None for nothing."""
    if all(run_id in left for run_id in group.ids):
        return group
    entries = tuple(entry for entry in group.entries if entry.id in left)
    if not entries:
        return None
    return EntryGroup(names[entries[0].id] if len(entries) == 1 else group.name, entries)


def compare(
    groups: Sequence[EntryGroup], reference: str, store: AnswerStore, told: Callable[[int], object] = lambda _: None
) -> Comparison:
    """Compare groups.

    Args:
        groups: with at least one finished run each.
        reference: id of a run of the group that the others are compared with; `BEST` for the best one.
        store: of answers.
        told: called with the number of groups whose answers have been read.
    """
    tasks = shared_tasks(groups)
    scored = sorted(((mean, g) for g in groups if (mean := g.mean(tasks)) is not None), key=lambda s: -s[0])
    ranked = [group for _, group in scored]
    rest = [group for group in groups if group.mean(tasks) is None]
    shades = colours({group.id: group.fields for group in groups})
    answers, problems = dict[str, Answers](), list[str]()
    for number, group in enumerate(ranked):
        try:
            answers[group.id] = store.of(group, tasks)
        except (LabError, OSError, ValueError, KeyError) as error:
            problems.append(str(error))
        told(number + 1)
    tested = [group for group in ranked if group.id in answers]
    if not tested:
        return Comparison(ranked, rest, tasks, colours=shades, problems=problems)
    beside = next((group for group in tested if reference in group.ids), tested[0])
    others = [group for group in tested if group is not beside]
    found = rivals(beside, others, answers)
    text = verdict(beside, found, best=not reference and len(found) > 1)
    if not found:
        text = f"{beside.name}: {percent(beside.mean(tasks))}. Nothing to compare it with."
    words = {"verdict": text, "versus": versus(found, shades)}
    return Comparison(ranked, rest, tasks, tiers(tested, answers), beside, found, shades, problems, **words)


class Latest:
    """Runs a coroutine again if it is asked for while it runs, however often: only the latest state matters."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do nothing yet."""
        self._work, self._runs, self._again = work, False, False

    def ask(self) -> None:
        """Run the coroutine, now or after the present one."""
        self._again = True
        if not self._runs:
            self._runs = True
            schedule(self._loop)

    async def _loop(self) -> None:
        try:
            while self._again:
                self._again = False
                await self._work()
        finally:
            self._runs = False


class ComparePanel(Panel):
    """The place Compare.

    Attributes:
        workspace: runs and selection.
        table: the rows.
        comparison: what is compared.
        filter: which runs are shown, in the language of `run_index.matching`.
        together: whether seeds share a line.
        view: one of `VIEWS`.
        reference: what the others are compared with.
    """

    def __init__(self, workspace: Workspace | str | Path = "runs") -> None:
        """Build the place; on its own it looks for new runs once a second."""
        super().__init__()
        self.workspace, self._alone = Workspace.of(workspace), not isinstance(workspace, Workspace)
        self.comparison, self._rows, self._runs = Comparison(), Rows(), Runs()
        self._store, self._shown, self._picked = AnswerStore(), False, False
        self._columns: list[str] = []
        self._key: Any = None
        self._drawn: Any = None
        self._to_delete: list[str] = []
        self._arranging, self._comparing = Latest(self._arrange), Latest(self._compare)
        self._build()
        self.workspace.runs.observe(self._changed)
        self.workspace.selection.observe(self._selection_changed)
        if self._alone:
            self.opened()
            self._poll(1.0, lambda: schedule(self._look))

    def opened(self) -> None:
        """Show the present state, and follow it from now on."""
        self._shown = True
        self._changed()

    def hidden(self) -> None:
        """Compute nothing until it is opened again."""
        self._shown = False

    def close(self) -> None:
        """Stop following the runs, and remove the place from the page."""
        self.workspace.runs.unobserve(self._changed)
        self.workspace.selection.unobserve(self._selection_changed)
        self.actions.close()
        self.benchmark.close()
        super().close()

    async def _look(self) -> None:
        await self.workspace.runs.refresh_soon()

    def _build(self) -> None:
        self.verdict, self.scope, self.versus = W.HTML(), W.HTML(), W.HTML()
        self.verdict.add_class("lab-verdict")
        self.scope.add_class("lab-scope")
        self.view = segments(VIEWS, "view", value=VIEWS[0])
        self.reference = control(W.Dropdown, "vs", "100%", options=[("the best", BEST)], tooltip="reference")
        self.figure, self.markup, self.items = LiveFigure(), W.HTML(), ItemView(self._inspect)
        self.across, self.down = (W.Dropdown(description=name, options=[("–", "")]) for name in ("columns", "rows"))
        self.measure = W.Dropdown(description="value", options=[MEAN])
        self.log = W.ToggleButton(description="log y", value=True, tooltip="Logarithmic axis of the loss")
        self._heat = row(self.across, self.down, self.measure).add_class("lab-view-controls")
        self._curves = row(self.log).add_class("lab-view-controls")
        self._drawing = W.VBox([self._heat, self._curves, self.figure, self.markup, self.items.widget])
        self._beside = W.VBox([self.reference, self.versus])
        self._result = W.Box([self._drawing.add_class("lab-view"), self._beside.add_class("lab-beside")])
        self._result.add_class("lab-result")
        self.benchmark = BenchmarkView(self.workspace, lambda: self._comparing.ask())
        hint = "filter: rank>=8 lora"
        self.filter = W.Text(placeholder=hint, tooltip="filter: words, or field with = != < <= > >= and a value")
        self.filter.add_class("lab-filter")
        self.together = W.ToggleButton(
            description="Group seeds", tooltip="One line for runs that differ only in the seed"
        )
        self.together.value = True
        self.choose = W.ToggleButton(description="Columns ▾", tooltip="Choose the columns of the table")
        self.counts = W.HTML().add_class("lab-counts")
        self.filter_error = W.HTML()
        self._menu = W.VBox([]).add_class("lab-columns")
        self.table = RunGrid(self._used)
        self.clear = button("Clear", "Clear the selection", click=lambda _: self._select(()))
        places = {"Inspect": "Look inside the first selected run", "Playground": "Ask the selected runs", "Monitor": ""}
        self.places = [button(name, tip or "Curves and log", click=self._go) for name, tip in places.items()]
        self.delete_selected = button("Delete", "Delete the selected runs, after confirmation", click=self._ask)
        self.actions = RunActions(self.workspace)
        self.confirm_delete = button("Delete", style="danger", click=self._delete)
        self.cancel_delete = button("Cancel", click=self._cancel)
        self.question = W.HTML()
        self.confirm = W.VBox([self.question, row(self.cancel_delete, self.confirm_delete)])
        self.start = button("Open Setup", "Set up a run", "primary", click=lambda _: self.workspace.go("Setup"))
        words = "Finished runs are compared here: which is better, by how much, and on which questions."
        self.compete = button("Open Benchmark", "Compare methods by a benchmark file", click=self._to_benchmark)
        ways = W.HBox([self.start, self.compete], layout=W.Layout(justify_content="center"))
        self.empty = W.VBox([W.HTML(el("div", words)), ways]).add_class("lab-empty")
        bulk = (*self.places, self.delete_selected, self.clear)
        bar = row(self.filter, self.together, self.choose, self.counts, *bulk).add_class("lab-compare-bar")
        head = row(self.view).add_class("lab-compare-views")
        self._runs_only = (self.verdict, self.scope, self._result, bar, self.filter_error, self._menu)
        result = (self.verdict, self.scope, head, self._result, self.benchmark.widget)
        self._all = column(*result, bar, self.filter_error, self._menu)
        foot = column(self.confirm, self.problem, self.table, self.actions.widget)
        self.widget = column(self.empty, self._all, foot, css="lab-compare")
        show_if(False, self.confirm, self._menu, self._heat, self._curves, self.markup, self.items.widget)
        for box in (self.filter, self.together):
            box.observe(self._arrangement_changed, "value")
        self.table.observe(self._arrangement_changed, ["sort", "unfolded"])
        self.table.observe(self._grid_selected, "selected")
        self.table.observe(self._view_changed, "room")
        for box in (self.view, self.across, self.down, self.measure, self.log):
            box.observe(self._view_changed, "value")
        self.reference.observe(self._reference_changed, "value")
        self.choose.observe(self._menu_toggled, "value")

    def _changed(self) -> None:
        if self._shown:
            self._arranging.ask()

    def _selection_changed(self) -> None:
        self._cancel()
        if self._shown:
            self._show_selection()
            self._comparing.ask()

    def _arrangement_changed(self, change: Any) -> None:
        if not self.quiet:
            self._arranging.ask()

    async def _arrange(self) -> None:
        """Fill the table."""
        store = self.workspace.runs
        if self._runs.names is not store.names:
            self._runs = Runs([*store.entries.values()], store.names)
        options: dict[str, Any] = {"filter": self.filter.value, "together": self.together.value}
        options |= {"chosen": tuple(self._columns), "sort": tuple(self.table.sort), "open": tuple(self.table.unfolded)}
        try:
            rows = await asyncio.to_thread(arrange, self._runs, **options)
        except BadSpec as error:
            self.filter_error.value = message(str(error))
            return
        except Exception as error:
            self.problem.value = error_markup(error)
            return
        self.filter_error.value = ""
        self._rows = rows
        self._show_rows()
        self._comparing.ask()

    def _show_rows(self) -> None:
        rows, table = self._rows, self.table
        self._show_parts()
        show_if(rows.seeds_vary, self.together)
        with table.hold_sync():
            table.update(rows.rows)
            table.columns, table.best, table.fit = rows.heads, rows.best, not self._columns
            table.lines = [list(line) for line in rows.lines]
            table.empty = "No run matches the filter."
        self._show_selection()
        self._offer_reference()
        self._offer_fields()

    def _show_parts(self) -> None:
        """Show what there is to compare, or a benchmark alone, which needs no runs."""
        known, alone = bool(self.workspace.runs.entries), self.view.value == "Benchmark"
        show_if(not known and not alone, self.empty)
        show_if(known or alone, self._all)
        show_if(known and not alone, self.table)
        show_if(alone, self.benchmark.widget)
        hide(alone, *self._runs_only, self.actions.widget)

    def _show_selection(self) -> None:
        selected = self.workspace.selection.ids
        with self.silently():
            self.table.selected = list(selected)
        shown = self._rows.ids
        hidden = len(set(selected) - shown)
        every = len(self.workspace.runs.entries)
        words = f"{len(selected)} selected" if selected else f"{len(shown)} of {every}"
        tip = f"{len(shown)} of {every} runs are shown, {len(selected)} selected"
        tip += f", of which the filter hides {hidden}" if hidden else ""
        self.counts.value = el("span", words, class_="lab-muted lab-num", role="status", title=tip)
        for one in (self.clear, *self.places, self.delete_selected):
            one.disabled = not selected
        show_if(selected, self.actions.widget)

    def _grid_selected(self, change: Any) -> None:
        if not self.quiet:
            self._select(change["new"])

    @guarded
    def _select(self, ids: Sequence[str]) -> None:
        self.workspace.selection.ids = ids

    @property
    def _chosen(self) -> tuple[list[EntryGroup], str, str]:
        """What is to be compared, the id of the reference, and what this is, in words."""
        finished = self._rows.finished
        selected = set(self.workspace.selection.ids)
        names = self.workspace.runs.names
        picked = [kept for group in finished if (kept := _kept(group, selected, names))]
        runs = sum(len(group.entries) for group in picked)
        reference = self.reference.value or BEST
        if runs > 1:
            if reference and not any(reference in group.ids for group in picked):
                picked += [group for group in finished if reference in group.ids]
            return picked, reference, f"The {runs} selected runs are compared."
        count = sum(len(group.entries) for group in finished)
        words = f"All {count} finished runs{' that match the filter' if self.filter.value.strip() else ''} are compared"
        return finished, reference, f"{words}. Select several to compare only those." if count > 1 else ""

    async def _compare(self) -> None:
        """Compare, and draw the view; a benchmark compares its own runs."""
        self._show_parts()
        if self.view.value == "Benchmark":
            await self.benchmark.refresh()
            return
        groups, reference, scope = self._chosen
        key = ([(group.name, group.entries) for group in groups], reference)
        if key != self._key:
            if len(groups) > 200:
                self.verdict.value = el("div", "Reading the answers …", role="status", class_="lab-muted")
            try:
                found = await asyncio.to_thread(compare, groups, reference, self._store)
            except Exception as error:
                self.problem.value = error_markup(error)
                return
            self._key, self.comparison, self._drawn = key, found, None
            self._show_verdict()
        self.scope.value = el("div", *self._remarks(scope), class_="lab-muted")
        await self._draw()

    def _show_verdict(self) -> None:
        found = self.comparison
        text = found.verdict
        if found.reference is None and (found.groups or found.unscored):
            text = "Nothing can be compared yet: no finished run was scored."
        self.verdict.value, self.versus.value = el("div", text, role="status") if text else "", found.versus
        self.table.colours = self._row_colours()

    def _offer_reference(self) -> None:
        """Offer the groups as reference; unless one was picked, it is the baseline if there is one."""
        groups = self._comparable
        options = [("the best", BEST), *((group.name, group.id) for group in groups)]
        kept = self.reference.value or "-"
        inside = next((group.id for group in groups if kept in group.ids), BEST)
        marked = next((g.id for g in groups if any(entry.marks.baseline for entry in g.entries)), BEST)
        with self.silently():
            if [*self.reference.options] != options:
                self.reference.options = options
            self.reference.value = inside if self._picked else marked

    @property
    def _comparable(self) -> list[EntryGroup]:
        found = [group for group in self._rows.finished if group.mean(self._rows.tasks) is not None]
        return found[:REFERENCES] + [group for group in found[REFERENCES:] if self.reference.value in group.ids]

    def _row_colours(self) -> dict[str, str]:
        """Return colours by id of the row, for groups and their seeds."""
        found = dict[str, str]()
        for group in (*self.comparison.groups, *self.comparison.unscored):
            shade = self.comparison.colours.get(group.id, "")
            found |= dict.fromkeys(group.ids, shade)
        return found | {
            run_grid.row_id(group): shade
            for group in self._rows.groups
            if (shade := next((found[run_id] for run_id in group.ids if run_id in found), ""))
        }

    def _remarks(self, scope: str) -> list[Html | str]:
        found = self.comparison
        words = [scope]
        if found.reference is not None:
            words += cautions(found.rivals)
        if found.groups and found.unscored:
            names = ", ".join(group.name for group in found.unscored[:3])
            more = f" and {len(found.unscored) - 3} more" if len(found.unscored) > 3 else ""
            words.append(f"Not scored on all of {', '.join(found.tasks)}, so left out: {names}{more}.")
        runs = [run for group in found.groups for run in group.asked(found.tasks)]
        leaks = {task for run in runs for task in found.tasks if leak({"leaks": run.leaks}, task)}
        if leaks:
            words.append(f"Test rows of {', '.join(sorted(leaks))} are in the training data of some runs.")
        unread = dict.fromkeys(
            group.name
            for group in found.groups
            for run in group.asked(found.tasks)
            if any((share := run.results[task].get("in_format")) is not None and share < FORMAT for task in found.tasks)
        )
        text = " ".join(filter(None, words))
        notes: list[Html | str] = [el("span", text, title=text)]
        if unread:
            names = ", ".join([*unread][:3]) + (f" and {len(unread) - 3} more" if len(unread) > 3 else "")
            few = f" Answers of {names} are mostly not in the requested format."
            notes.append(el("span", few, title=FORMAT_NOTE, class_="lab-warn"))
        faults = [entry.fault for entry in self.workspace.runs.entries.values() if entry.fault]
        if faults:
            number = f"{len(faults)} run{'s' * (len(faults) != 1)}"
            notes.append(
                el("span", f" {number} cannot be read: {faults[0]}", class_="lab-bad", title="\n".join(faults))
            )
        if found.problems:
            notes.append(el("span", f" {found.problems[0]}", class_="lab-bad", title="\n".join(found.problems)))
        return notes

    def _reference_changed(self, change: Any) -> None:
        if not self.quiet:
            self._picked = True
            self._comparing.ask()

    def _view_changed(self, change: Any) -> None:
        if not self.quiet and self._shown:
            self._comparing.ask()

    def _offer_fields(self) -> None:
        """Offer the fields that vary for the heat map."""
        options, measures = self._rows.fields, self._rows.measures
        with self.silently():
            if [*self.across.options] != options or [*self.measure.options] != measures:
                before = self.across.value, self.down.value, self.measure.value
                keys = [key for _, key in options]
                spare = [key for key in keys if key != "seed"]
                self.across.options, self.down.options = options or [("–", "")], [("–", ""), *options]
                self.measure.options = measures
                self.across.value = before[0] if before[0] in keys else (spare or keys or [""])[0]
                self.down.value = before[1] if before[1] in keys and before[1] else (spare[1:] or [""])[0]
                self.measure.value = before[2] if before[2] in measures else MEAN

    async def _draw(self) -> None:
        """Draw the chosen view, unless it is the one that is drawn."""
        view, found = self.view.value, self.comparison
        height = HIGH if self.table.room >= TALL else LOW
        options = (self.across.value, self.down.value, self.measure.value, self.log.value, height)
        if (view, options) == self._drawn:
            return
        show_if(view == "Heat map", self._heat)
        show_if(view == "Curves", self._curves)
        show_if(view == "Specs", self.markup)
        show_if(view == "Items", self.items.widget)
        show_if(view not in ("Specs", "Items"), self.figure)
        show_if(view not in WIDE, self._beside)
        try:
            if view == "Specs":
                self.markup.value = await asyncio.to_thread(specs, self._by_interest())
            elif view == "Items":
                names = self.workspace.runs.names
                self.items.show(self._by_interest(), names)
            else:
                self.figure.figure = await asyncio.to_thread(lambda: draw(view, found, options).to_plotly_json())
        except Exception as error:
            self.problem.value = error_markup(error)
            return
        self._drawn = view, options

    def _by_interest(self) -> list[EntryGroup]:
        """Return the groups, the reference first and then its nearest rival."""
        found = self.comparison
        groups = [*found.groups, *found.unscored]
        if found.reference is None:
            return groups
        return [found.reference, *(group for group in groups if group is not found.reference)]

    def _menu_toggled(self, change: Any) -> None:
        show_if(change["new"], self._menu)
        if not change["new"]:
            return
        shown, known = {one.key for one in self._rows.shown}, self._rows.known
        boxes = [self._column_box(key, known[key].label, key in shown) for key in self._rows.offered]
        reset = button("Default columns", "Fields that differ, and results", click=self._reset_columns)
        before, self._menu.children = self._menu.children, (W.Box(boxes).add_class("lab-column-boxes"), reset)
        for widget in before:
            widget.close()

    def _column_box(self, key: str, label: str, shown: bool) -> Any:
        box = W.Checkbox(description=label, value=shown, indent=False, tooltip=key)

        def changed(change: Any) -> None:
            keys = [one.key for one in self._rows.shown]
            self._columns = [*keys, key] if change["new"] else [own for own in keys if own != key]
            self._arranging.ask()

        box.observe(changed, "value")
        return box

    def _reset_columns(self, _: Any) -> None:
        self._columns = []
        self.choose.value = False
        self._arranging.ask()

    @guarded
    def _used(self, kind: str, row_id: str) -> None:
        """React to a row: open its run, or change its star."""
        ids = self.table.rows[row_id]["members"] if row_id in self.table.rows else []
        entries = [entry for run_id in ids if (entry := self.workspace.runs.entries.get(run_id))]
        if kind == "star":
            star = not all(entry.marks.star for entry in entries)
            for entry in entries:
                mark(entry.run, star=star)
            schedule(self._look)
        elif entries:
            self._select((ids[0], *(run_id for run_id in self.workspace.selection.ids if run_id != ids[0])))
            inside = entries[0].state.name == "finished" and entries[0].fields.get("adapter.type") is not None
            self.workspace.go("Inspect" if inside else "Monitor")

    def _to_benchmark(self, _: Any) -> None:
        self.view.value = "Benchmark"

    @guarded
    def _go(self, clicked: Any) -> None:
        self.workspace.go(clicked.description)

    def _inspect(self, first: str, second: str, task: str, item: str) -> None:
        """Open an item in Inspect, with the run that has an adapter first."""
        known = self.workspace.runs.entries
        both = sorted((first, second), key=lambda one: known[one].fields.get("adapter.type") is None)
        self._select((*both, *(one for one in self.workspace.selection.ids if one not in both)))
        self.workspace.go("Inspect", Question(task, item))

    @guarded
    def _ask(self, _: Any) -> None:
        """Ask for a confirmation that names the runs."""
        self._to_delete, self.problem.value = list(self.workspace.selection.ids), ""
        count, names = len(self._to_delete), self.workspace.runs.names
        text = f"Delete {count} run{'s' * (count != 1)} permanently, with adapters and answers?"
        named = ", ".join(f"{names.get(run_id, '')} ({run_id})" for run_id in self._to_delete)
        self.question.value = el("div", el("b", text), el("div", named, class_="lab-names"), role="alert")
        show_if(True, self.confirm)

    def _cancel(self, _: Any = None) -> None:
        self._to_delete, self.question.value = [], ""
        show_if(False, self.confirm)

    def _delete(self, _: Any) -> None:
        ids = self._to_delete
        self._cancel()
        schedule(lambda: self._delete_all(ids))

    async def _delete_all(self, ids: Sequence[str]) -> None:
        refused = await asyncio.to_thread(_delete_each, [self.workspace.runs.run(run_id) for run_id in ids])
        await self._look()
        known = self.workspace.runs.entries
        self._select([run_id for run_id in self.workspace.selection.ids if run_id in known])
        self.problem.value = message("\n".join(refused))


def draw(view: str, found: Comparison, options: tuple[str, str, str, bool, int]) -> go.Figure:
    """Return the figure of a view of `VIEWS`.

    Args:
        view: its name.
        found: what to show.
        options: fields of columns and rows and the value of the heat map, whether the loss has a logarithmic axis, and
            the height in pixels.
    """
    across, down, measure, log, height = options
    groups, tasks, shades = found.groups, found.tasks, found.colours
    if view == "Tiers":
        return figures.tiers([tier.groups for tier in found.tiers] or [groups], tasks, shades, height)
    if view == "By task":
        return figures.by_task(groups, tasks, shades, height)
    if view == "Parameters":
        return figures.against_parameters(groups, tasks, shades, height)
    if view == "Parallel":
        fields = [key for key in informative([group.entries[0] for group in groups]) if key != "seed"][:AXES]
        return figures.parallel(groups, fields, tasks, height)
    if view == "Curves":
        return figures.loss_curves([*groups, *found.unscored][:CURVES], shades, height - CONTROLS, log)
    values = [
        (run, value)
        for group in (*groups, *found.unscored)
        for run in group.entries
        if (value := _measured(run, measure, tasks)) is not None
    ]
    unit, digits = (measure, 3) if measure == LOSS else (f"{measure} (%)", 1)
    return figures.fields_heatmap(values, across, down, unit, height - CONTROLS, digits)


def _measured(run: Entry, measure: str, tasks: Sequence[str]) -> float | None:
    if measure == LOSS:
        return run.train.get("loss_last")
    over = tuple(tasks) if measure == MEAN else (measure,)
    mean = EntryGroup("", (run,)).mean(over)
    return None if mean is None else 100 * mean


def _finished(group: EntryGroup) -> EntryGroup | None:
    if len(group.scored) == len(group.entries):
        return group
    return replace(group, entries=group.scored) if group.scored else None


def _delete_each(runs: Sequence[Run]) -> list[str]:
    """Delete runs; return why some could not be."""
    refused = []
    for run in runs:
        try:
            delete(run)
        except (LabError, OSError) as error:
            refused.append(str(error))
    return refused
