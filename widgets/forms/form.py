"""A form generated from a pydantic config: types choose the controls, descriptions become the help texts.

The form has no rules of its own: the config validates the values of the controls. Its messages, the same as on the
command line, appear below the fields.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ipywidgets as W
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llm_adapters_lab.config import bounds, faults, parse, read_yaml
from llm_adapters_lab.errors import BadSpec
from widgets.kit.elements import column
from widgets.kit.panel import Panel, error_text, message, note

M = TypeVar("M", bound=BaseModel)
NAME_WIDTH = "var(--lab-name-width, 150px)"
"""Width of the labels. On a narrow page the stylesheet sets it to 0 and puts the labels above."""
LONG = ("system",)
"""Names of the fields whose texts may have several lines."""
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass
class Control:
    """The control of a field.

    Attributes:
        widget: the whole control.
        entry: the part of it that holds the `value`.
        decode: from that value to plain data. Never raises; the config validates.
        encode: the inverse of `decode`.
    """

    widget: Any
    entry: Any
    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any]

    def read(self) -> Any:
        """Return the value as plain data, valid or not."""
        return self.decode(self.entry.value)

    def write(self, value: Any) -> None:
        """Show a value."""
        self.entry.value = self.encode(value)


class Form(Panel, Generic[M]):
    """Controls for the fields of a config.

    Attributes:
        model: the config's class.
        controls: by field; fields with a single possible value have none.
        errors: the error message below each field.
        problem: the error message below the form, for faults that concern no single field.
    """

    def __init__(
        self,
        model: type[M],
        value: M | Mapping[str, Any] | None = None,
        skip: Collection[str] = (),
        *,
        offers: Mapping[str, Sequence[str]] | None = None,
        prefix: str = "",
    ) -> None:
        """Build the controls.

        Args:
            model: a pydantic model.
            value: the initial value, as a config or some of its fields; the others have their defaults.
            skip: fields without a control; they keep their value.
            offers: suggested values, by field.
            prefix: of the field names in messages, e.g. "adapter.".
        """
        super().__init__()
        self.model, self.prefix = model, prefix
        self.controls: dict[str, Control] = {}
        self.errors: dict[str, Any] = {}
        self._kept: dict[str, Any] = {}
        self._value: M | None = None
        rows = []
        # Nested configs are rarely edited, so they come last.
        for name, field in sorted(model.model_fields.items(), key=lambda item: _is_nested(item[1])):
            if only := _constant(field):
                self._kept[name] = only[0]
            elif name not in skip:
                made = self.controls[name] = control(name, field, (offers or {}).get(name, ()))
                made.entry.observe(self._changed, "value")
                self.errors[name] = W.HTML()
                rows += [made.widget, column(W.HTML(note(_help(field))), self.errors[name], css="lab-below")]
        self.widget = W.VBox([*rows, column(self.problem, css="lab-below")])
        self.value = value

    @property
    def fields(self) -> dict[str, Any]:
        """The values in the controls as plain data, valid or not."""
        return {name: made.read() for name, made in self.controls.items()}

    @property
    def value(self) -> M | None:
        """The config, or None while it is invalid; set to a config, some of its fields, or None for the defaults."""
        return self._value

    @value.setter
    def value(self, value: M | Mapping[str, Any] | None) -> None:
        fields = self.model.model_fields
        given = {name: getattr(value, name) for name in fields} if isinstance(value, BaseModel) else dict(value or {})
        if unknown := set(given) - set(fields):
            parse(self.model, {name: given[name] for name in unknown}, self.prefix)
        with self.silently():
            for name, field in fields.items():
                if name in self.controls:
                    default = None if field.is_required() else field.get_default(call_default_factory=True)
                    self.controls[name].write(given.get(name, default))
                elif name in given and not _constant(field):
                    self._kept[name] = given[name]
        self._changed()

    def _changed(self, change: Any = None) -> None:
        if self.quiet:
            return
        found = self._validate()
        for name, line in self.errors.items():
            line.value = message("\n".join(text for place, text in found if place == name))
        rest = [text for place, text in found if place not in self.errors]
        for observer in self._observers:
            try:
                observer(self)
            except Exception as error:  # a notebook does not show exceptions of callbacks
                rest.append(error_text(error))
        self.problem.value = message("\n".join(rest))

    def _validate(self) -> list[tuple[str, str]]:
        """Set the value, and return the errors as (field, message) pairs."""
        given, self._value = {**self._kept, **self.fields}, None
        try:
            self._value = parse(self.model, given, self.prefix)
        except BadSpec as error:
            return faults(self.model, given, self.prefix) or [("", str(error))]
        except Exception as error:  # validators of a third-party config may raise anything
            return [("", error_text(error))]
        return []


def labelled(kind: Any, label: str, **traits: Any) -> Any:
    """Return a control whose label is aligned with the others of a form."""
    return kind(description=label, style={"description_width": NAME_WIDTH}, layout=W.Layout(width="440px"), **traits)


def control(name: str, field: FieldInfo, offers: Sequence[str] = ()) -> Control:
    """Return the control for a field; `offers` are suggested values for free text."""
    kinds, optional = _kinds(field.annotation)
    only, tip = kinds[0] if len(kinds) == 1 else None, _help(field)
    if only is bool and not optional:
        box = W.Checkbox(description=name, tooltip=tip, indent=False).add_class("lab-below")
        return Control(box, box, bool, bool)
    if only is not None and (_is_literal(only) or only is bool):
        return _dropdown(name, tip, [True, False] if only is bool else typing.get_args(only), optional)
    words = [str(v) for kind in kinds if _is_literal(kind) for v in typing.get_args(kind)]
    numbers = [kind for kind in kinds if kind in (int, float)]
    if numbers and all(kind in (int, float) or _is_literal(kind) for kind in kinds):
        return _number(name, tip, numbers[0], bounds(field.metadata), words, optional)
    if only is str:
        return _words(name, tip, offers, optional)
    if only is not None and typing.get_origin(only) in (tuple, list) and typing.get_args(only)[0] is str:
        return _names(name, tip, offers, optional)
    return _yaml(name, tip)


def _kinds(annotation: Any) -> tuple[list[Any], bool]:
    """Return the members of a union without None, and whether None was among them."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    members = list(typing.get_args(annotation)) if union else [annotation]
    return [m for m in members if m is not type(None)], type(None) in members


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal


