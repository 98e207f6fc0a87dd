"""Plain data from people: read YAML, change single keys, and validate it with messages a person can act on."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from llm_adapters_lab.errors import BadSpec, choices, shortened


def finite(number: Any) -> bool:
    """Return whether a number, of any size, is finite in fp32."""
    return bool(abs(number) <= 3.4028234e38)


class Part(BaseModel):
    """A part of a spec: unknown keys are refused, so are true and false for a number; values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Make one from plain data.

        Raises:
            BadSpec: a key is unknown or a value invalid; the message names the key, the value and the nearest choices.
        """
        return parse(cls, fields)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        if _holds_bool(value) and not _takes_bool(field.annotation):
            raise BadSpec(f"must be {expected(field.annotation, field.metadata)}; given was {shown(value)}.")
        return value

    @field_validator("*")
    @classmethod
    def _is_finite(cls, value: Any) -> Any:
        if isinstance(value, float) and not finite(value):
            raise BadSpec(f"{value} is infinite in fp32. Choose a smaller number.")
        return value


def _holds_bool(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, bool) or any(map(_holds_bool, items))


def _takes_bool(kind: Any) -> bool:
    """Return whether an annotation allows a truth value, or leaves that to another class."""
    if parts := typing.get_args(kind):
        return any(isinstance(part, bool) or _takes_bool(part) for part in parts)
    return kind in (Any, bool, dict) or (isinstance(kind, type) and issubclass(kind, BaseModel))


M = TypeVar("M", bound=BaseModel)


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Return the changes that "key=value" texts of a command line ask for; the values are read as YAML.

    Raises:
        BadSpec: a text does not have that form.
    """
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise BadSpec(f"--set {text!r} is not of the form key=value, e.g. adapter.rank=16.")
        try:
            values[key.strip()] = read_yaml(value)
        except ValueError:
            raise BadSpec(f"--set {text!r}: the value cannot be read as YAML. Put it in quotes.") from None
    return values


def change(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of nested `fields` with dotted keys replaced, groups such as `adapter` before their fields.

    Raises:
        BadSpec: a key leads through something that is not a group of keys.
    """
    result: dict[str, Any] = json.loads(json.dumps(fields))
    for dotted, value in sorted(changes.items(), key=lambda pair: pair[0].count(".")):
        *groups, last = dotted.split(".")
        place = result
        for group in groups:
            inner = place.get(group)
            if isinstance(inner, str) and group == "adapter":
                inner = {"type": inner}
            if inner is None:
                inner = {}
            if not isinstance(inner, dict):
                raise BadSpec(f"{dotted!r} cannot be set: {group!r} is {inner!r}, not a group of keys.")
            place[group] = inner
            place = inner
        place[last] = deepcopy(value)  # a further change may lead into it
    return result


def parse(model: type[M], fields: Any, prefix: str = "") -> M:
    """Validate plain data into a pydantic model.

    Raises:
        BadSpec: a value is not allowed; the message lists every fault, none in pydantic's words.
    """
    found, wrong = _validate(model, fields, prefix)
    if found is None:
        raise BadSpec("\n".join(text for _, text in wrong))
    return found


def faults(model: type[BaseModel], fields: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return what `parse` would complain about as (field, message) pairs; the field is "" if it is no single one."""
    return _validate(model, fields, prefix)[1]


def _validate(model: type[M], fields: Any, prefix: str) -> tuple[M | None, list[tuple[str, str]]]:
    try:
        return model.model_validate(fields), []
    except ValidationError as error:
        found = ((str((*fault["loc"], "")[0]), _explain(model, fault, prefix)) for fault in error.errors())
        return None, list(dict.fromkeys(found))  # each alternative of a union complains
    except UnicodeEncodeError as error:  # pydantic cannot quote it
        return None, [("", f"{error.object!a:.200} holds a character that cannot be written. Take it out.")]


def _explain(model: type[BaseModel], fault: Any, prefix: str) -> str:
    if fault["loc"][-1:] == ("[key]",):
        group = _locate(model, fault["loc"][:-2])[0]
        return f"{prefix}{group} has the key {shown(fault['input'])}, which is not text. Put it in quotes."
    name, kind, limits = _locate(model, fault["loc"])
    subject = f"{prefix}{name}".removesuffix(".")
    if isinstance(cause := fault.get("ctx", {}).get("error"), BadSpec):
        return shortened(str(cause) if subject in str(cause) else f"{subject}: {cause}")
    if fault["type"] in ("extra_forbidden", "invalid_key"):
        known = _keys(kind) if isinstance(kind, type) and issubclass(kind, BaseModel) else []
        dotted = prefix + ".".join(map(str, fault["loc"]))
        return f"{dotted!r} is not a known key. {choices(str(fault['loc'][-1]), known)}"
    if fault["type"] == "missing":
        return f"{prefix}{name} is missing; give {expected(kind, limits)}."
    if cause:
        return f"{subject or 'It'} = {shown(fault['input'])}: {cause}."
    return f"{subject or 'It'} must be {expected(kind, limits)}; given was {shown(fault['input'])}."


def _locate(model: type[BaseModel], place: Sequence[int | str]) -> tuple[str, Any, Sequence[Any]]:
    """Follow a location of pydantic; return the dotted name, the annotation and the limits of what lies there."""
    name, kind, limits = "", typing.cast(Any, model), typing.cast(Sequence[Any], ())
    for key in place:
        kind = _plain(kind)
        arguments = typing.get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = next((f for n, f in kind.model_fields.items() if key in (n, f.alias)), None)
            if field is None:
                break
            name, kind, limits = f"{name}.{key}".lstrip("."), field.annotation, field.metadata
        elif typing.get_origin(kind) in (list, tuple) and isinstance(key, int):
            item = arguments[key] if key < len(arguments) and ... not in arguments else arguments[0]
            name, kind, limits = f"{name}[{key}]", item, ()
        elif typing.get_origin(kind) is dict and key != "[key]":
            name, kind, limits = f"{name}.{key}", arguments[1], ()
        else:  # an alternative of a union
            break
    return name, kind, limits


def expected(kind: Any, limits: Sequence[Any] = ()) -> str:
    """Return in words what values an annotation allows, e.g. "a whole number from 1 to 4096".

    Args:
        kind: the annotation.
        limits: metadata of the field, such as `annotated_types.Ge`.
    """
    if typing.get_origin(kind) is typing.Annotated:
        kind, *more = typing.get_args(kind)
        return expected(kind, [*limits, *(limit for part in more for limit in getattr(part, "metadata", [part]))])
    arguments, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = " or ".join(expected(a, limits) for a in arguments if a is not type(None))
        return kinds + ", or null" * (type(None) in arguments)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0]) or "empty"
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + _range(bounds(limits), kind is int)
    filled = " that is not empty" * any(getattr(limit, "min_length", None) for limit in limits)
    if kind is str:
        pattern = next((limit.pattern for limit in limits if getattr(limit, "pattern", None)), "")
        return f"text that matches the pattern {pattern}" if pattern else f"text{filled}"
    if origin is tuple and ... not in arguments:
        return f"a list of {len(arguments)}: {', '.join(map(expected, arguments))}"
    if origin in (list, tuple):
        return f"a list{filled}" + (f", each item {expected(arguments[0])}" if arguments[0] is not Any else "")
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"a group of keys ({', '.join(_keys(kind))})"
    return f"a group of keys{filled}" if dict in (kind, origin) else "another value"


