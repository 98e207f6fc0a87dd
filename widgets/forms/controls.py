"""From a config's field to the control that edits it: one kind of control for each kind of annotation."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets as W
import yaml
from pydantic import BaseModel

from llm_adapters_lab.config import read_yaml

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

NAME_WIDTH = "var(--lab-name-width, 150px)"
"""Of the names before controls; a narrow page sets the variable to 0 and puts them above."""
WIDTH = "440px"
"""Of a control with its name."""
NONE = "(default)"
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass
class Control:
    """What edits one field.

    Attributes:
        widget: what is shown.
        entry: the part of it whose `value` counts.
        decode: from the value of `entry` to plain data, never raising; validation is the config's business.
        encode: the way back.
    """

    widget: Any
    entry: Any
    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any]

    def read(self) -> Any:
        """Return what stands in the control as plain data, valid or not."""
        return self.decode(self.entry.value)

    def write(self, value: Any) -> None:
        """Show a value."""
        self.entry.value = self.encode(value)


def constant(field: FieldInfo) -> tuple[Any, ...]:
    """Return the only value a field allows as a tuple of one; empty where there is a choice."""
    kinds, optional = _kinds(field.annotation)
    values = typing.get_args(kinds[0]) if len(kinds) == 1 and _is_literal(kinds[0]) else ()
    return values if len(values) == 1 and not optional else ()


def is_group(field: FieldInfo) -> bool:
    """Return whether a field holds fields of its own."""
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in _kinds(field.annotation)[0])


def limits(field: FieldInfo) -> dict[str, float]:
    """Return the bounds of a field, such as {"ge": 1, "le": 4096}."""
    return {a: value for m in field.metadata for a in _BOUNDS if (value := getattr(m, a, None)) is not None}


def help_text(field: FieldInfo) -> str:
    """Return description and bounds in a line."""
    bounds = ", ".join(f"{_BOUNDS[name]} {value:g}" for name, value in limits(field).items())
    optional = "empty: none given" if _kinds(field.annotation)[1] and "default" not in (field.description or "") else ""
    return "; ".join(part for part in (field.description or "", bounds, optional) if part)


def control(name: str, field: FieldInfo, offers: Sequence[str] = ()) -> Control:
    """Return the control for a field.

    Args:
        name: of the field.
        field: of the config.
        offers: values to choose from beside free text.
    """
    kinds, optional = _kinds(field.annotation)
    only = kinds[0] if len(kinds) == 1 else None
    shown: dict[str, Any] = {
        "description": name,
        "tooltip": help_text(field),
        "style": {"description_width": NAME_WIDTH},
    }
    shown["layout"] = W.Layout(width=WIDTH)
    if only is bool and not optional:
        box = W.Checkbox(indent=False, **{**shown, "layout": W.Layout(margin=f"0 0 0 calc({NAME_WIDTH} + 8px)")})
        return Control(box, box, bool, bool)
    if only is not None and (_is_literal(only) or only is bool):
        return _dropdown(shown, [True, False] if only is bool else typing.get_args(only), optional)
    words = [str(v) for kind in kinds if _is_literal(kind) for v in typing.get_args(kind)]
    numbers = [kind for kind in kinds if kind in (int, float)]
    if numbers and all(kind in (int, float) or _is_literal(kind) for kind in kinds):
        return _number(shown, numbers[0], limits(field), words, optional)
    if only is str:
        return _text(shown, offers, optional)
    if only is not None and typing.get_origin(only) in (tuple, list) and typing.get_args(only)[0] is str:
        return _names(shown, offers, optional)
    return _anything(shown)


def _kinds(annotation: Any) -> tuple[list[Any], bool]:
    """Return the members of a union without None, and whether None was among them."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    members = list(typing.get_args(annotation)) if union else [annotation]
    return [m for m in members if m is not type(None)], type(None) in members


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal


def _dropdown(shown: dict[str, Any], values: Sequence[Any], optional: bool) -> Control:
    options = [(str(value), value) for value in values]
    box = W.Dropdown(options=[(NONE, None), *options] if optional else options, **shown)
    known = [value for _, value in box.options]
    return Control(box, box, lambda value: value, lambda value: value if value in known else known[0])


