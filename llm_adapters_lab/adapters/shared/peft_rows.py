"""Rows of tokens in folders of peft.

They are tensors `trainable_tokens_delta` (n, d), which hold the rows themselves, not a change of them. Beside LoRA they
are named by `trainable_token_indices`; of peft's other methods, only TRAINABLE_TOKENS has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.adapters.shared.token_rows import TokenRows
from llm_adapters_lab.core import weights
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.errors import CannotConvert, StateMismatch, listed
from llm_adapters_lab.files import read_json

Tensors = dict[str, torch.Tensor]
_DELTA, _INSIDE = "trainable_tokens_delta", "token_adapter."
ALONE = "TRAINABLE_TOKENS"
"""peft's method that trains rows and nothing else; its other methods do not have them, except for LoRA."""


def export_rows(injection: Injection, config: dict[str, Any]) -> dict[str, Tensors]:
    """Return the rows of tokens by module path, and name them in peft's config.

    Raises:
        CannotConvert: peft's method has no such rows, or peft would drop the bias of the head.
    """
    rows = {key: a for key, a in injection.adapters.items() if isinstance(a, TokenRows)}
    sites, kind = [injection.sites[key] for key in rows], config["peft_type"]
    if not rows:
        return {}
    if kind not in ("LORA", ALONE):
        raise CannotConvert(f"peft trains rows of new tokens beside LoRA only, not beside {kind}.")
    if any(weights.bias(injection.host(key)) is not None for key in rows if hasattr(injection.host(key), "bias")):
        raise CannotConvert(f"peft leaves out the bias of {sites[-1].path} where it trains rows of tokens.")
    ids = next(iter(rows.values())).ids.tolist()
    paths = [site.path for site in sites]
    if kind == ALONE:
        config |= {"token_indices": ids, "target_modules": paths[:1] if sites[0].tied else paths}
        return {path: {_DELTA: a.rows} for path, a in zip(paths, rows.values(), strict=True)}
    config["trainable_token_indices"] = ids if sites[0].tied else dict.fromkeys(paths, ids)
    own = list(zip(paths, rows.values(), strict=True))[: 1 if sites[0].tied else None]
    return {path: {_INSIDE + _DELTA: a.rows} for path, a in own}


def read_rows(model: nn.Module, by_module: dict[str, Tensors], fields: dict[str, Any]) -> dict[str, dict[int, Any]]:
    """Take the rows of tokens out of the tensors and the config of a folder, and return them by path, then by id.

    peft saves a resized embedding whole. It must equal the base's in all rows but a few, which count as trained.

    Raises:
        CannotConvert: rows are of another module, or a whole embedding is another one.
        StateMismatch: the rows are not those that the config names.
    """
    indices: Any = fields.pop("trainable_token_indices", None)
    outer = {site.path: site for site in Anatomy.of(model).embeddings}
    alone = fields.get("peft_type") == ALONE
    found: dict[str, dict[int, Any]] = {}
    for path, own in by_module.items():
        rows = own.pop(_DELTA if alone else _INSIDE + _DELTA, None)
        table = own.pop("base_layer.weight", own.pop(_INSIDE + "base_layer.weight", None))
        if (rows is not None or table is not None) and path not in outer:
            raise CannotConvert(f"The folder trains rows of {path}, where the lab trains none. Nothing was loaded.")
        if rows is not None:
            named: Any = fields.get("token_indices") if alone else indices
            if isinstance(named, Mapping):
                named = next((ids for name, ids in named.items() if f".{path}".endswith(f".{name}")), None)
            whole = isinstance(named, list) and all(type(i) is int and i >= 0 for i in named)
            if not whole or rows.shape != (len(named), outer[path].d_in):
                raise StateMismatch(f"{path} has rows {tuple(rows.shape)} for the tokens {named!r:.200}.")
            found[path] = dict(zip(named, rows, strict=True))
        if table is not None:
            found.setdefault(path, {})
            found[path] = _changed_rows(model, path, table, set(found[path])) | found[path]
    if indices and not found:
        raise StateMismatch(f"The config names rows of the tokens {indices!r:.200}, but the folder has none.")
    for path in found:
        if not by_module[path]:
            del by_module[path]
    return {path: rows for path, rows in found.items() if rows}


def _changed_rows(model: nn.Module, path: str, table: torch.Tensor, known: set[int]) -> dict[int, torch.Tensor]:
    own = weights.read(model.get_submodule(path)).detach()
    if table.shape[1:] != own.shape[1:]:
        raise CannotConvert(f"The folder has another {path}, {tuple(table.shape)} for {tuple(own.shape)}.")
    count = min(len(own), len(table))
    differs = (table[:count].to(own) != own[:count]).any(1).nonzero().flatten().tolist()
    if 8 * len(set(differs) - known) > count:
        raise CannotConvert(
            f"The folder was trained on another {path}: {len(differs)} rows differ. Nothing was loaded."
        )
    return {row: table[row] for row in differs}


def texts_of(folder: Path, ids: set[int], tokenizer: Any) -> dict[str, str]:
    """Return the texts of those tokens that a tokenizer lacks and the one in a folder has, in order of their ids.

    Raises:
        StateMismatch: they would get other ids.
    """
    if tokenizer is None or not (folder / "tokenizer.json").is_file():
        return {}
    added: Any = read_json(folder / "tokenizer.json").get("added_tokens") or []
    known = tokenizer.get_vocab()
    texts = {token["id"]: token["content"] for token in added if token["id"] in ids and token["content"] not in known}
    if sorted(texts) != [*range(len(tokenizer), len(tokenizer) + len(texts))]:
        named = listed([f"{texts[number]!r} (id {number})" for number in sorted(texts)], gap=", ")
        raise StateMismatch(
            f"{folder} has rows of {named}, but the next free id of the tokenizer is {len(tokenizer)}. Pass the "
            "tokenizer that is in the folder, with a base that is resized to it."
        )
    return {texts[number]: "" for number in sorted(texts)}


@torch.no_grad()
def load_rows(injection: Injection, found: Mapping[str, Mapping[int, torch.Tensor]]) -> None:
    """Write rows as returned by `read_rows` into an injection; rows that the folder lacks stay as they start.

    Raises:
        CannotConvert: embedding and head share their weight, and the folder has different rows for them.
    """
    for key, adapter in injection.adapters.items():
        if not isinstance(adapter, TokenRows):
            continue
        site, positions = injection.sites[key], {number: i for i, number in enumerate(adapter.ids.tolist())}
        others = [found[path] for path in found if site.tied and path != site.path]
        for number, row in found.get(site.path, {}).items():
            if any(number in other and not other[number].equal(row) for other in others):
                raise CannotConvert("Embedding and head share their weight, but the folder trains them apart.")
            adapter.rows[positions[number]] = row.to(adapter.rows)
