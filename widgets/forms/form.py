"""A form generated from a pydantic config: types choose the controls, descriptions become the help texts.

The form has no rules of its own: the config validates the values of the controls. Its messages, the same as on the
command line, appear below the fields. The help of a field is its tooltip, which the page shows while the field has the
focus. Number fields may hold a list, as in ``2, 8, 32``: `Form.varied` has the values, and a sweep does all of them.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ipywidgets as W
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llm_adapters_lab.config import bounds, faults, parse, read_yaml
from llm_adapters_lab.errors import BadSpec
from widgets.kit.elements import Collapsible, Shared, hide, show_if
from widgets.kit.panel import Panel, error_text, message

M = TypeVar("M", bound=BaseModel)
LONG = ("system",)
"""Names of the fields whose texts may have several lines."""
WIDE = ("task", "tasks", "template", "root", "trackers", "anatomy", "tokens", "device_map", *LONG)
"""Names of the fields that take a whole line."""
Make = Callable[..., Any]
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_SEEDS = re.compile(r"\s*(\d{1,4})\s*seeds?\s*", re.I)
_TIE = r"\s*([\d.eE+-]+)?\s*[×x*]\s*{}\s*"


@dataclass
class Control:
    """The control of a field.

    Attributes:
        widget: the whole control.
        entry: the part of it that holds the `value`.
        decode: from that value to plain data. Never raises; the config validates.
        encode: the inverse of `decode`.
        split: from that value to those of a list; by default, a field holds no list.
    """

    widget: Any
    entry: Any
    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any]
    split: Callable[[Any], list[Any]] = lambda value: [value]

    def read(self) -> Any:
        """Return the value as plain data, valid or not; of a list, the first."""
        return self.decode(self.split(self.entry.value)[0])

    def values(self) -> list[Any]:
        """Return all values of a list as plain data; of any other field, its value."""
        return [self.decode(part) for part in self.split(self.entry.value)]

    def write(self, value: Any) -> None:
        """Show a value."""
        self.entry.value = self.encode(value)


class Form(Panel, Generic[M]):
    """Controls for the fields of a config.

    Attributes:
        model: the config's class.
        controls: by field; fields with a single possible value have none.
        boxes: by field, the control with its message.
        errors: by field, the error message below it.
        problem: the error message below the form, for faults that concern no single field.
        varied: by field, the values of those that hold a list of several.
        more: the fold with the fields that are not among the `first`; None without.
    """

    def __init__(
        self,
        model: type[M],
        value: M | Mapping[str, Any] | None = None,
        skip: Collection[str] = (),
        *,
        offers: Mapping[str, Sequence[str]] | None = None,
        prefix: str = "",
        first: Sequence[str] = (),
        lists: bool = False,
        ties: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Build the controls.

        Args:
            model: a pydantic model.
            value: the initial value, as a config or some of its fields; the others have their defaults.
            skip: fields without a control; they keep their value.
            offers: suggested values, by field.
            prefix: of the field names in messages, e.g. "adapter.".
            first: fields that are always visible, in this order; the others are in a fold. By default, all are visible.
            lists: whether number fields may hold lists.
            ties: number fields that may be a multiple of another, as in ``2 × rank``.
            labels: texts beside the fields, where their names do not do.
        """
        super().__init__()
        self.model, self.prefix, self._lists = model, prefix, lists
        self.controls: dict[str, Control] = {}
        self.boxes: dict[str, Any] = {}
        self.errors: dict[str, Any] = {}
        self.varied: dict[str, list[Any]] = {}
        self._kept: dict[str, Any] = {}
        self._ties = {k: v for k, v in (ties or {}).items() if {k, v} <= set(model.model_fields)}
        self._value: M | None = None
        self._problems: list[tuple[str, str]] = []
        self._shared = Shared()
        for name, field in model.model_fields.items():
            if only := _constant(field):
                self._kept[name] = only[0]
            elif name not in skip:
                label = (labels or {}).get(name, name.replace("_", " "))
                made = self.controls[name] = self._control(name, label, field, (offers or {}).get(name, ()))
                made.entry.observe(self._changed, "value")
                self.errors[name] = self._shared.make(W.HTML)
                box = self.boxes[name] = self._shared.make(W.VBox, children=[made.widget, self.errors[name]])
                box.add_class("lab-field")
                box.add_class(f"lab-at-{_slug(prefix + name)}")
                if name in WIDE or isinstance(made.entry, W.Textarea) or made.widget is not made.entry:
                    box.add_class("lab-wide")
        shown = [name for name in first if name in self.controls] or list(self.controls)
        # Nested configs are rarely edited, so they come last.
        fields = model.model_fields
        rest = sorted((n for n in self.controls if n not in shown), key=lambda name: _is_nested(fields[name]))
        self._shown, self._rest = shown, rest
        self.essentials = _grid(self.boxes[name] for name in shown)
        self.others = _grid(self.boxes[name] for name in rest)
        self.more = Collapsible(f"More settings ({len(rest)})", self.others) if rest else None
        self.widget = W.VBox([self.essentials, *([self.more.widget] if self.more else []), self.problem])
        self.value = value

    @property
    def fields(self) -> dict[str, Any]:
        """The values in the controls as plain data, valid or not."""
        return {name: self._tied(name, made.read()) for name, made in self.controls.items()}

    @property
    def value(self) -> M | None:
        """The config, or None while it is invalid; set to a config, some of its fields, or None for the defaults.

        Of a field that holds a list, it has the first value.
        """
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
                    wanted = given.get(name, default)
                    self.controls[name].write(wanted)
                    other = self._ties.get(name)
                    multiple = _multiple(wanted, given.get(other, fields[other].default)) if other else None
                    if multiple:
                        self.controls[name].entry.value = f"{multiple} × {other}"
                elif name in given and not _constant(field):
                    self._kept[name] = given[name]
        self._changed()

    @property
    def helps(self) -> dict[str, str]:
        """The help text of each field, by the end of the class ``lab-at-…`` of its box."""
        return {_slug(self.prefix + name): made.entry.tooltip or "" for name, made in self.controls.items()}

    @property
    def tied(self) -> dict[str, tuple[str, float]]:
        """By field, those that are a multiple of another: its name and the factor."""
        return {name: found for name in self._ties if (found := self._tie(name))}

    @property
    def faults(self) -> list[tuple[str, str]]:
        """The current errors as (field, message) pairs; the field is "" if it is no single one."""
        return self._problems

    def find(self, text: str) -> int:
        """Show only the fields whose name or help contains a text, and return their number; "" shows all."""
        wanted = text.strip().casefold()
        found = [name for name in self.controls if wanted in self._about(name)] if wanted else list(self.controls)
        for name, box in self.boxes.items():
            hide(name not in found, box)
        if self.more:
            self.more.button.value = bool(wanted and set(found) & set(self._rest))
            show_if(not wanted or set(found) & set(self._rest), self.more.widget)
        return len(found)

    def lock(self, names: Collection[str]) -> None:
        """Make fields read-only."""
        for name in names:
            box = self.controls[name].widget
            for part in (box, *getattr(box, "children", ())):
                part.disabled = True
            if not self.controls[name].entry.description.endswith("🔒"):
                self.controls[name].entry.description += " 🔒"

    def _about(self, name: str) -> str:
        entry = self.controls[name].entry
        return f"{self.prefix}{name} {name.replace('_', ' ')} {entry.description} {entry.tooltip}".casefold()

    def _control(self, name: str, label: str, field: FieldInfo, offers: Sequence[str]) -> Control:
        made = control(name, field, offers, label, lists=self._lists, make=self._shared.make)
        if name in self._ties:
            made.entry.tooltip += f"; or a multiple of {self._ties[name]}, as in 2 × {self._ties[name]}"
        return made

    def _tie(self, name: str) -> tuple[str, float] | None:
        other = self._ties[name]
        found = re.fullmatch(_TIE.format(re.escape(other)), str(self.controls[name].entry.value), re.I)
        with suppress(ValueError):
            return (other, float(found[1] or 1)) if found else None
        return None

    def _tied(self, name: str, value: Any) -> Any:
        """Return the value of a field; of a multiple of another, the product."""
        if name not in self._ties or (tie := self._tie(name)) is None:
            return value
        of = self.controls[tie[0]].read()
        with suppress(OverflowError):
            return tie[1] * (of if isinstance(of, int | float) else 1)
        return value

    def _changed(self, change: Any = None) -> None:
        if self.quiet:
            return
        self._problems = found = self._validate()
        for name, line in self.errors.items():
            text = message("\n".join(text for place, text in found if place == name))
            if line.value != text:
                line.value = text
                (self.boxes[name].add_class if text else self.boxes[name].remove_class)("lab-invalid")
        if self.more and any(place in self._rest for place, _ in found):
            self.more.button.value = True  # a message must not be hidden
        rest = [text for place, text in found if place not in self.errors]
        for observer in self._observers:
            try:
                observer(self)
            except Exception as error:  # a notebook does not show exceptions of callbacks
                rest.append(error_text(error))
        self.problem.value = message("\n".join(rest))

    def _validate(self) -> list[tuple[str, str]]:
        """Set the value and the lists, and return the errors as (field, message) pairs."""
        found = self._faults()
        wrong = {name for name, _ in found}
        return [(name, text) for name, text in found if name not in self.tied or self.tied[name][0] not in wrong]

    def _faults(self) -> list[tuple[str, str]]:
        given, self._value, self.varied = {**self._kept, **self.fields}, None, {}
        lists = {name: values for name, made in self.controls.items() if len(values := made.values()) > 1}
        found: list[tuple[str, str]] = []
        try:
            value = parse(self.model, given, self.prefix)
            for name, values in lists.items():
                for other in values[1:]:
                    found += faults(self.model, given | {name: other}, self.prefix)
            if found:
                return list(dict.fromkeys(found))
            self._value, self.varied = value, {name: list(dict.fromkeys(values)) for name, values in lists.items()}
        except BadSpec as error:
            return faults(self.model, given, self.prefix) or [("", str(error))]
        except Exception as error:  # validators of a third-party config may raise anything
            return [("", error_text(error))]
        return []


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def _grid(boxes: Iterable[Any]) -> Any:
    return W.Box(list(boxes)).add_class("lab-fields")