def bounds(limits: Iterable[Any]) -> dict[str, float]:
    """Return the numeric bounds in the metadata of a field: any of gt, ge, lt and le."""
    return {
        name: value
        for limit in limits
        for name in ("gt", "ge", "lt", "le")
        if (value := getattr(limit, name, None)) is not None
    }


def _range(limits: Mapping[str, float], whole: bool) -> str:
    if whole:
        limits = {
            {"gt": "ge", "lt": "le"}.get(name, name): value + {"gt": 1, "lt": -1}.get(name, 0)
            for name, value in limits.items()
        }
    if {"ge", "le"} <= limits.keys():
        return f" from {limits['ge']} to {limits['le']}"
    names = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
    text = " and ".join(f"{names[name]} {value}" for name, value in limits.items())
    return f" of {text}" if text.startswith("at ") else f" {text}" if text else ""


def _plain(kind: Any) -> Any:
    """Return an annotation without `Annotated` and without the alternative None."""
    if typing.get_origin(kind) is typing.Annotated:
        return _plain(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [a for a in typing.get_args(kind) if a is not type(None)]
        return _plain(kinds[0]) if len(kinds) == 1 else kind
    return kind


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def shown(value: Any) -> str:
    """Return a value as YAML would spell it, cut to 60 characters."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


LARGEST = 50_000
"""Maximum number of characters in a YAML text: a spec has a thousand, and a megabyte takes ten seconds to read."""
PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


class _Loader(yaml.SafeLoader):
    """Refuses aliases, which can expand beyond any memory, and duplicate keys; knows the types of JSON alone."""

    yaml_constructors: ClassVar = {
        tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in (*PLAIN, None)
    }
    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]
        first: [(tag, pattern) for tag, pattern in pairs if tag in PLAIN]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem=f"aliases are not allowed; write out what *{event.anchor} stands for",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Return the plain data in a YAML or JSON text.

    Raises:
        ValueError: it is neither, is too long or too deep, repeats a key, or has an alias; the message says which.
    """
    if len(text) > LARGEST:
        raise ValueError(f"it is longer than {LARGEST:,} characters")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        begin = f"{error.context}, " if str(error.problem).startswith("but ") else ""
        raise ValueError(f"{where}{begin}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines, such as a chat template, as such."""


_Dumper.add_representer(
    str, lambda to, text: to.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
)


def to_yaml(fields: Any) -> str:
    """Return fields as YAML for people to read, in their order."""
    return str(yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested fields as one level of dotted keys, such as "adapter.rank"."""
    result: dict[str, Any] = {}
    for key, value in fields.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        result.update(inner)
    return result