def _constant(field: FieldInfo) -> tuple[Any, ...]:
    """Return the only value a field allows as a tuple of one; an empty tuple if there is a choice."""
    kinds, optional = _kinds(field.annotation)
    values = typing.get_args(kinds[0]) if len(kinds) == 1 and _is_literal(kinds[0]) else ()
    return values if len(values) == 1 and not optional else ()


def _help(field: FieldInfo) -> str:
    """Return the description and the bounds of a field in one line."""
    words = field.description or ""
    limits = ", ".join(f"{_BOUNDS[name]} {value:,}" for name, value in bounds(field.metadata).items())
    optional = "optional" if _kinds(field.annotation)[1] and "default" not in words else ""
    return "; ".join(filter(None, (words, limits, optional)))


def _is_nested(field: FieldInfo) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in _kinds(field.annotation)[0])


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


def _text(name: str, tip: str, offers: Sequence[str] = (), **traits: Any) -> Any:
    """Return a text field, with suggestions if there are any."""
    if offers:
        traits |= {"options": list(offers), "ensure_option": False}
    return labelled(W.Combobox if offers else W.Text, name, tooltip=tip, continuous_update=False, **traits)


def _words(name: str, tip: str, offers: Sequence[str], optional: bool) -> Control:
    """Return a text field. A single line, where a browser drops line breaks, has a stand-in for a longer text."""
    kept: dict[str, str] = {}

    def encode(value: Any) -> str:
        kept.clear()
        text = shown = _shown(value)
        if "\n" in text:
            shown = text if name in LONG else f"(text of {len(text.splitlines())} lines)"
            kept[shown] = text
        return shown

    if name in LONG:
        box = labelled(W.Textarea, name, tooltip=tip, continuous_update=False, rows=2)
    else:
        box = _text(name, tip, offers)
    empty = None if optional else ""
    return Control(box, box, lambda text: kept.get(text, text.strip()) or empty, encode)


