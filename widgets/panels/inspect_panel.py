"""Inspect: views of what adapters of finished runs have learnt and what they do to a text."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ipywidgets as W
import torch

from llm_adapters_lab.errors import BadSpec, NoView
from llm_adapters_lab.markup import el
from llm_adapters_lab.results.formatting import site_names
from llm_adapters_lab.results.run_index import Entry
from llm_adapters_lab.tasks.tokens import control_tokens
from widgets.figures.figure_card import Drawing, FigureCard, share_scale
from widgets.figures.inspect_views import ALL, VIEWS, Request, Row, View, draw, roles_of
from widgets.figures.view_rail import ViewRail
from widgets.forms.adapter_info import link
from widgets.kit.elements import button, field, row, show_if, text_area
from widgets.kit.loaded_runs import EMPTY, MAX_TOKENS, LoadedRun, TokenizedText, free_memory, load_run, tokenize
from widgets.kit.panel import Panel, error_markup, guarded, note, schedule
from widgets.kit.workspace import Question, Workspace
from widgets.panels.question_picker import Asked, QuestionPicker

TYPED = "Control tokens in a text that is typed or edited are read as text. Those of an example are tokens."
NOTHING = "Inspect shows what an adapter has learnt: its weights, what it adds to a text, and what it changes."
ROWS = 200
"""Number of rows of a task that are read by default."""
SIDE_BY_SIDE = 3
"""Maximum number of runs whose weights are shown together."""
_KEPT = 40
"""Number of results that are kept."""
Key = tuple[Any, ...]


class InspectPanel(Panel):
    """A rail of views, the run and the text that they show, and their figures.

    A view is computed when it is selected; until its figures are there, those before it stay. Results are kept.

    Attributes:
        workspace: the runs, the selection, and the question that another place hands over.
        rail: the views.
        box: the run that is inspected; selected ones come first.
        examples: of the tasks of the run.
        text: the text.
        range: first and last inspected token.
        kind: kind of site.
        layer: layer of the site.
        limit: number of rows of a task.
        cards: the figures.
        status: what the panel is doing.
    """

    def __init__(self, workspace: Workspace | str | Path = "runs", run_id: str = "") -> None:
        """Build the place; a model is loaded when it is shown.

        Args:
            workspace: shared with the other places, or the folder of all runs.
            run_id: any unambiguous prefix of the id of a run; by default, the first selected one with an adapter, else
                the newest.
        """
        super().__init__()
        self.workspace = Workspace.of(workspace)
        self._shown = self._busy = self._again = self._stop = False
        self._asked = Asked()
        self._wanted: Question | None = None
        self._taken: Question | None = None
        self._ranged: Key = ()
        self._first = ""
        self._loaded: LoadedRun | None = None
        self._kept: OrderedDict[Key, list[Drawing]] = OrderedDict()
        self._done = (0, 0)
        self.cards: list[FigureCard] = []
        self._build()
        self.workspace.runs.observe(self._runs_changed)
        self.workspace.selection.observe(self._selected)
        self.examples.task.observe(self._another, "value")
        self.examples.another.on_click(self._another)
        self.text.observe(self._text_changed, "value")
        self.rail.observe(self._chosen, "value")
        self.box.observe(self._picked, "value")
        for control in (self.kind, self.layer, self.range, self.limit):
            control.observe(self._chosen, "value")
        self._list()
        if run_id:
            self.run_id = run_id
        self._alone = self.workspace is not workspace
        if self._alone:
            self._poll(1.0, lambda: schedule(self._look))
        self._arrange()

    def opened(self) -> None:
        """Show the place: follow the selection, take the question that was handed over, and compute the view."""
        self._shown = True
        if self._alone:
            self.workspace.runs.refresh()
        self._list()
        self._take_question()
        schedule(self.compute)

    def hidden(self) -> None:
        """Stop what is being computed for a place that is not seen."""
        self._shown, self._stop, self._again = False, True, False

    def close(self) -> None:
        """Release the model and remove the place from the page."""
        self.hidden()
        self._release()
        self.workspace.runs.unobserve(self._runs_changed)
        self.workspace.selection.unobserve(self._selected)
        for card in self.cards:
            card.close()
        super().close()

    @property
    def run_id(self) -> str:
        """Id of the inspected run, "" for none; set it to any unambiguous prefix of an id."""
        return self.box.value or ""

    @run_id.setter
    def run_id(self, name: str) -> None:
        known = [option for _, option in self.box.options]
        found = [name] if name in known else [option for option in known if option.startswith(name)]
        if len(found) != 1:
            why = f"Several runs start with {name}." if found else f"{name} is not finished, or has no adapter."
            self.problem.value = error_markup(BadSpec(f"{why} Pick a run from the list."))
            return
        self.box.value = found[0]

    @property
    def view(self) -> View:
        """The selected view."""
        return VIEWS[self.rail.value]

    def _repr_mimebundle_(self, **options: Any) -> Any:
        self.opened()
        return super()._repr_mimebundle_(**options)

    async def compute(self) -> None:
        """Compute the selected view; if the selection changes meanwhile, compute the new one afterwards."""
        self._again = True
        if self._busy:
            self._stop = True  # what is being computed is not wanted any more
            return
        self._busy = True
        while self._again:
            self._again = self._stop = False
            self.problem.value = self.remark.value = ""
            try:
                await self._compute()
            except NoView as error:
                self._show([], 1)
                self.remark.value = el("div", str(error), class_="lab-empty", role="status")
            except Exception as error:
                self._show([], 1)
                self.problem.value = error_markup(error)
        self._busy = False
        self._say("")

    async def _compute(self) -> None:
        run_id, name, view = self.run_id, self.rail.value, self.view
        if not run_id:
            return
        self._about(view)
        self._say("loading the model …" if self._loaded is None else "computing …")
        if (loaded := self._loaded) is None:
            loaded = await asyncio.to_thread(load_run, self.workspace.runs.run(run_id))
            items = await asyncio.to_thread(_items, loaded)
            if run_id != self.run_id:
                return
            self._loaded = loaded
            self._offer(loaded, items)
        if reason := next(item["reason"] for item in self.rail.items if item["name"] == name):
            raise NoView(reason)
        if self._wanted is not None and {"text", "rows"} & {*view.needs}:
            wanted, self._wanted = self._wanted, None
            self._put(await asyncio.to_thread(self._find, wanted))
        text = await self._tokens(loaded, view)
        if (key := self._key()) not in self._kept:
            self._say("computing …")
            found = await self._draw(loaded, view, text)
            if self._again or run_id != self.run_id or name != self.rail.value:
                return  # superseded
            if not self._stop:
                self._keep(key, found)
        else:
            found = self._kept[key]
        several = [found]
        if view.group == "Weights":
            several += [await self._others(other, view, text) for other in self._beside()]
        if self._again:
            return
        shown = [each for drawings in several for each in drawings]
        if len(several) > 1:
            names = [self.workspace.runs.names.get(each, each) for each in (run_id, *self._beside())]
            shown = [
                Drawing(each.figure, _title(label, each.title, drawings), each.words, each.rows)
                for label, drawings in zip(names, several, strict=True)
                for each in drawings
            ]
        self._show(share_scale(shown), max(view.columns, len(several)) if len(shown) > 1 else 1)

    async def _draw(self, loaded: LoadedRun, view: View, text: TokenizedText) -> list[Drawing]:
        """Draw a view in a thread, and show how far it is."""
        rows: list[Row] = []
        if "rows" in view.needs:
            rows = await asyncio.to_thread(self._rows)
        self._done = (0, len(rows))
        request = Request(
            loaded,
            text,
            self.kind.value,
            self.layer.value,
            rows,
            sorted({*control_tokens(loaded.tokenizer).values()}),
            lambda: self._stop,
            self._progress,
        )
        task = asyncio.ensure_future(asyncio.to_thread(draw, view, request))
        while not (await asyncio.wait({task}, timeout=0.25))[0]:
            if rows and not self._stop:
                self._say(f"row {self._done[0]:,} of {self._done[1]:,} …", stop=True)
        return task.result()

    async def _others(self, run_id: str, view: View, text: TokenizedText) -> list[Drawing]:
        """Draw a view of weights of another run; its model is not kept."""
        key = self._key(run_id)
        if key not in self._kept:
            self._say(f"computing … {self.workspace.runs.names.get(run_id, run_id)}")
            loaded = await asyncio.to_thread(load_run, self.workspace.runs.run(run_id))
            if reason := await asyncio.to_thread(view.reason, loaded):
                return [Drawing({}, "", reason, [])]
            self._keep(key, await self._draw(loaded, view, text))
        return self._kept[key]

    async def _tokens(self, loaded: LoadedRun, view: View) -> TokenizedText:
        if "text" not in view.needs:
            return EMPTY
        own = bool(self._asked.front) and self.text.value == self._asked.text  # an edited text has no answer
        parts: Sequence[Any] = (list(self._asked.front), self._asked.target) if own else (self.text.value,)
        text = await asyncio.to_thread(tokenize, loaded, *parts)
        if not own and any(name in self.text.value for name in control_tokens(loaded.tokenizer)):
            self.problem.value = note(TYPED)
        return self._offer_range(loaded, text) if "range" in view.needs else text

    def _offer_range(self, loaded: LoadedRun, text: TokenizedText) -> TokenizedText:
        """Return the text with the selected range; another text or run resets the range."""
        owner = (self.run_id, self.text.value)
        if self._ranged != owner:
            with self.silently():
                self.range.min, self.range.max = 0, max(text.last, 2)
                self.range.value, self.range.min = (text.first, text.last), 1
                self._ranged, self.range.disabled = owner, False
        first, last = self.range.value
        last = min(last, text.last)
        part = loaded.tokenizer.decode(text.ids[first : last + 1])
        self.part.value = f"“{part if len(part) < 60 else f'{part[:28]}…{part[-28:]}'}”".replace("\n", "↵")
        return TokenizedText(text.ids, text.words, min(first, last), last)

    def _rows(self) -> list[Row]:
        """Return the rows of the selected task that fit; read in a thread."""
        count = max(int(self.limit.value), 1)
        pairs = [(torch.tensor(each.ids), torch.tensor(each.labels)) for each in self.examples.written(count)]
        return [(ids, labels) for ids, labels in pairs if 1 < len(ids) <= MAX_TOKENS]

    def _progress(self, done: int, total: int) -> None:
        self._done = (done, total)

    def _key(self, run_id: str = "") -> Key:
        """Return what the result of the selected view depends on."""
        run_id, needs = run_id or self.run_id, self.view.needs
        folder = self.workspace.root / run_id / "adapter" / "adapter.safetensors"
        parts: list[Any] = [run_id, folder.stat().st_mtime_ns if folder.is_file() else 0, self.rail.value]
        if "text" in needs:
            parts += [self.text.value, tuple(self._asked.front), self._asked.target]
        if "range" in needs:
            parts += [self.range.value if self._ranged == (run_id, self.text.value) else None]
        if "site" in needs:
            parts += [self.kind.value, self.layer.value]
        if "rows" in needs:
            parts += [self.examples.task.value, self.limit.value]
        return tuple(parts)

    def _keep(self, key: Key, found: list[Drawing]) -> None:
        self._kept[key] = found
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def _offer(self, loaded: LoadedRun, items: list[dict[str, str]]) -> None:
        """Offer the sites of the run, and the views; those that do not apply are disabled."""
        places = site_names(loaded.injection.sites, roles_of(loaded.injection)).values()
        kinds = [(name, name) for name in dict.fromkeys(name for _, name in places)]
        layers = [(f"layer {n}", str(n)) for n in sorted({layer for layer, _ in places if layer is not None})]
        with self.silently():
            for box, found in ((self.kind, [("all", ALL), *kinds]), (self.layer, [("all layers", ALL), *layers])):
                if tuple(found) != box.options:
                    before, box.options = box.value, tuple(found)
                    box.value = before if any(value == before for _, value in found) else ALL
        self.rail.items = items

    def _build(self) -> None:
        self.rail = ViewRail(items=_items(None), value=next(iter(VIEWS)))
        self.box = field(W.Dropdown, "Inspect", "340px", tooltip="The run that is inspected; ✓: selected in Compare")
        self.examples = QuestionPicker()
        self.text = text_area("text", 3, placeholder="Type a text, or take an example.")
        wide = {"continuous_update": False, "disabled": True}
        self.range = field(W.IntRangeSlider, "tokens", "360px", value=(1, 2), min=1, max=2, **wide)
        self.kind = field(W.Dropdown, "site", "200px", options=(("all", ALL),))
        self.layer = field(W.Dropdown, "in", "160px", options=(("all layers", ALL),))
        self.limit = field(W.BoundedIntText, "rows", "140px", value=ROWS, min=1, max=100_000)
        self.stop = button("Stop", "Show what has been computed so far", click=lambda _: self._stopped())
        self.part, self.about, self.remark, self.status = W.Label(), W.HTML(), W.HTML(), W.HTML()
        self.status.add_class("lab-inspect-state")
        self.about.add_class("lab-inspect-about")
        head = row(self.box, self.status, self.stop).add_class("lab-inspect-head")
        self.span, self.sites = row(self.range, self.part), row(self.kind, self.layer)
        self.question = W.VBox([self.text]).add_class("lab-question")
        self.source = row(self.examples.widget, self.limit)
        self.figures = W.VBox().add_class("lab-figures").add_class("lab-linked")
        controls = W.VBox([self.source, self.question, self.span, self.sites], layout=W.Layout(overflow="visible"))
        main = [head, self.about, controls, self.problem, self.remark, self.figures]
        self._body = W.HBox([self.rail, W.VBox(main, layout=W.Layout(overflow="visible"))]).add_class("lab-inspect")
        words = W.HTML(el("div", NOTHING, " No run with an adapter has finished yet."))
        buttons = [
            button("Set up a run", "Open Setup", "primary", click=lambda _: self.workspace.go("Setup")),
            button("See running ones", "Open Monitor", click=lambda _: self.workspace.go("Monitor")),
        ]
        line = W.HBox(buttons, layout=W.Layout(justify_content="center"))
        self.empty = W.VBox([words, line]).add_class("lab-empty")
        self.widget = W.VBox([self.empty, self._body], layout=W.Layout(width="auto", overflow="visible"))
        show_if(False, self.stop)

    def _show(self, shown: Sequence[Drawing], columns: int) -> None:
        """Show drawings in place of those before; cards are used again."""
        while len(self.cards) < len(shown):
            self.cards.append(FigureCard())
        for card, each in zip(self.cards, shown, strict=False):
            card.show(each)
        self.cards, rest = self.cards[: len(shown)], self.cards[len(shown) :]
        for number in (2, 3):
            (self.figures.add_class if columns == number else self.figures.remove_class)(f"lab-{number}")
        children = tuple(card.widget for card in self.cards)
        if children != self.figures.children:
            self.figures.children = children
        for card in rest:
            card.close()

    def _say(self, words: str, stop: bool = False) -> None:
        """Say what is being done; the figures of before fade meanwhile."""
        self.status.value = el("span", words, class_="lab-work", role="status") if words else ""
        (self.figures.add_class if words else self.figures.remove_class)("lab-stale")
        show_if(stop, self.stop)

    def _about(self, view: View) -> None:
        found = re.search(r"Source: (.+?)(?:\n\n|\Z)", view.source.__doc__ or "", re.S) if view.source else None
        more = [" Source: ", link(" ".join(found[1].split()))] if found else []
        self.about.value = el("div", el("b", self.rail.value), " ", view.description, *more)

    def _arrange(self) -> None:
        """Show the controls that the view needs."""
        needs = self.view.needs
        show_if(not self.run_id, self.empty)
        show_if(self.run_id, self._body)
        show_if("text" in needs or "rows" in needs, self.source)
        show_if("rows" in needs, self.limit)
        self.examples.task.description = "task" if "rows" in needs else "examples"
        show_if("rows" not in needs, self.examples.another)
        for box, need in ((self.question, "text"), (self.span, "range"), (self.sites, "site")):
            show_if(need in needs, box)
        self._about(self.view)

    def _able(self) -> list[Entry]:
        """Return the finished runs with an adapter, newest first."""
        return [each for each in self.workspace.runs.finished() if each.fields.get("adapter.type")]

    def _beside(self) -> list[str]:
        """Return the other selected runs that are shown beside the inspected one."""
        able = {each.id for each in self._able()}
        chosen = [run_id for run_id in self.workspace.selection.ids if run_id in able]
        if self.run_id not in chosen:
            return []
        return [run_id for run_id in chosen if run_id != self.run_id][: SIDE_BY_SIDE - 1]

    def _list(self) -> None:
        """Offer the runs, selected ones first; follow the first selected one, if that has changed."""
        names, before = self.workspace.runs.names, self.box.value
        able = {each.id: names.get(each.id, each.id) for each in self._able()}
        chosen = [run_id for run_id in self.workspace.selection.ids if run_id in able]
        options = [(f"✓ {able[run_id]}", run_id) for run_id in chosen]
        options += [(name, run_id) for run_id, name in able.items() if run_id not in chosen]
        first = chosen[0] if chosen else ""
        value = first if first and first != self._first else before if before in able else None
        self._first = first
        with self.silently():
            if tuple(options) != self.box.options:
                self.box.options = tuple(options)
            self.box.value = value or first or next(iter(able), None)
        if self.box.value != before:
            self._changed_run()

    def _changed_run(self) -> None:
        self._release()
        run = self.workspace.runs.run(self.run_id) if self.run_id else None
        with self.silently():
            self.examples.offer(run.spec if run else None)
        self._wanted = Question(self.examples.task.value or "")
        self._arrange()
        self._notify()

    def _release(self) -> None:
        if self._loaded is not None:
            self._loaded = None
            free_memory()

    async def _look(self) -> None:
        await self.workspace.runs.refresh_soon()

    @guarded
    def _runs_changed(self) -> None:
        before = self.run_id
        self._list()
        if self._shown and self.run_id != before:
            schedule(self.compute)
        self._arrange()

    @guarded
    def _selected(self) -> None:
        self._list()
        if self._shown:
            schedule(self.compute)

    @guarded
    def _picked(self, change: Any) -> None:
        if not self.quiet:
            self._changed_run()
            self._compute_soon()

    @guarded
    def _another(self, _: Any) -> None:
        if not self.quiet:
            self._wanted = Question(self.examples.task.value or "")
            self._compute_soon()

    def _find(self, wanted: Question) -> Asked:
        """Return a question as the run asks it, without an item the next one of its task; called in a thread."""
        if not wanted.task:
            return Asked(wanted.text)
        return self.examples.find(wanted.item) if wanted.item else self.examples.next()

    def _put(self, asked: Asked) -> None:
        self._asked = asked
        with self.silently():
            self.text.value = asked.text

    def _take_question(self) -> None:
        """Take over the question that another place has handed over, once."""
        question = self.workspace.question
        if question is None or question is self._taken or not self.run_id:
            return
        self._wanted = self._taken = question
        with self.silently():
            if question.task:
                self.examples.offer_also(question.task)
        if "text" not in self.view.needs:  # a view of weights does not show it
            with self.silently():
                self.rail.value = "Loss per token"
        self._arrange()

    def _text_changed(self, change: Any) -> None:
        if not self.quiet:
            self.range.disabled, self.part.value = True, ""
            self._chosen(change)

    @guarded
    def _chosen(self, change: Any) -> None:
        if not self.quiet:
            self._arrange()
            self._compute_soon()

    def _compute_soon(self) -> None:
        self._shown = True
        if self.run_id:
            self._say("computing …")
            schedule(self.compute)

    def _stopped(self) -> None:
        self._stop = True


def _items(loaded: LoadedRun | None) -> list[dict[str, str]]:
    """Return the views for the rail; those that do not apply to a run have a reason, which is found by trying."""
    with loaded.lock if loaded else nullcontext():
        return _of_rail(loaded)


def _of_rail(loaded: LoadedRun | None) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "label": view.label,
            "group": view.group,
            "icon": view.icon,
            "hint": view.description,
            "reason": view.reason(loaded) if loaded else "",
        }
        for name, view in VIEWS.items()
    ]


def _title(run: str, title: str, drawings: Sequence[Drawing]) -> str:
    """Return the title of one of several drawings of a run."""
    return run if len(drawings) == 1 else f"{run}: {title.rpartition(': ')[2]}"
