"""What comes from outside is looked at before a library opens it: paths and model folders.

Weights are safetensors (or GGUF). A pickle can run code when it is opened, so none ever is, whoever points to it.
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
    """Refuse a model whose files would make transformers open something else than the safetensors of a base.

    Args:
        source: folder or hub id.
        base: as in a spec, for the message.
        config: of the model, as transformers has read it.
        weights: False for a GGUF file, which holds them itself.

    Raises:
        ModelUnavailable: the message says what was found and not opened.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(source):
        raise ModelUnavailable(
            f"{base} holds an adapter of peft, adapter_config.json, which would be loaded along. Name the base of it, "
            "and load the adapter with load_adapter; or move it out."
        )
    code = getattr(config, "_attn_implementation", None)
    if isinstance(code, str) and "/" in code:
        raise ModelUnavailable(f"{base} asks in its config.json for code of {code}, which is not run. Take it out.")
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
    # A folder with a configuration alone is enough to count and to look; loading it says what is missing.
    if os.path.isdir(source) and pickles(source) != "none" and not any(Path(source).rglob("*.safetensors")):
        raise ModelUnavailable(
            f"{base} holds no safetensors weights. What is pickled is never opened, since that can run code; here it "
            f"is {pickles(source)}. Save the model anew with save_pretrained, where you trust it."
        )


def _check_names(base: str, where: str, names: Iterable[Any]) -> None:
    """Refuse weights under any name but that of a safetensors file below the folder."""
    for name in names:
        path = PurePosixPath(name if isinstance(name, str) else "")
        if path.suffix != ".safetensors" or path.is_absolute() or ".." in path.parts:
            raise ModelUnavailable(f"{base} is not loaded: its {where} points to {name!r}, which is not opened.")
