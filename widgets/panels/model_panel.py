"""The panel for base, adapter and placement, with parameter count, memory and time of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.core import placement
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.registry import Entry, get_adapter
from llm_adapters_lab.core.sites import ENCODER
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models.blueprint import Blueprint, blueprint
from llm_adapters_lab.models.loading import pick_dtype
from llm_adapters_lab.models.random_models import TINY
from llm_adapters_lab.models.spec import PACKAGED
from llm_adapters_lab.runs.forecast.size import size_of
from llm_adapters_lab.runs.presets import expand
from llm_adapters_lab.runs.spec import RunSpec
from widgets.forms.adapter_info import NO_ADAPTER, adapter_choices, description, size_summary
from widgets.forms.cost_estimate import CostEstimate
from widgets.forms.form import Form, labelled
from widgets.forms.placement_grid import PlacementGrid, placement_of
from widgets.kit.elements import Collapsible, button, column, row, show_if
from widgets.kit.panel import Panel, errors_in, note

ELSEWHERE = ("data", "train", "eval")
"""Fields of a spec that other panels edit."""


class ModelPanel(Panel):
    """Controls for base, adapter, placement, and all fields of a spec outside data, training and evaluation.

    Attributes:
        base: the base model.
        kind: type of the adapter, or a preset.
        form: fields of the adapter; None for the bare base.
        at: the placement as text.
        grid: the placement as buttons.
        costs: time, and memory compared to that of this machine.
        other: dtype, quantisation and device of the weights, seed, and trust in repository code.
        errors: the message below each part: "base", "kind", "at", and "" for the whole.
    """

    def __init__(self, spec: RunSpec | None = None, root: str | Path = "runs") -> None:
        """Build the panel around a spec; its data, training and evaluation are kept for other panels to edit."""
        super().__init__()
        self.costs = CostEstimate(root)
        self._rest = RunSpec()
        self._spec: RunSpec | None = None
        self._entry: Entry | None = None
        self._places: dict[str, str] = {}
        self._forms: dict[str, Form[Any]] = {}
        self._cleared = False  # the last site of the grid has been deselected
        self.form: Form[Any] | None = None
        self._build()
        for box in (self.base, self.at, self.everything):
            box.observe(self._changed, "value")
        self.kind.observe(self._kind_changed, "value")
        self.other.observe(self._changed)
        self.spec = spec or RunSpec()

    def _build(self) -> None:
        hint = "or a hub id, a folder, a .gguf file"
        self.base = labelled(
            W.Combobox,
            "base",
            options=[*PACKAGED, *(f"tiny:{family}" for family in TINY)],
            ensure_option=False,
            continuous_update=False,
            placeholder=hint,
            tooltip=f"{', '.join(PACKAGED)}, tiny:family, {hint}",
        )
        self.kind = labelled(W.Dropdown, "adapter", options=adapter_choices())
        self.at = labelled(W.Text, "placement", continuous_update=False)
        self.reset = button("Reset to default", "The default placement of this adapter", click=self._reset)
        self.everything = W.Checkbox(description="show module inputs and sublayers", indent=False)
        self.grid = PlacementGrid(self._clicked)
        self.other: Form[RunSpec] = Form(RunSpec, skip=("base", "adapter", *ELSEWHERE))
        self.about, self.model, self.cost, self.help = (W.HTML() for _ in range(4))
        self.errors = {name: W.HTML() for name in ("base", "kind", "at", "")}
        self.fields = W.VBox()
        below = [self.help, self.errors["at"], row(self.everything, self.reset), self.grid.widget]
        self.place = W.VBox([self.at, column(*below, css="lab-below")])
        self.more = Collapsible("Weights, seed, repository code", self.other.widget)
        base = [self.base, column(self.model, self.errors["base"], css="lab-below")]
        kind = [self.kind, column(self.about, self.errors["kind"], css="lab-below"), self.fields]
        rest = [self.more.widget, self.cost, self.costs.widget, self.errors[""]]
        self.widget = W.VBox([*base, *kind, self.place, *rest])

    @property
    def spec(self) -> RunSpec | None:
        """The spec, or None while it is invalid."""
        return self._spec

    @spec.setter
    def spec(self, spec: RunSpec) -> None:
        self._rest = spec
        with self.silently():
            self.base.value = spec.base
            self.kind.options = adapter_choices()  # one may have been registered since
            self.kind.value = spec.adapter.type if spec.adapter else NO_ADAPTER
            self._take_form()
            if self.form is not None and spec.adapter:
                self.form.value = spec.adapter
            self.at.value, self._cleared = spec.adapter.at if spec.adapter else "", False
            self.other.value = spec
        self._changed()

    def _kind_changed(self, change: Any) -> None:
        """Show the fields and placement of another type, as they were left or with their defaults."""
        if self.quiet:
            return
        self._cleared, name = False, self.kind.value
        with self.silently(), errors_in(self.errors["kind"]):
            self._places[change["old"]] = self.at.value
            self._take_form()
            self.at.value = self._places.get(name, str(expand({"type": name}).get("at", "")) if name else "")
        self._changed()

    def _take_form(self) -> None:
        name, self.form, self._entry = self.kind.value, None, None
        if name:
            given = expand({"type": name})
            self._entry = get_adapter(given["type"])
            if name not in self._forms:
                self._forms[name] = Form(self._entry.config, given, skip=("type", "at"), prefix="adapter.")
                self._forms[name].observe(self._changed)
            self.form = self._forms[name]
        self.fields.children = (self.form.widget,) if self.form else ()
        self.about.value = description(name)

    def _clicked(self) -> None:
        """Write the placement that was clicked in the grid as text."""
        self._cleared = not self.grid.selected
        with self.silently(), errors_in(self.errors["at"]):
            self.at.value = placement_of(self.grid.selected, self._blueprint().anatomy)
        self._changed()

    def _reset(self, _: Any) -> None:
        with self.silently():
            self._cleared, self.at.value = False, ""
        self._changed()

    def _blueprint(self) -> Blueprint:
        spec = self.other.value or RunSpec()
        return blueprint(self.base.value.strip(), *spec.base_parts[1:])

    def _changed(self, change: Any = None) -> None:
        if self.quiet:
            return
        if isinstance(change, dict) and change.get("owner") is self.at:
            self._cleared = False
        for line in self.errors.values():
            line.value = ""
        self._spec, self.cost.value = None, ""
        self.costs.show(None)
        with errors_in(self.errors[""]):
            self._compose()
        for observer in self._observers:
            with errors_in(self.errors[""]):
                observer(self)

    def _compose(self) -> None:
        """Make the spec if every part is valid, or show an error below each part that is not."""
        entry, anatomy = self._entry, self._check_base()
        placed = self._check_place(anatomy, entry)
        other, config = self.other.value, self.form.value if self.form else None
        if other is None:
            self.more.button.value = True  # its messages must not be hidden
        if anatomy is None or not placed or other is None or (self.form and config is None):
            self.cost.value = note("The spec is not valid yet: see the messages marked ✗ above.")
            return
        kept = {name: getattr(self._rest, name) for name in ELSEWHERE}
        mine = {name: getattr(other, name) for name in self.other.controls}
        at = self.at.value.strip() if entry and entry.placed else ""
        adapter = {**config.model_dump(), "at": at} if config else None
        spec = RunSpec.parse({**kept, **mine, "base": self.base.value.strip(), "adapter": adapter})
        plain = spec.quantization == "none"
        dtype = str(pick_dtype(spec.dtype)).removeprefix("torch.") if plain else spec.quantization
        self.cost.value = size_summary(size_of(spec), dtype)
        self.costs.show(spec)
        self._spec = spec

    def _check_base(self) -> Anatomy | None:
        name, anatomy = self.base.value.strip(), None
        self.model.value = note(PACKAGED.get(name, ""))
        with errors_in(self.errors["base"]):
            if not name:
                raise BadSpec("Enter a base: one from the list, a hub id, a folder or a .gguf file.")
            anatomy = self._blueprint().anatomy
            size = f"{len(anatomy.layers)} layers, width {anatomy.hidden}; sites: {_sites(anatomy)}"
            size += f". {anatomy.remark}" if anatomy.remark else ""
            self.model.value = note(f"{PACKAGED[name]}. {size}" if name in PACKAGED else size)
        return anatomy

    def _check_place(self, anatomy: Anatomy | None, entry: Entry | None) -> bool:
        """Draw the grid for the text; return whether the adapter can be placed there."""
        show_if(entry and entry.placed, self.place)
        if entry is None or not entry.placed:
            self.grid.clear()
            return True
        self.at.placeholder = entry.at
        self.help.value = note(f"e.g. q,v or attn+mlp or down@0-7; by default {entry.at}")
        at, level, everything = self.at.value.strip() or entry.at, entry.cls.level, self.everything.value
        if anatomy is None:
            self.grid.clear()
        placed = False
        with errors_in(self.errors["at"]):
            placement.parse(at)
            if anatomy is None:
                return False
            sites = () if self._cleared else placement.sites(anatomy, at, level)
            self.grid.show(anatomy, level, sites, everything=everything)
            if self._cleared:
                raise BadSpec("No site is selected. Click a button of the grid, or Reset to default.")
            entry.cls.sites(anatomy, self._blueprint().skeleton, at)
            placed = True
        return placed


def _sites(anatomy: Anatomy) -> str:
    """Return the roles of a model by sublayer, such as ``attn (q, k, v, o), mlp (gate, up, down)``."""
    parts: dict[str, dict[str, None]] = {}
    for site in anatomy.projections:
        role = site.role.removeprefix(f"{site.sublayer}.").removeprefix(ENCODER)
        parts.setdefault(site.sublayer, {})[role] = None
    return ", ".join(part if [part] == [*roles] else f"{part} ({', '.join(roles)})" for part, roles in parts.items())