def _multiple(value: Any, of: Any) -> str:
    """Return the factor between two numbers if it is a short one; "" if not."""
    if not all(type(number) in (int, float) and number > 0 for number in (value, of)):
        return ""
    factor = f"{value / of:g}"
    return factor if len(factor) <= 4 and float(factor) * of == value else ""


def labelled(kind: Any, label: str, **traits: Any) -> Any:
    """Return a control with the look of a form's."""
    return kind(description=label, **traits)


def control(
    name: str,
    field: FieldInfo,
    offers: Sequence[str] = (),
    label: str = "",
    *,
    lists: bool = False,
    make: Make = lambda kind, **traits: kind(**traits),
) -> Control:
    """Return the control for a field.

    Args:
        name: of the field.
        field: as pydantic describes it.
        offers: suggested values for free text.
        label: the text beside it; by default the name.
        lists: whether a number field may hold a list.
        make: returns a widget of a kind with these traits.
    """
    kinds, optional = _kinds(field.annotation)
    only, tip, label = kinds[0] if len(kinds) == 1 else None, _help(field), label or name
    if only is bool and not optional:
        box = make(W.Checkbox, description=label, tooltip=tip, indent=False)
        return Control(box, box, bool, bool)
    if only is not None and (_is_literal(only) or only is bool):
        return _dropdown(make, label, tip, [True, False] if only is bool else typing.get_args(only), optional)
    words = [str(v) for kind in kinds if _is_literal(kind) for v in typing.get_args(kind)]
    numbers = [kind for kind in kinds if kind in (int, float)]
    if numbers and all(kind in (int, float) or _is_literal(kind) for kind in kinds):
        tip += "; several values, as in 2, 8, 32, make a sweep" * lists
        return _number(make, label, tip, numbers[0], words, _default(field), optional, lists)
    if only is str:
        return _words(make, name, label, tip, offers, optional)
    if only is not None and typing.get_origin(only) in (tuple, list) and typing.get_args(only)[0] is str:
        return _names(make, label, tip, offers, optional)
    return _yaml(make, label, tip)


