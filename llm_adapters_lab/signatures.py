"""Check the arguments of public functions by their annotations."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain, cycle
from typing import Any, TypeVar

from pydantic import BaseModel

from llm_adapters_lab.errors import BadSpec

F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F) -> F:
    """Return a function that refuses arguments which its annotations exclude, before it does anything.

    Anything whose annotation is not a plain class, a union, a literal or a collection of these passes.

    Raises:
        BadSpec: (when it is called) an argument has the wrong type; the message names it.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            parameter = signature.parameters[name]
            kind = _evaluated(parameter.annotation, function)
            for one in value if parameter.kind is parameter.VAR_POSITIONAL else (value,):
                if one is not parameter.default and not _fits(one, kind):
                    words = re.sub(r"\b[a-z_]\w*\.", "", inspect.formatannotation(kind))
                    where, given = function.__qualname__.removesuffix(".__init__"), " ".join(repr(one).split())
                    raise BadSpec(f"{where}: {name} must be {words}; given was {given:.60} ({type(one).__name__}).")
        return function(*args, **kwargs)

    return typing.cast(F, call)


@functools.cache
def _evaluated(annotation: Any, function: Any) -> Any:
    try:
        names = inspect.unwrap(function).__globals__
        return eval(annotation, names) if isinstance(annotation, str) else Any
    except NameError:  # known to type checkers only
        return Any


def _fits(value: Any, kind: Any, exact: bool = True) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one, exact=False) for one in arguments)
    if origin is typing.Literal:
        # What a function allows beside other kinds it explains better itself.
        return value in arguments if exact else isinstance(value, tuple(map(type, arguments)))
    if kind in (float, int):  # numpy's and torch's numbers too
        return hasattr(value, "__float__" if kind is float else "__index__")
    plain: Any = origin or kind
    if not isinstance(plain, type) or kind in (Any, bool) or getattr(kind, "_is_protocol", False):
        return True
    if plain is Callable or plain is type:
        return callable(value)
    if not arguments:
        return isinstance(value, plain)
    if issubclass(plain, Mapping):
        if not isinstance(value, plain):
            return False
        parts = zip(chain(*value.items()), cycle(arguments), strict=False)
        return all(_fits(part, one, exact) for part, one in parts)
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | BaseModel):  # text is no list of texts
        return False
    return not isinstance(value, Collection) or all(_fits(item, arguments[0], exact) for item in value)
