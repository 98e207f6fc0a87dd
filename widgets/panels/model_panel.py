"""Choose base, adapter and placement, with what it costs: a `RunSpec` to run, made by clicking."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as W

from llm_adapters_lab.core import placement
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.registry import Entry, get_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models.blueprint import outline
from llm_adapters_lab.models.loading import PACKAGED, pick_dtype
from llm_adapters_lab.models.random_models import TINY
from llm_adapters_lab.runs.forecast.size import size_of
from llm_adapters_lab.runs.presets import expand
from llm_adapters_lab.runs.spec import RunSpec
from widgets.forms.adapter_info import BARE, about, kinds, sizes
from widgets.forms.controls import NAME_WIDTH, WIDTH
from widgets.forms.cost_estimate import Costs
from widgets.forms.form import Form
from widgets.forms.placement_grid import Grid, spell
from widgets.kit.collapsible import Fold
from widgets.kit.errors import message, note, why
from widgets.kit.panel import Panel

OTHER = ("base", "adapter", "data", "train", "eval")


class Choose(Panel):
    """Controls for base, adapter, placement and what else belongs to neither data nor training.

    Attributes:
        base: the base model.
        kind: type of the adapter, or a preset.
        form: fields of the adapter; None for the bare base.
        at: the placement as text.
        grid: the placement as buttons.
        costs: time, and memory against that of this machine.
        other: weights' dtype, quantisation and place, seed and trust in repository code.
        errors: the line under each part: "base", "kind", "at", and "" for the whole.
    """

    def __init__(self, spec: RunSpec | None = None, root: str | Path = "runs") -> None:
        """Build the panel.

        Args:
            spec: filled in; its data, training and scoring are kept.
            root: folder of all runs, which know how long they took.
        """
        super().__init__()
        self.costs = Costs(root)
        self._rest = RunSpec()
        self._spec: RunSpec | None = None
        self._entry: Entry | None = None
        self._places: dict[str, str] = {}
        self._forms: dict[str, Form[Any]] = {}
        self._quiet = self._none = False
        self.form: Form[Any] | None = None
        self._make()
        self._arrange()
        for box in (self.base, self.at, self.everything):
            box.observe(self._changed, "value")
        self.kind.observe(self._chosen, "value")
        self.usual.on_click(self._back_to_usual)
        self.other.observe(self._changed)
        self.spec = spec or RunSpec()

    def _make(self) -> None:
        shown = {"style": {"description_width": NAME_WIDTH}, "layout": {"width": WIDTH}}
        bases = [*PACKAGED, *(f"tiny:{family}" for family in TINY)]
        hint = "or a hub id, folder, .gguf file"
        self.base: Any = W.Combobox(
            **{"description": "base", "options": bases, "ensure_option": False, "continuous_update": False},
            **{"placeholder": hint, "tooltip": f"{', '.join(PACKAGED)}, tiny:family, {hint}", **shown},
        )
        self.kind: Any = W.Dropdown(description="adapter", options=kinds(), **shown)
        self.at: Any = W.Text(description="placement", continuous_update=False, **shown)
        self.usual: Any = W.Button(description="usual placement", tooltip="where this adapter usually sits")
        self.everything: Any = W.Checkbox(description="inputs and whole sublayers too", indent=False)
        self.grid = Grid(self._clicked)
        self.other: Form[RunSpec] = Form(RunSpec, skip=OTHER)
        self.about, self.model, self.cost, self.help = (W.HTML() for _ in range(4))
        self.errors: dict[str, Any] = {name: W.HTML() for name in ("base", "kind", "at", "")}

    def _arrange(self) -> None:
        inside = W.Layout(margin=f"0 0 6px calc({NAME_WIDTH} + 8px)")
        self.fields = W.VBox()
        buttons = W.HBox([self.everything, self.usual])
        below = [self.help, self.errors["at"], buttons, self.grid.widget]
        self.place = W.VBox([self.at, W.VBox(below, layout=inside)])
        self.more = Fold("Weights, seed, repository code", self.other.widget)
        parts = [self.base, W.VBox([self.model, self.errors["base"]], layout=inside)]
        parts += [self.kind, W.VBox([self.about, self.errors["kind"]], layout=inside), self.fields, self.place]
        self.widget: Any = W.VBox([*parts, self.more.widget, self.cost, self.costs.widget, self.errors[""]])

    @property
    def spec(self) -> RunSpec | None:
        """What is chosen, or None while something is wrong with it."""
        return self._spec

    @spec.setter
    def spec(self, spec: RunSpec) -> None:
        self._quiet, self._rest = True, spec
        try:
            self.base.value = spec.base
            self.kind.options = kinds()  # one may have been registered since
            self.kind.value = spec.adapter.type if spec.adapter else BARE
            self._take_form()
            if self.form is not None and spec.adapter:
                self.form.value = spec.adapter
            self.at.value, self._none = spec.adapter.at if spec.adapter else "", False
            self.other.value = spec
        finally:
            self._quiet = False
        self._changed(None)

    def _chosen(self, change: Any) -> None:
        """Another type: its own fields and placement, as they were left or as they usually are."""
        if self._quiet:
            return
        self._quiet, self._none = True, False
        name = self.kind.value
        try:
            self._places[change["old"]] = self.at.value
            self._take_form()
            self.at.value = self._places.get(name, str(expand({"type": name}).get("at", "")) if name else "")
        except Exception as error:
            self.errors["kind"].value = message(why(error))
        finally:
            self._quiet = False
        self._changed(None)

    def _take_form(self) -> None:
        name, self.form, self._entry = self.kind.value, None, None
        if name:
            given = expand({"type": name})
            self._entry = get_adapter(given["type"])
            if name not in self._forms:
                made = Form(self._entry.config, given, skip=("type", "at"), prefix="adapter.")
                made.observe(self._changed)
                self._forms[name] = made
            self.form = self._forms[name]
        self.fields.children = (self.form.widget,) if self.form else ()
        self.about.value = about(name)

    def _clicked(self) -> None:
        """A button of the grid was pressed: the text follows."""
        self._none = not self.grid.chosen
        self._quiet = True
        try:
            _, anatomy = outline(self.base.value.strip(), self._trusts())
            self.at.value = spell(self.grid.chosen, anatomy)
        except Exception as error:
            self.errors["at"].value = message(why(error))
        finally:
            self._quiet = False
        self._changed(None)

    def _back_to_usual(self, _: Any) -> None:
        self._quiet, self._none, self.at.value = True, False, ""
        self._quiet = False
        self._changed(None)

    def _trusts(self) -> bool:
        return bool(self.other.value and self.other.value.trust_remote_code)

    def _changed(self, change: Any) -> None:
        if self._quiet:
            return
        if isinstance(change, dict) and change.get("owner") is self.at:
            self._none = False
        for line in self.errors.values():
            line.value = ""
        self._spec, self.cost.value = None, ""
        self.costs.show(None)
        steps: list[Callable[[], object]] = [self._compose, *(partial(o, self) for o in self._observers)]
        for step in steps:
            try:
                step()
            except Exception as error:  # an exception in a callback is seen nowhere else
                self.errors[""].value = message(why(error))

    def _compose(self) -> None:
        """Make the spec if every part is right; else say under the part what is wrong."""
        entry = self._entry
        anatomy = self._look_at_base()
        placed = self._look_at_place(anatomy, entry)
        other, config = self.other.value, self.form.value if self.form else None
        if other is None:
            self.more.button.value = True  # or nobody sees what is wrong there
        if anatomy is None or not placed or other is None or (self.form and config is None):
            self.cost.value = note("There is nothing to run yet: see the messages marked ✗ above.")
            return
        kept = {name: getattr(self._rest, name) for name in ("data", "train", "eval")}
        at = self.at.value.strip() if entry and entry.placed else ""
        adapter = {**config.model_dump(), "at": at} if config else None
        mine = {name: getattr(other, name) for name in self.other.controls}
        spec = RunSpec.parse({**kept, **mine, "base": self.base.value.strip(), "adapter": adapter})
        self._count(spec)
        self.costs.show(spec)
        self._spec = spec

    def _look_at_base(self) -> Anatomy | None:
        name = self.base.value.strip()
        self.model.value = note(PACKAGED.get(name, ""))
        try:
            if not name:
                raise BadSpec("Name a base: one of the list, a hub id, a folder or a .gguf file.")
            _, anatomy = outline(name, self._trusts())
        except Exception as error:
            self.errors["base"].value = message(why(error))
            return None
        size_ = f"{len(anatomy.layers)} layers, width {anatomy.hidden}; its sites: {', '.join(anatomy.roles)}"
        self.model.value = note(f"{PACKAGED[name]}. {size_}" if name in PACKAGED else size_)
        return anatomy

    def _look_at_place(self, anatomy: Anatomy | None, entry: Entry | None) -> bool:
        """Draw the grid for the text; return whether the adapter can sit where it says."""
        whole = entry is None or not entry.placed
        self.place.layout.display = "none" if whole else "flex"
        if whole or entry is None:
            self.grid.clear()
            return True
        self.at.placeholder = entry.at
        self.help.value = note(f"e.g. q,v or attn+mlp or down@0-7; empty for the usual one, {entry.at}")
        text, level = self.at.value.strip(), entry.cls.level
        more = {"everything": self.everything.value}
        try:
            if anatomy is None:
                self.grid.clear()
                placement.parse(text or entry.at)
                return False
            if self._none:
                self.grid.show(anatomy, level, (), **more)
                raise BadSpec("No site is chosen. Press a button of the grid, or `usual placement`.")
            self.grid.show(anatomy, level, placement.sites(anatomy, text or entry.at, level), **more)
            model, _ = outline(self.base.value.strip(), self._trusts())
            entry.cls.sites(anatomy, model, text or entry.at)
        except Exception as error:
            self.errors["at"].value = message(why(error))
            return False
        return True

    def _count(self, spec: RunSpec) -> None:
        plain = spec.quantization == "none"
        dtype = str(pick_dtype(spec.dtype)).removeprefix("torch.") if plain else spec.quantization
        self.cost.value = sizes(size_of(spec), dtype)