def _number(shown: dict[str, Any], kind: type, bounds: dict[str, float], words: list[str], optional: bool) -> Control:
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

    make = W.Combobox if words else W.Text
    more = {"options": words, "ensure_option": False} if words else {}
    box = make(continuous_update=False, **more, **shown)
    slider = None if optional or words else _slider(kind, bounds)
    if slider is not None:
        _tie(box, slider, kind, decode)
    return Control(W.HBox([box, slider]) if slider else box, box, decode, lambda v: "" if v is None else str(v))


def _slider(kind: type, bounds: dict[str, float]) -> Any:
    """Return a slider where the bounds say how far it may go: logarithmic over decades or powers of two."""
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    look = {"readout": False, "continuous_update": False, "layout": W.Layout(width="160px")}
    if low is None or high is None:
        return None
    if kind is int and low >= 1 and high >= 64:
        ends = {"min": math.ceil(math.log2(low)), "max": math.floor(math.log2(high))}
        return W.FloatLogSlider(value=2 ** ends["min"], base=2, step=1, **ends, **look)
    if kind is float and low == 0 and high <= 1:
        return W.FloatSlider(value=0, min=0, max=high if "le" in bounds else high - 0.05, step=0.05, **look)
    if kind is float and "gt" in bounds and low == 0 and high <= 100:
        return W.FloatLogSlider(value=1e-3, base=10, min=-6, max=math.log10(high), step=0.1, **look)
    return None


def _tie(box: Any, slider: Any, kind: type, decode: Callable[[str], Any]) -> None:
    """Let slider and text follow each other; a text out of bounds stays, for its message to be read."""
    busy = [False]

    def moved(change: Any) -> None:
        if not busy[0]:
            box.value = str(round(change["new"])) if kind is int else f"{change['new']:.3g}"

    def typed(change: Any) -> None:
        value = decode(change["new"])
        if isinstance(value, int | float) and math.isfinite(value):
            log = isinstance(slider, W.FloatLogSlider)
            low, high = (slider.base**slider.min, slider.base**slider.max) if log else (slider.min, slider.max)
            busy[0] = True
            try:
                slider.value = min(max(value, low), high)
            finally:
                busy[0] = False

    slider.observe(moved, "value")
    box.observe(typed, "value")


def _text(shown: dict[str, Any], offers: Sequence[str], optional: bool) -> Control:
    empty = None if optional else ""
    if offers:
        box = W.Combobox(options=list(offers), ensure_option=False, continuous_update=False, **shown)
    else:
        box = W.Text(continuous_update=False, **shown)
    return Control(box, box, lambda text: text.strip() or empty, lambda value: "" if value is None else str(value))


def _names(shown: dict[str, Any], offers: Sequence[str], optional: bool) -> Control:
    """Return a text with commas, and beside it what can be added."""

    def decode(text: str) -> Any:
        names = [name.strip() for name in text.split(",") if name.strip()]
        return names if names or not optional else None

    box = W.Text(continuous_update=False, placeholder="names, with commas between them", **shown)
    known = Control(box, box, decode, lambda value: ", ".join(map(str, value or ())))
    if offers:
        options = [("add …", ""), *((name, name) for name in offers)]
        adder = W.Dropdown(options=options, tooltip=f"add to {shown['description']}", layout=W.Layout(width="160px"))

        def add(change: Any) -> None:
            if change["new"]:
                known.write(dict.fromkeys([*(known.read() or []), change["new"]]))
                adder.value = ""

        adder.observe(add, "value")
        known.widget = W.HBox([box, adder])
    return known


def _anything(shown: dict[str, Any]) -> Control:
    """Return a text that is read as YAML, for kinds of fields that have no control of their own."""

    def decode(text: str) -> Any:
        try:
            return read_yaml(text)
        except ValueError:
            return text

    def encode(value: Any) -> str:
        plain = list(value) if isinstance(value, tuple | set | frozenset) else value
        if isinstance(value, BaseModel):
            plain = value.model_dump(mode="json", exclude_defaults=True)
        return "" if value is None else yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()

    box = W.Text(continuous_update=False, **shown)
    return Control(box, box, decode, encode)
