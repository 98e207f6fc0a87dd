"""Load the public names of a package when they are first used, so that importing it costs next to nothing."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any


@contextmanager
def uncollected() -> Iterator[None]:
    """Import modules without looking for garbage: they leave hardly any, and looking takes a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def attach(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package; its functions check the types of their arguments.

    Args:
        package: its `__name__`.
        homes: names separated by spaces, by the module below the package that defines them; a module listed under "."
            is public itself.
    """
    where = {name: module for module, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if where[name] == ".":
            return importlib.import_module(f"{package}.{name}")
        home = f"{package}.{where[name]}"
        with uncollected():
            value = vars(importlib.import_module(home)).get(name) or importlib.import_module(f"{home}.{name}")
        if isinstance(value, FunctionType):
            value = importlib.import_module("llm_adapters_lab.signatures").checked(value)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *where}), list(where)