def _default(field: FieldInfo) -> str:
    """Return what an empty field stands for, where its description says so."""
    found = re.search(r"default: ([^;]+)", field.description or "")
    return found[1] if found else ""


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


def _text(make: Make, label: str, tip: str, offers: Sequence[str] = (), **traits: Any) -> Any:
    """Return a text field, with suggestions if there are any."""
    if offers:
        traits |= {"options": list(offers), "ensure_option": False}
    return make(W.Combobox if offers else W.Text, description=label, tooltip=tip, **traits)


def _words(make: Make, name: str, label: str, tip: str, offers: Sequence[str], optional: bool) -> Control:
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
        box = make(W.Textarea, description=label, tooltip=tip, continuous_update=False, rows=2)
    else:
        box = _text(make, label, tip, offers, continuous_update=False)
    empty = None if optional else ""
    return Control(box, box, lambda text: kept.get(text, text.strip()) or empty, encode)


def _dropdown(make: Make, label: str, tip: str, values: Sequence[Any], optional: bool) -> Control:
    options = [("(default)", None)] * optional + [(str(value), value) for value in values]
    box, known = make(W.Dropdown, description=label, tooltip=tip, options=options), [value for _, value in options]
    return Control(box, box, lambda value: value, lambda value: value if value in known else known[0])


