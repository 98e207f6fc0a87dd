"""The choice of a base: packaged models, those of the hub that are on this machine, and any other by name or path."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from typing import Any

from llm_adapters_lab.models import hub
from llm_adapters_lab.models.blueprint import Blueprint, blueprint
from llm_adapters_lab.models.pypi_bases import PYPI_BASES, cache_folder
from llm_adapters_lab.models.random_models import TINY
from llm_adapters_lab.models.source import FOLDERS
from llm_adapters_lab.models.spec import PACKAGED, check_base
from widgets.forms.picker import Option, Picker
from widgets.kit.panel import Panel, error_text, schedule

SECONDS = 3.0
"""How long to wait for the hub."""
TINY_MODELS = "Tiny random models, for tests"
OWN = "Folder or .gguf file"
RECENT_MODELS = "From the hub, on this machine"
RECENT = 30
"""Maximum number of hub models in the list."""


class ModelPicker(Panel):
    """A base is looked up off the event loop; until then, and if there is none, it has no blueprint.

    Attributes:
        widget: the list.
        pending: whether the base is still being looked up.
        error: why it cannot be used; "" if it can.
        blueprint: of the base, with its anatomy read; None while there is none.
    """

    def __init__(self, value: str = "nano") -> None:
        """Look up the first base."""
        super().__init__()
        self.pending, self.error = False, ""
        self.blueprint: Blueprint | None = None
        self.widget = Picker(name="model", value=value, search="Search, or type a hub id, folder or .gguf file")
        self.widget.free, self.widget.folded = "Use “{}”: hub id, folder or .gguf file", [TINY_MODELS]
        self._parts: tuple[Any, ...] = ()
        self._own: list[str] = []
        self._asked = 0
        self._offer([])
        self.widget.observe(self._chosen, "value")
        self._look()
        schedule(self._list)

    @property
    def value(self) -> str:
        """Name of the base, as it was typed."""
        return str(self.widget.value)

    @value.setter
    def value(self, name: str) -> None:
        with self.silently():
            self.widget.value = name
        self._look()

    @property
    def disabled(self) -> bool:
        """Whether the base cannot be changed."""
        return bool(self.widget.disabled)

    @disabled.setter
    def disabled(self, disabled: bool) -> None:
        self.widget.disabled = disabled

    def use(self, trust_remote_code: bool, roles: Mapping[str, str], tokens: Mapping[str, str]) -> None:
        """Read the base with these parts of a spec, those of `RunSpec.base_parts` after the name."""
        if self._parts != (parts := (trust_remote_code, dict(roles), dict(tokens))):
            self._parts = parts
            self._look()

    def _chosen(self, _: Any) -> None:
        if not self.quiet:
            self._look()

    def _look(self) -> None:
        """Look up the base; tell the observers now and, if it takes time, once more when it is known."""
        self._asked += 1
        name, asked = self.value.strip(), self._asked
        self.blueprint, self.error, self.pending = None, "", False
        if not name:
            self.error = "Choose a base, or type a hub id, a folder or a .gguf file."
        elif "anatomy" in (known := blueprint(name, *self._parts)).__dict__:
            self.blueprint = known
        else:
            self.pending = True
        self._tell()
        if self.pending:
            schedule(lambda: self._find(name, asked))

    async def _find(self, name: str, asked: int) -> None:
        found, error = None, ""
        try:
            found = blueprint(name, *self._parts)
            await _read(found)
        except Exception as problem:  # code of a repository may raise anything
            found, error = None, error_text(problem)
        if asked != self._asked:  # another base was chosen meanwhile
            return
        self.blueprint, self.error, self.pending = found, error, False
        if found and name not in (*PACKAGED, *self._own) and os.path.exists(os.path.expanduser(name)):
            self._own.append(name)
            await self._list()
        self._tell()

    def _tell(self) -> None:
        with self.widget.hold_sync():
            self.widget.pending, self.widget.error = self.pending, self.error
            self.widget.note = _waiting(self.value.strip()) if self.pending else ""
        self._notify()

    async def _list(self) -> None:
        self._offer(await asyncio.to_thread(_hub_options))

    def _offer(self, cached: Iterable[Option]) -> None:
        packaged = [Option(name, hint=_packaged(name), group="Packaged") for name in PACKAGED]
        own = [Option(name, group=OWN) for name in self._own]
        tiny = [Option(f"tiny:{family}", hint="2 layers · width 32", group=TINY_MODELS) for family in TINY]
        self.widget.offer([*packaged, *cached, *own, *tiny])


def _waiting(name: str) -> str:
    """Return what is awaited: a base from PyPI is converted when it is first used."""
    if name in PYPI_BASES and not any(cache_folder().glob(f"{name}-*")):
        return f"preparing {name}, which takes about a minute the first time …"
    return f"looking for {name} …"


def _packaged(name: str) -> str:
    facts = _facts(hub.read_config(FOLDERS[name] / "config.json")) if name in FOLDERS else ""
    return " · ".join(filter(None, (facts, PACKAGED[name])))


def _hub_options() -> list[Option]:
    names = hub.cached_models()[:RECENT]
    return [Option(name, hint=_facts(hub.cached_config(name)), group=RECENT_MODELS) for name in names]


def _facts(config: Mapping[str, Any]) -> str:
    """Return what a config.json tells of a model in one line."""
    text = config.get("text_config")
    fields = {**(text if isinstance(text, dict) else {}), **config}
    layers = next((fields[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in fields), None)
    width = next((fields[key] for key in ("hidden_size", "n_embd", "d_model") if key in fields), None)
    parts = (f"{layers} layers" if layers else "", f"width {width}" if width else "", fields.get("model_type"))
    return " · ".join(str(part) for part in parts if part)


async def _read(found: Blueprint) -> None:
    """Read configuration and anatomy in a thread; of a hub id, only once the hub has answered or the cache has it.

    Raises:
        LabError: there is no such base, or its parts cannot be told apart.
    """
    source, answered = found.name, True
    if source in PYPI_BASES:  # converted when it is first used
        source, _ = await asyncio.to_thread(lambda: found.source)
    if not found.tiny and source not in FOLDERS and check_base(source) is None:
        try:
            # A name server that does not answer takes longer than the limit of the request.
            answered = await asyncio.wait_for(asyncio.to_thread(hub.require_model, source, SECONDS), SECONDS + 0.5)
        except TimeoutError:
            if not hub.cached_config(source):
                raise hub.unreachable(source) from None
            answered = False

    def read() -> None:
        if answered:
            _ = found.anatomy
        else:
            with hub.offline():
                _ = found.anatomy

    await asyncio.to_thread(read)
