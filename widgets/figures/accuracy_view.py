"""Results: the accuracy of a finished run, beside that of its bare base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.results.plots.runs import accuracy
from llm_adapters_lab.runs.background import launch, state
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from widgets.figures.figure_view import picture
from widgets.kit.errors import guarded, message, note
from widgets.kit.panel import Panel


class Results(Panel):
    """Shows a figure as soon as there is something to draw.

    Attributes:
        plot: the figure.
        base: button that scores the bare base too.
        words: what there is to say of it.
    """

    def __init__(self, root: Path) -> None:
        """Show nothing yet; `root` is the folder of all runs."""
        super().__init__()
        self.root = root
        self._spec: RunSpec | None = None
        self._drawn: tuple[str, ...] = ()
        self.plot, self.words = W.Output(), W.HTML()
        self.base = W.Button(description="Score the bare base too", layout=W.Layout(width="auto"))
        self.base.tooltip = "What the adapter has gained shows beside the model without it"
        self.base.on_click(self._score)
        parts = [self.plot, W.HBox([self.base, self.words]), self.problem]
        self.widget = W.VBox(parts, layout=W.Layout(display="none"))

    def show(self, spec: RunSpec | None) -> None:
        """Show the run of a spec, as far as it is finished; for None, nothing."""
        run = Run(self.root / spec.id) if spec else None
        self._spec, shown = spec, run is not None and run.done
        self.widget.layout.display = "flex" if shown else "none"
        if not shown or spec is None or run is None:
            self._drawn, self.plot.outputs = (), ()
            return
        bare = self._bare(spec)
        begun = state(bare)
        runs = [bare, run] if bare.done and bare.id != run.id else [run]
        wanted = tuple(each.id for each in runs)
        if wanted != self._drawn:
            self._drawn, self.plot.outputs = wanted, (picture(accuracy(*runs)),) if spec.eval.tasks else ()
        alone = bool(spec.eval.tasks) and not bare.done
        self.base.layout.display = "" if alone else "none"
        self.base.disabled = begun.works
        words = "Nothing was scored: eval.tasks names no task." if not spec.eval.tasks else ""
        if alone:
            words = "the base is being scored" if begun.works else ""
            self.problem.value = message(begun.reason) if begun.name in ("failed", "dead") else self.problem.value
        self.words.value = note(words)

    def _bare(self, spec: RunSpec) -> Run:
        return Run(self.root / spec.model_copy(update={"adapter": None}).id)

    @guarded
    def _score(self, button: Any) -> None:
        if self._spec is not None:
            launch(self._spec.model_copy(update={"adapter": None}), self.root)
            self.show(self._spec)
