"""The registry of adapters.

Config, usual placement, source and colour of an adapter are read from the head of its file without importing torch; the
class is imported when it is first used.
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

from llm_adapters_lab.config import parse, shown
from llm_adapters_lab.core.adapter_config import AdapterConfig, ModelAdapterConfig
from llm_adapters_lab.errors import BadSpec, choices

if TYPE_CHECKING:
    from llm_adapters_lab.core.adapter import Adapter

ADAPTERS = "llm_adapters_lab.adapters"
"""The package whose modules register adapters (a string, since they import this module), and the entry point group in
which other packages name modules that register adapters."""


@dataclass(frozen=True)
class Entry:
    """A registered adapter.

    Attributes:
        name: value of `adapter.type`.
        config: its config class.
        at: its usual placement.
        source: arXiv number of the paper.
        colour: in all figures, as #rrggbb; if empty, it is derived from the name.
        idea: first line of the file's docstring.
        module: name of the module that defines the class.
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
        """The class, which is imported on first use."""
        if self.loaded is None:
            importlib.import_module(self.module)
            return REGISTRY[self.name].cls
        return self.loaded

    @property
    def placed(self) -> bool:
        """Whether the adapter has a placement."""
        return not issubclass(self.config, ModelAdapterConfig)


REGISTRY: dict[str, Entry] = {}
A = TypeVar("A", bound="type[Adapter]")


def register_adapter(
    name: str, *, config: type[AdapterConfig], at: str, source: str, colour: str = ""
) -> Callable[[A], A]:
    """Register an adapter class under a name, for specs, command line, saving and panels.

    Args:
        name: value of `adapter.type`.
        config: the config class.
        at: the usual placement, for specs without one.
        source: arXiv number of the paper.
        colour: in all figures, as #rrggbb.

    Raises:
        BadSpec: the name has characters other than letters, digits and dashes, or belongs to another adapter.
    """
    if not (name.isascii() and name.replace("-", "_").isidentifier() and len(name) <= 64):
        raise BadSpec(f"An adapter cannot be called {name!r}: use letters, digits and dashes, 64 at most.")

    def add(cls: A) -> A:
        _read_own()  # finds name clashes now rather than later
        before = REGISTRY.get(name)
        if before and before.module != cls.__module__:
            raise BadSpec(
                f"The adapter name {name!r} belongs to {before.module}.{before.cls.__name__}; register "
                f"{cls.__module__}.{cls.__name__} under another one."
            )
        doc = cls.__doc__ if cls.__module__ == "__main__" else sys.modules[cls.__module__].__doc__ or cls.__doc__
        REGISTRY[name] = Entry(name, config, at, source, colour, _first_line(doc), cls.__module__, cls)
        return cls

    return add


def all_adapters() -> dict[str, Entry]:
    """Return all registered adapters by name."""
    _read_own()
    _load_entry_points()
    return REGISTRY


def get_adapter(name: str) -> Entry:
    """Return the adapter of a name.

    Raises:
        BadSpec: there is none; the message has the closest names.
    """
    known = all_adapters()
    if name not in known:
        raise BadSpec(f"There is no adapter {name!r}. {choices(name, known)}")
    return known[name]


def adapter_config(fields: Any, prefix: str = "adapter.") -> AdapterConfig:
    """Return the config of an adapter from plain data: its name, or its fields; `prefix` is for messages.

    Raises:
        BadSpec: there is no such adapter, or a field is invalid.
    """
    what = prefix.rstrip(".")
    fields = {"type": fields} if isinstance(fields, str) else fields
    if not isinstance(fields, dict) or "type" not in fields:
        raise BadSpec(f"{what} needs a type, e.g. {{type: lora, rank: 8}}; given was {shown(fields)}.")
    if not isinstance(fields["type"], str):
        raise BadSpec(f"{what}.type must be the name of an adapter or preset; given was {shown(fields['type'])}.")
    return parse(get_adapter(fields["type"]).config, fields, prefix)


def token_trainer() -> Any:
    """Return the adapter class that trains the rows of tokens, beside any other adapter."""
    return next(entry.cls for entry in all_adapters().values() if entry.cls.for_tokens)


@cache
def _load_entry_points() -> None:
    for point in importlib.metadata.entry_points(group=ADAPTERS):
        point.load()


@cache
def _read_own() -> None:
    """Register the adapters of the package, from the heads of the files that have not been imported."""
    found = importlib.util.find_spec(ADAPTERS)
    assert found is not None and found.submodule_search_locations is not None
    for path in sorted(Path(found.submodule_search_locations[0]).glob("[!_]*.py")):
        module = f"{ADAPTERS}.{path.stem}"
        if module in sys.modules:
            continue
        tree, names = _head(module)
        for call in [call for node in tree.body if isinstance(node, ast.ClassDef) for call in node.decorator_list]:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == register_adapter.__name__:
                given: dict[str, Any] = {"colour": ""}
                for key in call.keywords:
                    name = key.value.id if isinstance(key.value, ast.Name) else None
                    given[str(key.arg)] = names[name] if name else ast.literal_eval(key.value)
                idea = _first_line(ast.get_docstring(tree))
                entry = Entry(ast.literal_eval(call.args[0]), **given, idea=idea, module=module)
                REGISTRY.setdefault(entry.name, entry)


_LIGHT = {"typing", "collections", "pydantic"}
_LIGHT |= {f"llm_adapters_lab.{name}" for name in ("errors", "core.adapter_config", "core.registry")}


@cache
def _head(module: str) -> tuple[ast.Module, dict[str, Any]]:
    """Return the syntax tree of an adapter's file, and its names after executing only the configs.

    A config is a class that inherits from `AdapterConfig`, possibly through another file of the package. It can use
    what the file imports from the modules in `_LIGHT`.
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
                _execute(node, names)
        elif isinstance(node, ast.ClassDef):
            bases = [names.get(ast.unparse(base)) for base in node.bases]
            if any(isinstance(base, type) and issubclass(base, AdapterConfig) for base in bases):
                _execute(node, names)
    return tree, names


def _execute(node: ast.stmt, names: dict[str, Any]) -> None:
    # Without `from __future__ import annotations`, as pydantic cannot resolve names that are in no module; return
    # annotations are removed, because a method may name its own class.
    for method in (child for child in ast.walk(node) if isinstance(child, ast.FunctionDef)):
        method.returns = None
    exec(compile(ast.Module([node], []), names["__name__"], "exec", dont_inherit=True), names)


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().partition("\n")[0]
