"""Saved adapters by name: find their folder, read it, and know when it changes.

A name is a folder, or a run or the beginning of its id under the root that is looked in (`looking_in`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_adapters_lab.config import parse
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.tensor_files import check_alone, read_tensors, write_tensors
from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.files import read_json, write_json, writing_folder

_ROOTS: ContextVar[tuple[Path, ...]] = ContextVar("_ROOTS", default=())
FILES = ("adapter.json", "adapter.safetensors", "base.json")
SHELF = "shelf.json"
"""The file that makes a folder a shelf: {"cards": [{"name": ..., "digest": ...}, ...]}; see `results.shelf`."""


@contextmanager
def looking_in(root: str | Path) -> Iterator[None]:
    """Look for runs that are named within the context under a root, before outer ones; without any, under `runs`."""
    token = _ROOTS.set((Path(root), *_ROOTS.get()))
    try:
        yield
    finally:
        _ROOTS.reset(token)


def saved_folder(name: str) -> Path:
    """Return the folder of a saved adapter.

    Raises:
        BadSpec: there is none of that name, several runs begin with it, or it is on a shelf and has changed since.
    """
    path = Path(os.path.expanduser(name))
    for folder in (path, path / "adapter"):
        if os.path.isfile(folder / FILES[0]):  # False for names that no file can have
            check_shelved(folder)
            return folder
    known: dict[str, Path] = {}
    plain = name and name not in (".", "..") and not set(name) & set("/\\*?[")
    for root in (_ROOTS.get() or (Path("runs"),)) if plain else ():
        found = {path.parent.name: path for path in root.glob("*/adapter") if (path / FILES[0]).is_file()}
        matching = [name] if name in found else [run for run in found if run.startswith(name)]
        if len(matching) > 1:
            raise BadSpec(f"The prefix {name!r} is ambiguous under {root}: {', '.join(sorted(matching))}.")
        if matching:
            return found[matching[0]]
        known |= found
    hint = "Save it with `save_adapter` or `export --format lab`, or name a trained run."
    raise BadSpec(f"There is no saved adapter {name!r:.200}. {choices(name, known) if known else hint}")


def check_shelved(folder: Path) -> None:
    """Check that an adapter that is on a shelf is the one that was added.

    Raises:
        BadSpec: its files differ from its card, or the shelf cannot be read.
    """
    place = folder.absolute().parent
    if not (place.parent / SHELF).is_file():
        return
    cards = read_json(place.parent / SHELF).get("cards")
    known = [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []
    expected = next((card.get("digest") for card in known if card.get("name") == place.name), None)
    if expected != digest(folder):
        why = "has other files than those that were added" if expected else "has no card"
        raise BadSpec(f"The adapter {place.name!r} on the shelf {place.parent} {why}. Remove it, or add it again.")


def digest(folder: Path) -> str:
    """Return the SHA-256 of the files of a saved adapter."""
    found = hashlib.sha256()
    for name in FILES:
        if (folder / name).is_file():
            found.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    return found.hexdigest()


def digests(config: AdapterConfig) -> dict[str, str]:
    """Return the digest of every saved adapter that a config names."""
    return {name: digest(saved_folder(name)) for name in dict.fromkeys(config.saved)}


@dataclass(frozen=True)
class Saved:
    """A saved adapter in memory.

    Attributes:
        config: of the adapter.
        tensors: as `Injection.saved_tensors` returns them.
        meta: the content of adapter.json.
        base: the fingerprint of the base; {} if unknown.
        name: for messages.
    """

    config: AdapterConfig
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]
    base: dict[str, Any]
    name: str

    def save(self, folder: str | Path) -> None:
        """Write a folder that `load_adapter` reads.

        Raises:
            CannotWrite: the folder cannot be written.
        """
        check_alone(Path(folder), "adapter_config.json")
        with writing_folder(Path(folder)) as part:
            write_tensors(part / "adapter.safetensors", {k: t.contiguous() for k, t in self.tensors.items()})
            if self.base:
                write_json(part / "base.json", self.base)
            write_json(part / "adapter.json", self.meta | {"config": self.config.model_dump(mode="json")})


def saved_config(folder: Path) -> tuple[AdapterConfig, dict[str, Any]]:
    """Return the config of a saved adapter, and the content of its adapter.json.

    Raises:
        BadSpec: it cannot be read, or names no adapter.
    """
    check_alone(folder, "adapter_config.json")
    meta = read_json(folder / "adapter.json")
    fields = meta.get("config")
    if not isinstance(fields, dict) or "type" not in fields:
        raise BadSpec(f"{folder / 'adapter.json'} names no adapter: its config has no type. Save the adapter again.")
    return parse(get_adapter(str(fields["type"])).config, fields, f"{folder / 'adapter.json'}: "), meta


def read_saved(folder: str | Path) -> Saved:
    """Read a folder written by `save_adapter`.

    Raises:
        BadSpec: a file is missing or damaged.
    """
    folder = Path(folder)
    config, meta = saved_config(folder)
    base = read_json(folder / "base.json") if (folder / "base.json").is_file() else {}
    return Saved(config, read_tensors(folder / "adapter.safetensors"), meta, base, str(folder))
