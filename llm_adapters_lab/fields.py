"""Plain data into validated objects: dotted changes, and messages a person can act on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from llm_adapters_lab.errors import BadSpec, choices

M = TypeVar("M", bound=BaseModel)


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Return the changes that "key=value" texts of a command line ask for, the values read as YAML.

    Raises:
        BadSpec: a text is not of that form.
    """
    from llm_adapters_lab.safe_yaml import read_yaml

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
