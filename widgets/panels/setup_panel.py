"""The place Setup: the draft on one screen, from the model to the evaluation."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ipywidgets as W

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.evaluation.spec import EvalSpec
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.presets import spec_presets
from llm_adapters_lab.runs.rows import training_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import spec_of
from llm_adapters_lab.tasks.registry import all_tasks
from llm_adapters_lab.tasks.spec import DataSpec
from llm_adapters_lab.training.batches import describe_steps
from llm_adapters_lab.training.spec import TrainSpec
from widgets.forms.form import Form
from widgets.forms.method_picker import counts_in
from widgets.forms.model_picker import ModelPicker
from widgets.kit.draft import Draft, make_draft
from widgets.kit.elements import Collapsible, FieldHelp, button, card, hide, row, show_if
from widgets.kit.panel import Panel, error_text, guarded, note, schedule
from widgets.kit.workspace import Workspace
from widgets.panels.data_card import DataCard
from widgets.panels.draft_bar import Fault
from widgets.panels.method_card import MethodCard, PlacementCard
from widgets.panels.spec_files import ExportPanel, UploadPanel

Level = Literal["full", "beginner"]
QUICK = "quickstart"
MOST = 100
"""Number of runs that are offered to copy, the newest ones."""
PARTS = ("base", "adapter", "data", "train", "eval")


class SetupPanel(Panel):
    """All fields of a spec; lists in them make a sweep.

    Attributes:
        draft: what Start would run; None while it is not valid.
        faults: why it is not.
        waiting: what it waits for, such as the look-up of a base; "" for nothing.
        model: the base.
        method: the adapter.
        place: the placement.
        data: training data.
        train: training.
        evaluation: evaluation.
        other: the fields of a spec outside these parts.
    """

    def __init__(
        self,
        workspace: Workspace | str | Path = "runs",
        spec: RunSpec | None = None,
        *,
        level: Level = "full",
        locked: Collection[str] = (),
    ) -> None:
        """Build the place.

        Args:
            workspace: what the places share, or the folder of all runs.
            spec: the initial spec.
            level: "beginner" shows six fields only.
            locked: dotted fields that cannot be changed, such as "base" or "train.epochs"; or parts, such as "eval".

        Raises:
            BadSpec: there is no such field to lock.
        """
        super().__init__()
        self.workspace, self.level = Workspace.of(workspace), level
        self.draft: Draft | None = None
        self.faults: list[Fault] = []
        self.waiting = ""
        self._parent: tuple[RunSpec, str] | None = None
        self._known: Blueprint | None = None
        self._counted: tuple[DataSpec, TrainSpec] | None = None
        self._method = ""
        self._rest = spec or RunSpec.load(QUICK)
        self._build()
        self.spec = self._rest
        self._lock(locked)
        if level == "beginner":
            self._simplify()

    @property
    def spec(self) -> RunSpec | None:
        """The spec of the draft, the first of several; None while it is not valid. Setting it fills all fields."""
        return self.draft.spec if self.draft else None

    @spec.setter
    def spec(self, spec: RunSpec) -> None:
        self._fill(spec, None)

    def copy(self, spec: RunSpec, name: str) -> None:
        """Fill all fields with the spec of a run of this name; what is changed from then on is told."""
        self._fill(spec, (spec, name))

    def _fill(self, spec: RunSpec, parent: tuple[RunSpec, str] | None) -> None:
        self._rest, self._parent = spec, parent
        with self.silently():
            self.other.value = spec
            self.model.value = spec.base
            self.method.config = spec.adapter
            self.place.set(spec.adapter.at if spec.adapter else "")
            self._method = self.method.kind.value
            self.data.value = spec.data
            self.train.value, self.evaluation.value = spec.train, spec.eval
        self._changed()

    def close(self) -> None:
        """Remove the place from the page."""
        self.data.close()
        super().close()

    def _build(self) -> None:
        scored = [name for name, task in all_tasks().items() if "test" in task.splits]
        self.model, self.method, self.place = ModelPicker(), MethodCard(), PlacementCard()
        self.data = DataCard(self.workspace.root)
        self.train = Form(
            TrainSpec,
            prefix="train.",
            skip=("pause_at", "rate_from"),
            first=("learning_rate", "batch", "max_steps", "epochs", "warmup"),
            lists=True,
            labels={"max_steps": "steps (at most)"},
        )
        self.evaluation = Form(
            EvalSpec, offers={"tasks": scored}, prefix="eval.", first=("tasks", "rows", "batch", "shots"), lists=True
        )
        self.other: Form[RunSpec] = Form(RunSpec, skip=PARTS, first=("seed",), lists=True, labels={"seed": "seeds"})
        self.about, self.steps = W.HTML(), W.HTML()
        self.weights = Collapsible("Weights, device, new tokens", self.other.others)
        self.other.more = self.weights  # opens on faults
        seed = self.other.boxes["seed"]
        self.train.essentials.children = [*self.train.essentials.children, seed]
        self.cards = {
            "base": card("Model", self.model.widget, self.about, self.weights.widget, self.other.problem),
            "adapter": self.method.widget,
            "placement": self.place.widget,
            "data": self.data.widget,
            "train": card("Training", self.train.widget, self.steps),
            "eval": card("Evaluation", self.evaluation.widget),
        }
        left = W.VBox([self.cards[name] for name in ("base", "adapter", "placement")]).add_class("lab-stack")
        right = W.VBox([self.cards[name] for name in ("data", "train", "eval")]).add_class("lab-stack")
        self.columns = W.Box([left, right]).add_class("lab-two")
        self.search = W.Text(placeholder="Find a setting …", tooltip="Find a setting by name or description")
        self.search.add_class("lab-search")
        self.search.observe(self._searched, "value")
        self.presets, self.export, self.upload = self._starts(), ExportPanel(), UploadPanel(self._loaded)
        self.file = Collapsible("Load a spec from a file", self.upload.widget)
        self.code = Collapsible("Draft as code", self.export.widget)
        self.help = FieldHelp(layout={"display": "none"})
        folds = W.VBox([self.code.widget, self.file.widget, self.help])
        self.widget = W.VBox([self.presets, self.problem, self.columns, self.data.page, folds]).add_class("lab-setup")
        self.method.observe(self._other_method)
        for panel in (self.model, self.method, self.place, self.data, self.train, self.evaluation, self.other):
            panel.observe(self._changed)

    def _starts(self) -> Any:
        """Return the row of presets and other specs to start from, with the search."""
        names = spec_presets()
        self.shortcuts = [self._card(name) for name in sorted(names, key=lambda name: name != QUICK) if "/" not in name]
        rest = [(name.partition("/")[2], name) for name in names if "/" in name]
        self.preset = W.Dropdown(options=[("The paper's runs …", ""), *rest], tooltip="Start from a run of the paper")
        self.from_run = W.Dropdown(options=[("Copy a run …", "")], tooltip="Start from the spec of a run")
        self.preset.observe(lambda change: change["new"] and self._preset(change["new"]), "value")
        self.from_run.observe(lambda change: change["new"] and self._copy_run(change["new"]), "value")
        return row(*self.shortcuts, self.preset, self.from_run, self.search).add_class("lab-starts")

    def _card(self, name: str) -> Any:
        """Return a preset as a card: its name, and what it sets."""
        preset = spec_presets()[name]
        title = preset.idea.partition(":")[0]
        title = title if title.casefold() == name else name.capitalize()
        about = f"{preset.fields['adapter']['type']} · {preset.fields['base']}"
        made = button(f"{title}\n{about}", preset.idea, click=lambda _: self._preset(name))
        return made.add_class("lab-preset")

    def opened(self) -> None:
        """Offer the runs that a draft can be a copy of."""
        runs, names = self.workspace.runs.entries, self.workspace.runs.names
        options = [
            ("Copy a run …", ""),
            *((names[run_id], run_id) for run_id in list(runs)[:MOST] if not runs[run_id].fault),
        ]
        if tuple(options) != tuple(self.from_run.options):
            with self.silently():
                self.from_run.options = options
                self.from_run.value = ""

    @guarded
    def _preset(self, name: str) -> None:
        if not self.quiet:
            self._fill(RunSpec.load(name), None)
            with self.silently():
                self.preset.value = ""

    @guarded
    def _copy_run(self, run_id: str) -> None:
        if not self.quiet:
            self.copy(spec_of(run_id, self.workspace.root), self.workspace.runs.names.get(run_id, run_id))
            with self.silently():
                self.from_run.value = ""

    def _loaded(self, spec: RunSpec) -> None:
        self._fill(spec, None)

    def _other_method(self, _: Any = None) -> None:
        """Show the placement that another method comes with."""
        if not self.quiet and self.method.kind.value != self._method:
            self.place.set(self.method.default_placement())
        self._method = self.method.kind.value

    def _searched(self, change: Any) -> None:
        text = change["new"]
        forms: dict[str, Form[Any]] = {"train": self.train, "eval": self.evaluation, "base": self.other}
        forms |= {"data": self.data.form} | ({"adapter": self.method.form} if self.method.form else {})
        found = {name: form.find(text) for name, form in forms.items()}
        for name, shown in self.cards.items():
            show_if(not text.strip() or found.get(name), shown)

    def _changed(self, _: Any = None) -> None:
        """Make the draft of the values in all fields, or list why there is none."""
        if self.quiet:
            return
        self.draft, self.faults, self.waiting = None, [], ""
        try:
            self._compose()
        except LabError as error:
            self.faults.append(Fault(str(error)))
        except Exception as error:
            self.faults.append(Fault(error_text(error)))
        if self.spec is None or self.spec.adapter is None:
            self.steps.value, self._counted = "", None
        elif self._counted != (key := (self.spec.data, self.spec.train)):
            self._counted = key
            schedule(partial(self._count_steps, *key))
        self._show_help()
        self.export.show(self.spec, self.draft)
        if self.spec is not None:
            self.data.use_context(self.spec)
        self._notify()

    def _show_help(self) -> None:
        """Give the page the help of all fields."""
        forms: list[Form[Any]] = [self.data.form, self.train, self.evaluation, self.other]
        forms += [self.method.form] if self.method.form else []
        texts = {"adapter-at": self.place.text.tooltip}
        for form in forms:
            texts |= form.helps
        if texts != self.help.texts:
            self.help.texts = texts

    def _compose(self) -> None:
        other, plan = self.other.value, self._plan()
        if self.model.pending:
            self.waiting = f"looking for {self.model.value} …"
        elif self.model.error:
            self.faults.append(Fault(self.model.error, "base"))
        if self.method.fault:
            self.faults.append(Fault(self.method.fault, "adapter.type"))
        placed = self.place.check(plan, self.method.entry)
        forms: list[tuple[str, Form[Any]]] = [("adapter.", self.method.form)] if self.method.form else []
        forms += [("data.", self.data.form), ("train.", self.train), ("eval.", self.evaluation), ("", self.other)]
        for prefix, form in forms:
            self.faults += [Fault(text, f"{prefix}{field}" if field else "") for field, text in form.faults]
        if self.place.fault:
            self.faults.append(Fault(self.place.fault, "adapter.at"))
        data, train, score = self.data.form.value, self.train.value, self.evaluation.value
        if self.faults or self.waiting or other is None or not (data and train and score) or not placed:
            return
        at = self.place.values
        own = {name: getattr(other, name) for name in self.other.controls}
        config, entry = self.method.config, self.method.entry
        adapter = {**config.model_dump(), "at": at[0] if entry and entry.placed else ""} if config else None
        fields = {"data": data, "train": train, "eval": score, "base": self.model.value.strip(), "adapter": adapter}
        spec = RunSpec.parse({**own, **fields})
        varied = {f"{prefix}{name}": values for prefix, form in forms for name, values in form.varied.items()}
        if entry and entry.placed and len(at) > 1:
            varied["adapter.at"] = at
        tied = (
            {f"adapter.{k}": (f"adapter.{o}", f) for k, (o, f) in self.method.form.tied.items()}
            if self.method.form
            else {}
        )
        self.draft = make_draft(spec, varied, tied, *(self._parent or ()))

    async def _count_steps(self, data: DataSpec, plan: TrainSpec) -> None:
        """Say how many steps the draft will really do; faults of the rows are told where they are read."""
        words = ""
        with suppress(LabError):
            words = describe_steps(plan, await asyncio.to_thread(training_rows, data))
        if self._counted == (data, plan):
            self.steps.value = note(words)

    def _plan(self) -> Blueprint | None:
        """Return the blueprint of the base with the chosen weights, or None while there is none."""
        if other := self.other.value:
            with self.silently():
                self.model.use(*other.base_parts[1:])
        plan = self.model.blueprint
        if plan is not self._known:
            self._known, self.method.kind.counts = plan, counts_in(plan) if plan else None
            self.about.value = note(_facts(plan)) if plan else ""
        return plan

    def _lock(self, fields: Collection[str]) -> None:
        for field in fields:
            part, _, name = field.partition(".")
            forms: dict[str, Form[Any]] = {"data": self.data.form, "train": self.train, "eval": self.evaluation}
            if self.method.form:
                forms["adapter"] = self.method.form
            if field == "base":
                self.model.disabled = True
            elif field == "adapter.type":
                self.method.kind.disabled = True
            elif field in ("adapter.at", "placement"):
                self.place.text.disabled = True
            elif part in forms and (not name or name in forms[part].controls):
                forms[part].lock([name] if name else list(forms[part].controls))
            elif field in self.other.controls:
                self.other.lock([field])
            else:
                raise BadSpec(f"There is no field {field!r} to lock. Name one as in a spec, such as train.epochs.")

    def _simplify(self) -> None:
        """Show six fields: base, method, its size, data, steps and learning rate."""
        for name in ("placement", "eval"):
            show_if(False, self.cards[name])
        for form, kept in ((self.train, ("learning_rate", "max_steps")), (self.data.form, ("task",))):
            for name, box in form.boxes.items():
                hide(name not in kept, box)
        hide(True, self.other.boxes["seed"])
        show_if(False, self.weights.widget, self.code.widget, self.file.widget, self.search)


def _facts(plan: Blueprint) -> str:
    anatomy = plan.anatomy
    count = sum(p.numel() for p in plan.skeleton.parameters())
    text = f"{count:,} parameters · {len(anatomy.layers)} layers · width {anatomy.hidden}"
    return f"{text}. {anatomy.remark}" if anatomy.remark else text
