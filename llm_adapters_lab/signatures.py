"""Check the arguments of public functions by their annotations."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

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
            several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            for one in (value.values() if isinstance(value, dict) else value) if several else (value,):
                if one is not parameter.default and not _fits(one, kind):
                    given = " ".join(repr(one).split())
                    given = given if len(given) <= 60 else f"{given[:57]}..."
                    raise BadSpec(
                        f"{function.__qualname__.removesuffix('.__init__')}: {name} must be {_words(kind)}; given was "
                        f"{given} ({type(one).__name__})."
                    )
        return function(*args, **kwargs)

    return typing.cast(F, call)


def _evaluated(annotation: Any, function: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        names = inspect.unwrap(function).__globals__
        return eval(annotation, names) if isinstance(annotation, str) else annotation
    except NameError:  # known to type checkers only
        return Any


def _fits(value: Any, kind: Any, exact: bool = True) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one, exact=False) for one in arguments)
    if origin is typing.Literal:
        # What a function allows beside other kinds it explains better itself.
        return value in arguments if exact else isinstance(value, tuple(map(type, arguments)))
    if kind is None or kind is types.NoneType:
        return value is None
    if kind in (float, int):  # numpy's and torch's numbers too
        return hasattr(value, "__float__" if kind is float else "__index__")
    plain: Any = origin or kind
    if not isinstance(plain, type) or kind in (Any, bool) or getattr(kind, "_is_protocol", False):
        return True
    if plain is Callable or plain is type:
        return callable(value)
    if issubclass(plain, Mapping):
        return isinstance(value, plain) and all(
            _fits(part, one, exact) for pair in value.items() for part, one in zip(pair, arguments, strict=False)
        )
    if issubclass(plain, Iterable) and arguments:  # text is no list of texts
        items = arguments[:1] if isinstance(value, Collection) else ()
        return (
            isinstance(value, Iterable)
            and not isinstance(value, str | bytes)
            and all(_fits(item, kind, exact) for kind in items for item in value)
        )
    return isinstance(value, plain)


def _words(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    parts = [part.rpartition(".")[2] for part in text.replace("[", "[ ").replace(",", " ,").split(" ")]
    return " ".join(parts).replace("[ ", "[").replace(" ,", ",")