def _number(
    make: Make, label: str, tip: str, kind: type, words: list[str], empty: str, optional: bool, lists: bool
) -> Control:
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

    box = _text(make, label, tip, words, placeholder=empty)
    box.add_class("lab-whole" if kind is int else "lab-real")  # the arrow keys change it
    return Control(box, box, decode, _shown, split_list) if lists else Control(box, box, decode, _shown)


def split_list(text: str) -> list[str]:
    """Return the values of a list, as in ``2, 8, 32`` or ``3 seeds``, as texts; at least one."""
    if (found := _SEEDS.fullmatch(text)) and int(found[1]):
        return [str(number) for number in range(int(found[1]))]
    return [part.strip() for part in re.split("[,;]", text) if part.strip()] or [text]


def _names(make: Make, label: str, tip: str, offers: Sequence[str], optional: bool) -> Control:
    """Return a text field for comma-separated names, followed by a list of names to add."""

    def decode(text: str) -> Any:
        names = [name.strip() for name in text.split(",") if name.strip()]
        return names if names or not optional else None

    box = _text(make, label, tip, placeholder="comma-separated names", continuous_update=False)
    known = Control(box, box, decode, lambda value: ", ".join(map(str, value or ())))
    if offers:
        options = [("add …", ""), *((offer, offer) for offer in offers)]
        adder = make(W.Dropdown, options=options, tooltip=f"add to {label}")

        def add(change: Any) -> None:
            if change["new"]:
                known.write(dict.fromkeys([*(known.read() or []), change["new"]]))
                adder.value = ""

        adder.observe(add, "value")
        known.widget = W.HBox([box, adder]).add_class("lab-adder")
    return known


def _yaml(make: Make, label: str, tip: str) -> Control:
    """Return a text field that is read as YAML, for annotations without a control of their own."""

    def decode(text: str) -> Any:
        try:
            return read_yaml(text)
        except ValueError:
            return text

    def encode(value: Any) -> str:
        def dumped(part: Any) -> Any:
            if not isinstance(part, BaseModel):
                return part
            kind = {"type": part.type} if "type" in type(part).model_fields else {}  # type: ignore[attr-defined]
            return kind | part.model_dump(mode="json", exclude_defaults=True)

        plain = [dumped(part) for part in value] if isinstance(value, tuple | set | frozenset) else dumped(value)
        return "" if value is None else yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()

    box = _text(make, label, tip, continuous_update=False)
    return Control(box, box, decode, encode)
