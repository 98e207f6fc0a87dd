"""Two cards of Setup: the method with its fields, and the placement as text and as a grid."""

from __future__ import annotations

from typing import Any

import ipywidgets as W
from pydantic import BaseModel

from llm_adapters_lab.core import placement
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import Entry, get_adapter
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.presets import expand
from widgets.forms.adapter_info import NO_ADAPTER, description
from widgets.forms.form import Form
from widgets.forms.method_picker import MethodPicker
from widgets.forms.placement_grid import PlacementGrid, placement_of
from widgets.kit.elements import Collapsible, button, card, show_if
from widgets.kit.panel import Panel, error_text, message, note

ESSENTIAL = 3
"""Number of fields of an adapter that are always visible."""
TIES = {"alpha": "rank"}


class MethodCard(Panel):
    """The method and its fields.

    Attributes:
        kind: the choice of a method or preset; `NO_ADAPTER` for the bare base.
        form: the fields of the method; None for the bare base.
        entry: of the method in the registry; None for the bare base.
        fault: why the choice is not possible; "" if it is.
    """

    def __init__(self) -> None:
        """Start with the bare base."""
        super().__init__()
        self.kind = MethodPicker()
        self.form: Form[AdapterConfig] | None = None
        self.entry: Entry | None = None
        self.fault = ""
        self._forms: dict[str, Form[AdapterConfig]] = {}
        self.fields, self.about = W.VBox(), W.HTML()
        self.help = Collapsible("Formula, parameters, source", self.about)
        self.widget = card("Method", self.kind.widget, self.problem, self.fields, self.help.widget)
        self.kind.observe(self._picked)
        self._take()

    @property
    def config(self) -> AdapterConfig | None:
        """The config of the adapter, with an empty placement; None for the bare base and while it is invalid."""
        return self.form.value if self.form else None

    @config.setter
    def config(self, config: AdapterConfig | None) -> None:
        with self.silently():
            self.kind.value = config.type if config else NO_ADAPTER
            self._take()
            if self.form is not None and config is not None:
                self.form.value = config

    def default_placement(self) -> str:
        """Return the placement that the choice comes with; "" for that of the adapter."""
        name = self.kind.value
        return str(expand({"type": name}).get("at", "")) if name else ""

    def _picked(self, _: Any = None) -> None:
        if not self.quiet:
            self._take()
            self._notify()

    def _take(self) -> None:
        """Show the fields of the chosen method, as they were left or with their defaults."""
        name, self.form, self.entry, self.fault = self.kind.value, None, None, ""
        try:
            if name:
                given = expand({"type": name})
                self.entry = get_adapter(given["type"])
                self.form = self._forms.get(name) or self._make(name, self.entry, given)
        except Exception as error:  # a module of someone else may raise anything
            self.fault = error_text(error)
        self.problem.value = message(self.fault)
        self.fields.children = (self.form.widget,) if self.form else ()
        self.about.value = "" if self.fault else description(name)
        show_if(self.about.value, self.help.widget)

    def _make(self, name: str, entry: Entry, given: dict[str, Any]) -> Form[AdapterConfig]:
        fields = entry.config.model_fields
        own = [key for key in fields if key not in AdapterConfig.model_fields and not _is_group(fields[key].annotation)]
        form = self._forms[name] = Form(
            entry.config,
            given,
            skip=("type", "at"),
            prefix="adapter.",
            first=own[:ESSENTIAL],
            lists=True,
            ties=TIES,
        )
        form.observe(lambda _: self._notify())
        return form


def _is_group(annotation: Any) -> bool:
    kinds = getattr(annotation, "__args__", (annotation,))
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)


class PlacementCard(Panel):
    """Where the adapter sits: a text, which may hold several placements separated by semicolons, and the grid.

    Attributes:
        text: the placement; empty for the usual one of the adapter.
        grid: the sites of the first placement.
        fault: why the placement is not possible; "" if it is.
        values: the placements.
    """

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.fault = ""
        self._shown: tuple[Blueprint, Entry] | None = None
        self._cleared = False  # the last site of the grid has been deselected
        tip = "where the adapter sits, e.g. q,v or attn+mlp or down@0-7; several, as in q,v; mlp, make a sweep"
        self.text = W.Text(description="placement", tooltip=tip)
        self.everything = W.ToggleButton(description="More sites", tooltip="Show module inputs and whole sublayers")
        self.reset = button("Default", "Reset to the default placement of this method", click=self._reset)
        self.grid, self.words = PlacementGrid(self._clicked), W.HTML()
        self.box = W.VBox([self.text, self.problem]).add_class("lab-field").add_class("lab-at-adapter-at")
        head = W.HBox([self.box, self.reset]).add_class("lab-place-head")
        self.body = W.VBox([head, self.grid.widget])
        self.widget = card("Placement", self.body, self.words)
        self.text.observe(self._typed, "value")

    @property
    def values(self) -> list[str]:
        """The placements as typed, at least one; "" for the usual one."""
        return [part.strip() for part in self.text.value.split(";") if part.strip()] or [""]

    def set(self, text: str) -> None:
        """Show a placement without telling observers."""
        with self.silently():
            self.text.value, self._cleared = text, False

    def check(self, plan: Blueprint | None, entry: Entry | None) -> bool:
        """Draw the grid for the text, and return whether the adapter can be placed there.

        Args:
            plan: of the base; None while it is not known.
            entry: of the adapter; None for the bare base.
        """
        self.fault, self._shown = "", (plan, entry) if plan and entry else None
        placed = entry is not None and entry.placed
        show_if(placed, self.body)
        self.words.value = ""
        if entry is None or not placed:
            self.words.value = note("Nothing is placed." if entry is None else "This method acts on the whole model.")
            self.grid.clear()
        else:
            self.text.placeholder = entry.at
            try:
                self._draw(plan, entry)
            except LabError as error:
                self.fault = str(error)
        self.problem.value = message(self.fault)
        (self.box.add_class if self.fault else self.box.remove_class)("lab-invalid")
        return not self.fault and plan is not None

    def _draw(self, plan: Blueprint | None, entry: Entry) -> None:
        places = [value or entry.at for value in self.values]
        for at in places:
            placement.parse(at)
        if plan is None:
            self.grid.clear()
            return
        level, anatomy = entry.cls.level, plan.anatomy
        sites = () if self._cleared else placement.sites(anatomy, places[0], level)
        self.grid.show(anatomy, level, sites)
        if self._cleared:
            raise BadSpec("No site is selected. Click one in the grid, or Default.")
        for at in places:
            entry.cls.sites(anatomy, plan.skeleton, at)

    def _typed(self, change: Any) -> None:
        if not self.quiet:
            self._cleared = self._cleared and change["owner"] is not self.text
            self._notify()

    def _clicked(self) -> None:
        """Write the placement that was clicked in the grid as text; further ones of a list stay."""
        if self._shown is None:
            return
        self._cleared = not self.grid.selected
        with self.silently():
            clicked = placement_of(self.grid.selected, self._shown[0].anatomy)
            self.text.value = "; ".join([clicked, *self.values[1:]])
        self._notify()

    def _reset(self, _: Any) -> None:
        self.set("")
        self._notify()
