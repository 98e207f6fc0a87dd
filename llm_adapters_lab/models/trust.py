"""Check a model folder before a library opens it.

Weights are read from safetensors or GGUF files. Unpickling can run code, so no pickle is ever opened, whatever file
refers to it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from llm_adapters_lab.errors import ModelUnavailable
from llm_adapters_lab.privacy import pickles

INDEX = "model.safetensors.index.json"


def check_model(source: str, base: str, config: Any, *, weights: bool = True) -> None:
    """Refuse a model whose files would make transformers open anything but the safetensors of a base.

    Args:
        source: folder or hub id.
        base: the base as given in a spec, for messages.
        config: configuration of the model, as read by transformers.
        weights: check the weights too; False for a GGUF file, which contains them.

    Raises:
        ModelUnavailable: the message names the file that was found and not opened.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(source):
        raise ModelUnavailable(
            f"{base} contains a peft adapter (adapter_config.json), which would be loaded too. Give the adapter's base "
            "and load the adapter with load_adapter, or move it out of the folder."
        )
    code = getattr(config, "_attn_implementation", None)
    if isinstance(code, str) and "/" in code:
        raise ModelUnavailable(f"The config.json of {base} asks for code of {code}, which is not run. Remove it.")
    if weights:
        _check_weights(source, base, getattr(config, "transformers_weights", None) or INDEX)


def _check_weights(source: str, base: str, named: Any) -> None:
    from transformers.utils.hub import cached_file

    _check_names(base, "config.json", [str(named).removesuffix(".index.json")])
    if str(named).endswith(".index.json"):
        quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
        if index := cached_file(source, named, **quiet):
            parts = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            _check_names(base, named, dict.fromkeys(parts.values()))
    # A folder with only a configuration is enough for anatomy and counts; loading it reports the missing weights.
    if os.path.isdir(source) and pickles(source) != "none" and not any(Path(source).rglob("*.safetensors")):
        raise ModelUnavailable(
            f"{base} has no safetensors weights. Pickled files (here {pickles(source)}) are never opened, since that "
            "can run code. Save the model again with save_pretrained, where you trust it."
        )


def _check_names(base: str, where: str, names: Iterable[Any]) -> None:
    """Refuse weights that are not in a safetensors file below the folder."""
    for name in names:
        path = PurePosixPath(name if isinstance(name, str) else "")
        if path.suffix != ".safetensors" or path.is_absolute() or ".." in path.parts:
            raise ModelUnavailable(f"{base} is not loaded: its {where} points to {name!r}, which is not opened.")
