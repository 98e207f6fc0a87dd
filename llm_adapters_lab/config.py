"""RunSpec: everything that decides a run, in one validated object.

Its canonical JSON is hashed into the run id, so one spec is one run wherever it is started. Descriptions and bounds
of the fields serve the command line's help, the JSON schema and the panels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from llm_adapters_lab.errors import BadSpec, choices


class Part(BaseModel):
    """A part of a spec: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Return the changes that "key=value" texts of a command line ask for, the values read as YAML.

    Raises:
        BadSpec: a text is not of that form.
    """
    pass

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
    """Return a copy of nested `fields` with dotted keys replaced.

    Raises:
        BadSpec: a key leads through something that is not a group of keys.
    """
    result: dict[str, Any] = json.loads(json.dumps(fields))
    for dotted, value in changes.items():
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
    """Validate plain data into a pydantic model, with messages a person can act on.

    Raises:
        BadSpec: anything is wrong; all faults are listed.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise BadSpec("\n".join(_explain(model, fault, prefix) for fault in error.errors())) from None


def faults(model: type[BaseModel], fields: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return what `parse` would complain of, as (field, message) pairs; "" for what concerns no single field."""
    try:
        model.model_validate(fields)
    except ValidationError as error:
        return [(str((*fault["loc"], "")[0]), _explain(model, fault, prefix)) for fault in error.errors()]
    return []


def _explain(model: type[BaseModel], fault: Any, prefix: str) -> str:
    place = [str(p) for p in fault["loc"]]
    dotted = prefix + ".".join(place)
    if "error" in (context := fault.get("ctx", {})) and isinstance(context["error"], BadSpec):
        return str(context["error"])
    if fault["type"] == "extra_forbidden":
        return f"{dotted!r} is not a known key. {choices(place[-1], _keys(model, place[:-1]))}"
    return f"{dotted} = {fault['input']!r}: {fault['msg'].removeprefix('Value error, ')}."


def _keys(model: type[BaseModel], place: list[str]) -> list[str]:
    for name in place:
        field = model.model_fields.get(name)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return [field.alias or name for name, field in model.model_fields.items()]


LARGEST = 50_000
"""Characters that are read at most: a spec has a thousand, and reading takes some ten seconds a megabyte."""


PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


class _Loader(yaml.SafeLoader):
    """Refuses aliases, which can stand for more than a memory holds, and keys that stand there twice.

    It knows what JSON knows: a date stays the text it is.
    """

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
                problem=f"write out what *{event.anchor} stands for", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Return the plain data in a YAML or JSON text.

    Raises:
        ValueError: it is none, or too long or too deep, or has a key twice or an alias; the message says which.
    """
    if len(text) > LARGEST:
        raise ValueError(f"it is longer than {LARGEST:,} characters")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested fields as one level of dotted keys, such as "adapter.rank"."""
    result: dict[str, Any] = {}
    for key, value in fields.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        result.update(inner)
    return result