def _dropdown(name: str, tip: str, values: Sequence[Any], optional: bool) -> Control:
    options = [("(default)", None)] * optional + [(str(value), value) for value in values]
    box, known = labelled(W.Dropdown, name, tooltip=tip, options=options), [value for _, value in options]
    return Control(box, box, lambda value: value, lambda value: value if value in known else known[0])


def _number(name: str, tip: str, kind: type, limits: dict[str, float], words: list[str], optional: bool) -> Control:
    def decode(text: str) -> Any:
        text = text.strip()
        if not text and optional:
            return None
        for read in (int, float):
            try:
                return read(text)
            except ValueError:
                continue
        return text

    box = _text(name, tip, words)
    slider = None if optional or words else _slider(kind, limits)
    if slider is None:
        return Control(box, box, decode, _shown)
    _link(box, slider, kind, decode)
    return Control(W.HBox([box, slider]), box, decode, _shown)


def _slider(kind: type, limits: dict[str, float]) -> Any:
    """Return a slider if the bounds are narrow enough: logarithmic over decades or powers of two."""
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    look = {"readout": False, "continuous_update": False, "layout": W.Layout(width="160px")}
    if low is None or high is None:
        return None
    if kind is int and low >= 1 and high >= 64:
        first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
        return W.FloatLogSlider(value=2**first, base=2, step=1, min=first, max=last, **look)
    if kind is float and low == 0 and high <= 1:
        return W.FloatSlider(value=0, min=0, max=high if "le" in limits else high - 0.05, step=0.05, **look)
    if kind is float and "gt" in limits and low == 0 and high <= 100:
        return W.FloatLogSlider(value=1e-3, base=10, min=-6, max=math.log10(high), step=0.1, **look)
    return None


def _link(box: Any, slider: Any, kind: type, decode: Callable[[str], Any]) -> None:
    """Keep slider and text in sync. A text out of bounds is left as it is, so that its message can be read."""
    busy = False

    def moved(change: Any) -> None:
        if not busy:
            box.value = str(round(change["new"])) if kind is int else f"{change['new']:.3g}"

    def typed(change: Any) -> None:
        nonlocal busy
        value = decode(change["new"])
        if isinstance(value, int | float) and math.isfinite(value):
            log = isinstance(slider, W.FloatLogSlider)
            low, high = (slider.base**slider.min, slider.base**slider.max) if log else (slider.min, slider.max)
            busy = True
            try:
                slider.value = min(max(value, low), high)
            finally:
                busy = False

    slider.observe(moved, "value")
    box.observe(typed, "value")


def _names(name: str, tip: str, offers: Sequence[str], optional: bool) -> Control:
    """Return a text field for comma-separated names, followed by a list of names to add."""

    def decode(text: str) -> Any:
        names = [name.strip() for name in text.split(",") if name.strip()]
        return names if names or not optional else None

    box = _text(name, tip, placeholder="comma-separated names")
    known = Control(box, box, decode, lambda value: ", ".join(map(str, value or ())))
    if offers:
        options = [("add …", ""), *((offer, offer) for offer in offers)]
        adder = W.Dropdown(options=options, tooltip=f"add to {name}", layout=W.Layout(width="160px"))

        def add(change: Any) -> None:
            if change["new"]:
                known.write(dict.fromkeys([*(known.read() or []), change["new"]]))
                adder.value = ""

        adder.observe(add, "value")
        known.widget = W.HBox([box, adder])
    return known


def _yaml(name: str, tip: str) -> Control:
    """Return a text field that is read as YAML, for annotations without a control of their own."""

    def decode(text: str) -> Any:
        try:
            return read_yaml(text)
        except ValueError:
            return text

    def encode(value: Any) -> str:
        def dumped(part: Any) -> Any:
            return part.model_dump(mode="json", exclude_defaults=True) if isinstance(part, BaseModel) else part

        plain = [dumped(part) for part in value] if isinstance(value, tuple | set | frozenset) else dumped(value)
        return "" if value is None else yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()

    box = _text(name, tip)
    return Control(box, box, decode, encode)
