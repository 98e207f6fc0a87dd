"""The registry of adapters.

What a spec, a list or a form has to know of an adapter (its config, usual placement, source, colour) stands at the head
of its file and is read from there without importing torch; the class is imported when it is first asked for.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llm_adapters_lab.core.adapter_config import AdapterConfig, ModelAdapterConfig
from llm_adapters_lab.errors import BadSpec, choices

if TYPE_CHECKING:
    from llm_adapters_lab.core.adapter import Adapter

ADAPTERS = "llm_adapters_lab.adapters"
"""The package whose every module registers an adapter; named, not imported, since its modules import this one. Also the
entry point group in which another package names modules that register adapters."""


@dataclass(frozen=True)
class Entry:
    """One registered adapter.

    Attributes:
        name: as written in `adapter.type`.
        config: its pydantic config.
        at: its usual placement.
        source: the paper.
        colour: in every figure, as #rrggbb; empty: chosen by name.
        idea: first line of the file's docstring.
        module: where the class is defined.
    """

    name: str
    config: type[AdapterConfig]
    at: str
    source: str
    colour: str
    idea: str
    module: str
    loaded: type[Adapter] | None = field(default=None, repr=False)

    @property
    def cls(self) -> type[Adapter]:
        """The class; its module is imported if need be."""
        if self.loaded is None:
            importlib.import_module(self.module)
            return REGISTRY[self.name].cls
        return self.loaded

    @property
    def placed(self) -> bool:
        """Whether the adapter takes a placement."""
        return not issubclass(self.config, ModelAdapterConfig)


REGISTRY: dict[str, Entry] = {}
A = TypeVar("A", bound="type[Adapter]")


def register_adapter(
    name: str, *, config: type[AdapterConfig], at: str, source: str, colour: str = ""
) -> Callable[[A], A]:
    """Make an adapter known by name to specs, command line, saving and panels.

    Args:
        name: as written in `adapter.type`.
        config: its config class.
        at: the placement used where a spec names none.
        source: arXiv number of the paper.
        colour: in every figure, as #rrggbb.

    Raises:
        BadSpec: the name is not of letters, digits and dashes, or belongs to another adapter.
    """
    if not (name.isascii() and name.replace("-", "_").isidentifier() and len(name) <= 64):
        raise BadSpec(f"An adapter cannot be called {name!r}: use letters, digits and dashes, 64 at most.")

    def add(cls: A) -> A:
        _read_own()  # so that a clash is found here and not later
        before = REGISTRY.get(name)
        if before and before.module != cls.__module__:
            owner = f"{before.module}.{before.cls.__name__}"
            cure = f"register {cls.__module__}.{cls.__name__} under another one."
            raise BadSpec(f"The adapter name {name!r} belongs to {owner}; {cure}")
        doc = cls.__doc__ if cls.__module__ == "__main__" else sys.modules[cls.__module__].__doc__ or cls.__doc__
        REGISTRY[name] = Entry(name, config, at, source, colour, _first_line(doc), cls.__module__, cls)
        return cls

    return add


def all_adapters() -> dict[str, Entry]:
    """Return every registered adapter by name."""
    _read_own()
    _load_entry_points()
    return REGISTRY


def get_adapter(name: str) -> Entry:
    """Return the adapter of that name.

    Raises:
        BadSpec: there is none; the message offers the nearest names.
    """
    known = all_adapters()
    if name not in known:
        raise BadSpec(f"There is no adapter {name!r}. {choices(name, known)}")
    return known[name]


@cache
def _load_entry_points() -> None:
    for point in importlib.metadata.entry_points(group=ADAPTERS):
        point.load()


@cache
def _read_own() -> None:
    """Enter every adapter of the package, from the heads of those files that have not been imported."""
    found = importlib.util.find_spec(ADAPTERS)
    assert found is not None and found.submodule_search_locations is not None
    for path in sorted(Path(found.submodule_search_locations[0]).glob("[!_]*.py")):
        module = f"{ADAPTERS}.{path.stem}"
        if module not in sys.modules:
            tree, names = _head(module)
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and (given := _registration(node)) is not None:
                    values: dict[str, Any] = {"colour": ""}
                    values |= {str(key.arg): _value(key.value, names) for key in given.keywords}
                    name, idea = ast.literal_eval(given.args[0]), _first_line(ast.get_docstring(tree))
                    entry = Entry(
                        name, values["config"], values["at"], values["source"], values["colour"], idea, module
                    )
                    REGISTRY.setdefault(name, entry)


@cache
def _head(module: str) -> tuple[ast.Module, dict[str, Any]]:
    """Return the syntax tree of an adapter's file, and its names after running nothing but the configs.

    A config is a class that inherits, perhaps through another file of the package, from `AdapterConfig`. It may use
    what the file imports from the standard library, pydantic and the modules below.
    """
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": module}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.startswith(f"{ADAPTERS}."):
                others = _head(node.module)[1]
                names |= {a.asname or a.name: others[a.name] for a in node.names if a.name in others}
            elif node.module in _LIGHT or node.module.partition(".")[0] in _LIGHT:
                _run(node, names)
        elif isinstance(node, ast.ClassDef) and any(_is_config(names.get(ast.unparse(base))) for base in node.bases):
            _run(node, names)
    return tree, names


_LIGHT = {"typing", "collections", "pydantic", "llm_adapters_lab.errors", "llm_adapters_lab.core.adapter_config"}


def _run(node: ast.stmt, names: dict[str, Any]) -> None:
    # Without `from __future__ import annotations`, since pydantic could not look their names up in a module; a method
    # may then not name its own class.
    for method in (child for child in ast.walk(node) if isinstance(child, ast.FunctionDef)):
        method.returns = None
    exec(compile(ast.Module([node], []), names["__name__"], "exec", dont_inherit=True), names)


def _is_config(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, AdapterConfig)


def _registration(node: ast.ClassDef) -> ast.Call | None:
    calls = (call for call in node.decorator_list if isinstance(call, ast.Call))
    return next((call for call in calls if ast.unparse(call.func) == register_adapter.__name__), None)


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    return names[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().partition("\n")[0]
