"""Inspect panel: what an adapter is and does, view by view, for a finished run."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.markup import el
from llm_adapters_lab.results.plots.style import place
from llm_adapters_lab.tasks import prompts
from widgets.figures.figure_view import Shown
from widgets.figures.inspect_views import ALL, VIEWS, Asked, View
from widgets.forms.adapter_info import link
from widgets.forms.example_picker import Examples
from widgets.forms.run_picker import IntoRun, start
from widgets.kit.errors import error_markup, guarded, note
from widgets.kit.model_cache import Loaded
from widgets.kit.tokenized_text import NOTHING, Text, read


class InspectPanel(IntoRun):
    """Run, view, text, tokens and site in; figures out.

    The model is loaded at the first look and kept while its run is picked. From then on every choice is followed.

    Attributes:
        view: the list of views.
        kind: kind of site, where a view has a choice of it.
        layer: layer of the site.
        examples: texts to look at: questions of the run's tasks with their gold answers.
        text: the text.
        range: first and last token that is looked at, where a view has a choice of it.
        shown: the figures.
    """

    def __init__(self, root: str | Path = "runs", run_id: str = "") -> None:
        """Build the panel; nothing is loaded before the first look.

        Args:
            root: folder of all runs.
            run_id: of the run, or the beginning of it; default: the newest.
        """
        super().__init__(root, run_id)
        self._quiet, self._busy, self._again = False, False, False
        self._parts, self.shown = ("", ""), list[Shown]()
        self._ranged = ("", "")
        self.examples = Examples()
        self._build()
        self.pick.observe(self._picked)
        self.examples.task.observe(self._task_chosen, "value")
        self.examples.another.on_click(self._another)
        self.look_at.on_click(lambda _: start(self.look))
        self.text.observe(self._text_changed, "value")
        for box in (self.view, self.kind, self.layer, self.range):
            box.observe(self._chosen, "value")
        self._picked()

    async def look(self) -> None:
        """Draw what is chosen; what is chosen meanwhile is drawn next."""
        self._again = True
        if self._busy:
            return
        self._busy = self.look_at.disabled = True
        while self._again:
            self._again, self.problem.value = False, ""
            try:
                await self._look()
            except Exception as error:
                self._show([], "")
                self.problem.value = error_markup(error)
        self._busy = self.look_at.disabled = False
        self.status.value = ""

    async def _look(self) -> None:
        run, view = self.pick.run, VIEWS[self.view.value]
        self.status.value = "computing…" if self.pick.has_loaded else "loading the model…"
        loaded = await self.pick.loaded()
        self.status.value = "computing…"
        self._offer_sites(loaded)
        text = NOTHING
        if "text" in view.needs:
            whole = self.text.value
            text = await asyncio.to_thread(read, loaded, *(self._parts if whole == "".join(self._parts) else (whole,)))
        if "range" in view.needs:
            text = self._offer_range(loaded, text)
        asked = Asked(loaded, text, self.kind.value, self.layer.value)
        figures = await asyncio.to_thread(_drawn, view, asked)
        if run == self.pick.run:
            self._show([Shown(figure) for figure in figures], _line(view))

    def _offer_range(self, loaded: Loaded, text: Text) -> Text:
        """Return the text with the range that is chosen; a new text, or another model, brings its own."""
        whose = (self.run_id, self.text.value)
        if self._ranged != whose:
            self._quiet = True
            self.range.min, self.range.max = 0, max(text.last, 2)
            self.range.value, self.range.min = (text.first, text.last), 1
            self._ranged, self.range.disabled, self._quiet = whose, False, False
        first, last = self.range.value
        last = min(last, text.last)
        part = loaded.tokenizer.decode(text.ids[first : last + 1])
        self.part.value = f"“{part if len(part) < 60 else f'{part[:28]}…{part[-28:]}'}”".replace("\n", "↵")
        return Text(text.ids, text.words, min(first, last), last)

    def _offer_sites(self, loaded: Loaded) -> None:
        keys = [place(key) for key in loaded.injection.sites]
        layers = sorted({layer for layer, _ in keys if layer is not None})
        self._quiet = True
        try:
            for box, found in ((self.kind, dict.fromkeys(kind for _, kind in keys)), (self.layer, layers)):
                options = (ALL, *map(str, found))
                if options != box.options:
                    box.options = options
        finally:
            self._quiet = False

    def _build(self) -> None:
        # A layout of its own for each: what is hidden must not hide others.
        self.status, self.part, self.line = W.Label(), W.Label(), W.HTML()
        self.view: Any = W.Dropdown(description="view", options=list(VIEWS), layout=_width("440px"))
        self.kind: Any = W.Dropdown(description="site", options=(ALL,), layout=_width("300px"))
        self.layer: Any = W.Dropdown(description="layer", options=(ALL,), layout=_width("220px"))
        hint = "Type a text, or take an example."
        self.text: Any = W.Textarea(placeholder=hint, tooltip="text", rows=5, layout=W.Layout(width="auto"))
        self.range: Any = W.IntRangeSlider(
            **{"description": "tokens", "min": 1, "max": 2, "value": (1, 2), "continuous_update": False},
            **{"disabled": True, "layout": _width("440px")},
        )
        self.look_at: Any = W.Button(description="Look", button_style="primary", tooltip="Load the model and draw")
        self.sites, self.span, act = (
            W.HBox(parts, layout=W.Layout(flex_flow="row wrap", align_items="center"))
            for parts in ([self.kind, self.layer], [self.range, self.part], [self.look_at, self.status])
        )
        self.reading: Any = W.VBox([self.examples.widget, self.text])
        self.figures: Any = W.VBox()
        parts = [self.pick.widget, self.view, self.sites, self.reading, self.span, act, self.problem, self.line]
        self.widget: Any = W.VBox([*parts, self.figures], layout=W.Layout(width="100%"))

    def _show(self, shown: list[Shown], line: str) -> None:
        old, self.shown = self.shown, shown
        self.line.value, self.figures.children = line, [one.widget for one in shown]
        for one in old:
            one.close()

    @guarded
    def _picked(self) -> None:
        """Another run: nothing of the old one stays."""
        self._show([], "")
        self._again, self.problem.value = False, ""
        self.examples.offer(self.pick.run.spec if self.pick.run else None)
        self._arrange()

    @guarded
    def _task_chosen(self, change: Any) -> None:
        self._take()

    @guarded
    def _another(self, button: Any) -> None:
        self._take()

    def _take(self) -> None:
        """Show the next example: a prompt as it was scored, with its gold answer."""
        self._parts = ("", "")
        if self.examples.task.value:
            template, example = self.examples.template, self.examples.take()
            head = self.examples.front() + prompts.prompt(example, template)
            self._parts = (head, prompts.target(example, template))
        self.text.value = "".join(self._parts)

    def _text_changed(self, change: Any) -> None:
        self.range.disabled, self.part.value = True, ""
        self._chosen(change)

    def _chosen(self, change: Any) -> None:
        """Follow a choice, once there is a model."""
        if self._quiet:
            return
        self._arrange()
        if self.pick.has_loaded:
            start(self.look)

    def _arrange(self) -> None:
        needs = VIEWS[self.view.value].needs
        for box, need in ((self.sites, "site"), (self.reading, "text"), (self.span, "range")):
            box.layout.display = "flex" if need in needs else "none"


def _width(most: str) -> Any:
    return W.Layout(width=most, max_width="100%")


def _drawn(view: View, asked: Asked) -> Any:
    with asked.loaded.lock:
        return view.draw(asked)


def _line(view: View) -> str:
    """Return the line on what is drawn, with the source that the view's own docstring names."""
    found = re.search(r"Source: (.+?)(?:\n\n|\Z)", view.source.__doc__ or "", re.S) if view.source else None
    if found is None:
        return note(view.words)
    return note(el("span", view.words, " Source: ", link(" ".join(found[1].split()))))
