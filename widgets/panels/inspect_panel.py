"""The panel that shows views of the adapter of a finished run: weights, activations, ablations."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.inspection.routing import has_experts
from llm_adapters_lab.markup import el
from llm_adapters_lab.results.formatting import place
from llm_adapters_lab.tasks.tokens import control_tokens
from widgets.figures.figure_view import FigureView
from widgets.figures.inspect_views import ALL, VIEWS, Request, View
from widgets.forms.adapter_info import link
from widgets.kit.elements import button, column, field, row, show_if, text_area
from widgets.kit.loaded_runs import EMPTY, LoadedRun, TokenizedText, tokenize
from widgets.kit.panel import error_markup, guarded, note
from widgets.panels.finished_run import FinishedRunPanel, schedule

TYPED = "Control tokens in a text that is typed or edited are read as text. Those of an example are tokens."


class InspectPanel(FinishedRunPanel):
    """Selection of run, view, text, tokens and site, and the resulting figures.

    The first Compute loads the model, which is kept while its run is selected. From then on, the figures follow every
    selection.

    Attributes:
        view: the list of views.
        kind: kind of site.
        layer: layer of the site.
        text: the text.
        range: first and last inspected token.
        shown: the figures.
    """

    def __init__(self, root: str | Path = "runs", run_id: str = "") -> None:
        """Build the panel; the model is loaded for the first view.

        Args:
            root: folder of all runs.
            run_id: any unambiguous prefix of the id of a run; by default, the newest run.
        """
        super().__init__(root, run_id)
        self._busy = self._again = False
        self._parts, self._ranged = ("", ""), ("", "")
        self._front: list[int] = []
        self.shown: list[FigureView] = []
        self._build()
        self.examples.task.observe(self._another, "value")
        self.examples.another.on_click(self._another)
        self.text.observe(self._text_changed, "value")
        for box in (self.view, self.kind, self.layer, self.range):
            box.observe(self._chosen, "value")
        self._picked()

    async def compute(self) -> None:
        """Compute the selected view; if the selection changes meanwhile, compute the new one afterwards."""
        self._again = True
        if self._busy:
            return
        self._busy = self.start.disabled = True
        while self._again:
            self._again, self.problem.value = False, ""
            try:
                await self._compute()
            except Exception as error:
                self._show([], "")
                self.problem.value = error_markup(error)
        self._busy = self.start.disabled = False
        self.status.value = ""

    async def _compute(self) -> None:
        run, view = self.run, VIEWS[self.view.value]
        self.status.value = "computing …" if self.has_loaded else "loading the model …"
        loaded = await self.loaded()
        self.status.value = "computing …"
        self._offer_sites(loaded)
        self._offer_views(loaded)
        text = EMPTY
        if "text" in view.needs:
            own = self._front and self.text.value == "".join(self._parts)  # an edited text has no answer
            parts = (self._front, self._parts[1]) if own else (self.text.value,)
            text = await asyncio.to_thread(tokenize, loaded, *parts)
            if not own and any(name in self.text.value for name in control_tokens(loaded.tokenizer)):
                self.problem.value = note(TYPED)
        if "range" in view.needs:
            text = self._offer_range(loaded, text)
        figures = await asyncio.to_thread(_draw, view, Request(loaded, text, self.kind.value, self.layer.value))
        if run == self.run:
            self._show([FigureView(figure) for figure in figures], _caption(view))

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

    def _offer_sites(self, loaded: LoadedRun) -> None:
        keys = [place(key) for key in loaded.injection.sites]
        layers = sorted({layer for layer, _ in keys if layer is not None})
        with self.silently():
            for box, found in ((self.kind, dict.fromkeys(kind for _, kind in keys)), (self.layer, layers)):
                options = (ALL, *map(str, found))
                if options != box.options:
                    box.options = options

    def _offer_views(self, loaded: LoadedRun) -> None:
        options = tuple(_views(experts=has_experts(loaded.injection.anatomy)))
        if options != self.view.options:
            with self.silently():
                shown, self.view.options = self.view.value, options
                self.view.value = shown if shown in options else options[0]

    def _build(self) -> None:
        self.part, self.caption = W.Label(), W.HTML()
        self.view = field(W.Dropdown, "view", "440px", options=_views(experts=False))
        self.kind = field(W.Dropdown, "site", "300px", options=(ALL,))
        self.layer = field(W.Dropdown, "layer", "220px", options=(ALL,))
        self.text = text_area("text", 5, placeholder="Type a text, or take an example.")
        self.range = field(
            W.IntRangeSlider, "tokens", "440px", value=(1, 2), min=1, max=2, continuous_update=False, disabled=True
        )
        tip = "Load the model and compute the view"
        self.start = button("Compute", tip, "primary", click=lambda _: schedule(self.compute))
        self.sites, self.span = row(self.kind, self.layer), row(self.range, self.part)
        self.reading, self.figures = W.VBox([self.examples.widget, self.text]), W.VBox()
        choices = [self.picker, self.view, self.sites, self.reading, self.span, row(self.start, self.status)]
        self.widget = column(*choices, self.problem, self.caption, self.figures)

    def _show(self, shown: list[FigureView], caption: str) -> None:
        old, self.shown = self.shown, shown
        self.caption.value, self.figures.children = caption, [one.widget for one in shown]
        for one in old:
            one.close()

    @guarded
    def _picked(self) -> None:
        self._show([], "")
        self._again, self.problem.value = False, ""
        self.examples.offer(self.run.spec if self.run else None)
        self._arrange()

    @guarded
    def _another(self, _: Any) -> None:
        """Show the next example: a prompt as in the evaluation, with its gold answer."""
        self._parts = ("", "")
        if self.examples.task.value:
            form, example = self.examples.asked, self.examples.take()
            ((head, self._front),) = form.prompts([example], self.examples.shots())
            self._parts = (head, form.target(example))
        self.text.value = "".join(self._parts)

    def _text_changed(self, change: Any) -> None:
        self.range.disabled, self.part.value = True, ""
        self._chosen(change)

    def _chosen(self, change: Any) -> None:
        """Compute the new selection if the model is loaded."""
        if self.quiet:
            return
        self._arrange()
        if self.has_loaded:
            schedule(self.compute)

    def _arrange(self) -> None:
        needs = VIEWS[self.view.value].needs
        for box, need in ((self.sites, "site"), (self.reading, "text"), (self.span, "range")):
            show_if(need in needs, box)


def _views(*, experts: bool) -> list[str]:
    return [name for name, view in VIEWS.items() if experts or "experts" not in view.needs]


def _draw(view: View, request: Request) -> Any:
    with request.loaded.lock:
        return view.draw(request)


def _caption(view: View) -> str:
    """Return the description of a view, with the source from the docstring of its method."""
    found = re.search(r"Source: (.+?)(?:\n\n|\Z)", view.source.__doc__ or "", re.S) if view.source else None
    if found is None:
        return note(view.description)
    return note(el("span", view.description, " Source: ", link(" ".join(found[1].split()))))
