"""Views of a comparison that are no figures: the list beside a reference, differing specs, and single items."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anywidget
import ipywidgets as W
import traitlets

from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.results.entry_groups import EntryGroup, differing, short_labels
from llm_adapters_lab.results.formatting import NONE
from llm_adapters_lab.results.group_tests import Rival, chance, numbers, signed
from llm_adapters_lab.results.run_index import Entry, words
from widgets.kit.elements import button, row, static
from widgets.kit.panel import Panel, error_markup, schedule

SIGNS = {1: ("▲", "better", "lab-good"), 0: ("≈", "not separable", "lab-muted"), -1: ("▼", "worse", "lab-bad")}
LISTED = 200
"""Maximum number of rows beside the reference."""
SPECS = 12
"""Maximum number of groups that have a column of their own; of more, the values are counted."""
PAGE = 25
"""Items on a page."""
OUTCOMES = {"A right, B wrong": (True, False), "A wrong, B right": (False, True), "both wrong": (False, False)}


def versus(found: Sequence[Rival], colours: Mapping[str, str]) -> Html:
    """Return how each group compares with the reference as a table."""
    lines = []
    names = short_labels([rival.group for rival in found])
    for rival, name in zip(found[:LISTED], names, strict=False):
        sign, word, css = SIGNS[rival.sign]
        dot = el("span", class_="lab-grid-dot", style=f"background: {colours.get(rival.group.id, 'transparent')}")
        points = signed(rival.difference.points) if rival.difference.items else NONE
        title = f"{rival.group.name} is {word}: {numbers(rival)}" if rival.difference.items else "asked differently"
        cells = [
            el("td", sign, class_=css, aria_label=word),
            el("th", dot, " ", name, scope="row"),
            el("td", points, class_="lab-grid-number"),
            el("td", chance(rival.p).removeprefix("p = ").removeprefix("p "), class_="lab-grid-number"),
        ]
        lines.append(el("tr", *cells, title=title))
    if not lines:
        return Html("")
    heads = {"": "verdict", "run": "run", "points": "difference in percentage points", "p": "p-value, after Holm"}
    top = el("tr", *(el("th", name, scope="col", title=tip) for name, tip in heads.items()))
    more = el("div", f"and {len(found) - LISTED} more", class_="lab-muted") if len(found) > LISTED else Html("")
    return el("div", el("table", el("thead", top), el("tbody", *lines)), more, class_="lab-versus", tabindex="0")


def specs(groups: Sequence[EntryGroup]) -> Html:
    """Return the fields in which specs differ: a column for each group, or how often each value occurs."""
    entries = [entry for group in groups for entry in group.entries]
    fields = [key for key in differing(entries) if key != "seed" or len(groups) == len(entries)]
    if not fields:
        return el("div", "The specs of these runs do not differ." if entries else "", class_="lab-muted")
    if len(groups) > SPECS:
        lines = [
            el("tr", el("th", key, scope="row"), el("td", _counted(groups, key), class_="lab-long")) for key in fields
        ]
        top = el("tr", el("th", "field", scope="col"), el("th", f"values (number of the {len(groups)} rows)"))
    else:
        lines = []
        for key in fields:
            texts = [_spec_cell(group, key) for group in groups]
            cells = [el("td", el("mark", one) if one != texts[0] and one != NONE else one) for one in texts]
            lines.append(el("tr", el("th", key, scope="row"), *cells))
        top = el("tr", el("th", "field"), *(el("th", name, scope="col") for name in short_labels(groups)))
    hint = "Marked: differs from the first column." if len(groups) <= SPECS else ""
    table = el("table", el("thead", top), el("tbody", *lines))
    return el("div", table, el("div", hint, class_="lab-muted"), class_="lab-specs", tabindex="0")


def _spec_cell(group: EntryGroup, key: str) -> str:
    if group.fields.get("adapter.type") is None and key.startswith(("adapter.", "train.")):
        return "no adapter" if key == "adapter.type" else NONE
    value = group.fields.get(key)
    if value is None or value == "":
        return NONE
    return f"{value:g}" if isinstance(value, float) else words(value)


def _counted(groups: Sequence[EntryGroup], key: str) -> str:
    count: dict[str, int] = {}
    for group in groups:
        count[_spec_cell(group, key)] = count.get(_spec_cell(group, key), 0) + 1
    shown = sorted(count.items(), key=lambda item: -item[1])[:SPECS]
    return " · ".join(f"{value} ({number})" for value, number in shown) + " · …" * (len(count) > SPECS)


class ItemList(anywidget.AnyWidget):
    """A page of questions with the answers of two runs.

    Attributes:
        items: task, id, question, gold, and for both runs what it said, what was read, and whether that is right.
        names: of the two runs.
        empty: what to say if there are none.
    """

    _esm = static("item_list.js")
    _css = static("compare.css")
    items: Any = traitlets.List().tag(sync=True)
    names: Any = traitlets.List().tag(sync=True)
    empty = traitlets.Unicode("").tag(sync=True)

    def __init__(self, inspect: Callable[[str, str], object]) -> None:
        """Make an empty list; `inspect` is called with a task and the id of an item."""
        super().__init__()
        self._inspect = inspect
        self.on_msg(self._told)

    def _told(self, _: Any, content: Any, buffers: Any) -> None:
        match content:
            case {"inspect": [str(task), str(item)]}:
                self._inspect(task, item)


class ItemView(Panel):
    """The items of two runs, filtered by who is right, by task and by words, page by page.

    Attributes:
        first: run id of A.
        second: run id of B.
        outcome: which items to show.
        task: of these; "" for all.
        search: words in question or answers.
        list: the items on the page.
    """

    def __init__(self, inspect: Callable[[str, str, str, str], object]) -> None:
        """Show nothing yet; `inspect` is called with the ids of both runs, a task and the id of an item."""
        super().__init__()
        self._entries: dict[str, Entry] = {}
        self._read: tuple[Any, list[dict[str, Any]]] = (None, [])
        self._page = 0
        self.first, self.second = (W.Dropdown(description=which, tooltip=f"run {which}") for which in "AB")
        self.outcome = W.Dropdown(tooltip="who is right", options=[*OUTCOMES, "all items"])
        self.task = W.Dropdown(tooltip="task", options=[("all tasks", "")])
        self.search = W.Text(placeholder="search questions and answers", tooltip="search questions and answers")
        self.back = button("‹", "Previous page", click=lambda _: self._turn(-1))
        self.forward = button("›", "Next page", click=lambda _: self._turn(1))
        self.position = W.Label()
        self.list = ItemList(lambda task, item: inspect(self.first.value, self.second.value, task, item))
        for box in (self.first, self.second):
            box.observe(self._changed, "value")
        for box in (self.outcome, self.task, self.search):
            box.observe(self._narrowed, "value")
        parts = (self.first, self.second, self.outcome, self.task, self.search, self.back, self.position, self.forward)
        self.widget = W.VBox([row(*parts).add_class("lab-items-bar"), self.problem, self.list])

    def show(self, groups: Sequence[EntryGroup], names: Mapping[str, str]) -> None:
        """Offer runs; those shown are of the first two groups, unless others were chosen before."""
        self._entries = {entry.id: entry for group in groups for entry in group.scored}
        options = [(names.get(run_id, run_id), run_id) for run_id in self._entries]
        wanted = [self.first.value, self.second.value]
        firsts = [group.scored[0].id for group in groups if group.scored]
        spare = [run_id for run_id in dict.fromkeys((*firsts, *self._entries)) if run_id not in wanted]
        with self.silently():
            for box, old in zip((self.first, self.second), wanted, strict=True):
                box.options = options
                box.value = old if old in self._entries else spare.pop(0) if spare else None
        schedule(self.refresh)

    async def refresh(self) -> None:
        """Read the answers of both runs."""
        first, second = (self._entries.get(box.value) for box in (self.first, self.second))
        try:
            if first is None or second is None:
                self._read = (None, [])
            elif self._read[0] != (first, second):
                self._read = (first, second), await asyncio.to_thread(_items, first, second)
            self.problem.value = ""
        except Exception as error:
            self._read, self.problem.value = (None, []), error_markup(error)
        tasks = dict.fromkeys(item["task"] for item in self._read[1])
        with self.silently():
            before = self.task.value
            self.task.options = [("all tasks", ""), *((task, task) for task in tasks)]
            self.task.value = before if before in tasks else ""
        self._show()

    def _changed(self, change: Any) -> None:
        if not self.quiet:
            schedule(self.refresh)

    def _narrowed(self, change: Any) -> None:
        if not self.quiet:
            self._page = 0
            self._show()

    def _turn(self, by: int) -> None:
        self._page += by
        self._show()

    def _show(self) -> None:
        wanted, search = OUTCOMES.get(self.outcome.value), self.search.value.casefold()
        left = [item for item in self._read[1] if self.task.value in ("", item["task"])]
        found = [
            item
            for item in left
            if wanted in (None, tuple(one["right"] for one in item["answers"])) and search in item["words"]
        ]
        last = max(0, (len(found) - 1) // PAGE)
        self._page = min(max(self._page, 0), last)
        page = found[self._page * PAGE : (self._page + 1) * PAGE]
        self.list.names = [box.label or "" for box in (self.first, self.second)]
        self.list.empty = "No item matches." if left else "Choose two finished runs that were scored on the same task."
        self.list.items = [{key: value for key, value in item.items() if key != "words"} for item in page]
        start = self._page * PAGE + 1
        self.position.value = f"{start}–{start + len(page) - 1} of {len(found)}" if page else "0 items"
        self.back.disabled, self.forward.disabled = self._page == 0, self._page == last


def _items(first: Entry, second: Entry) -> list[dict[str, Any]]:
    mine, other = ({(row["task"], row["id"]): row for row in one.run.predictions()} for one in (first, second))
    found = []
    for (task, item), row_ in mine.items():
        if (task, item) not in other:
            continue
        answers = [
            {
                "said": " ".join(str(one.get("text", "")).split()),
                "read": NONE if one["extracted"] is None else str(one["extracted"]),
                "right": bool(one["correct"]),
            }
            for one in (row_, other[task, item])
        ]
        question = " ".join(str(row_.get("prompt", "")).split())
        text = " ".join([question, item, *(str(value) for one in answers for value in one.values())]).casefold()
        whole = {"task": task, "id": item, "question": question, "gold": str(row_["gold"]), "answers": answers}
        found.append(whole | {"words": text})
    return found
