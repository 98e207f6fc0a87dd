"""Save a trained adapter and load it again, into the base it was trained on and no other.

<folder>/adapter.safetensors  the tensors of `Injection.state_dict`
         adapter.json         what they belong to: base, config, version of the lab
         base.json            a fingerprint of that base: samples of its every tensor
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from llm_adapters_lab._version import __version__
from llm_adapters_lab.config import parse
from llm_adapters_lab.core.fingerprint import _compare, fingerprint
from llm_adapters_lab.core.injection import Injection, inject, injections
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.packed import scheme
from llm_adapters_lab.core.peft_format import from_peft
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.tensor_files import read_tensors, write_tensors
from llm_adapters_lab.errors import (
    BadSpec,
    CannotMerge,
    WrongBase,
)
from llm_adapters_lab.files import read_json, share, write_json


def save_adapter(
    injection: Injection, folder: str | Path, base: str = "", base_print: dict[str, Any] | None = None
) -> None:
    """Write the three files; the adapter stays in the model.

    Args:
        injection: what is saved.
        folder: made if need be.
        base: name of the base, as in `RunSpec.base`.
        base_print: `fingerprint` of the base, where its weights are no longer at hand; default: it is taken now.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter.safetensors", injection.saved_tensors())
    write_json(folder / "base.json", base_print or fingerprint(injection.model))
    meta: dict[str, Any] = {"base": base, "quantization": scheme(injection.model), "lab": __version__}
    meta["config"] = injection.config.model_dump(mode="json")
    write_json(folder / "adapter.json", meta)


def load_adapter(
    model: nn.Module, folder: str | Path, *, name: str = "default", tokenizer: Any = None, check_base: bool = True
) -> Injection:
    """Put a saved adapter into a model; after an error the model is as it was.

    Args:
        model: the base it was trained on.
        folder: of `save_adapter`, or one of peft.
        name: as in `inject`.
        tokenizer: as in `inject`.
        check_base: False loads an adapter into another base of the same shape, at your own risk.

    Raises:
        BadSpec: the folder holds no adapter, or files that cannot be read.
        WrongBase: the model is not the base it was trained on; the message lists what differs.
        StateMismatch: the tensors do not fit; the message lists how.
        CannotImport: the folder is one of peft and has a feature that has no counterpart here.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / "adapter.json"):
        return from_peft(model, folder, name=name, tokenizer=tokenizer)
    meta = read_json(folder / "adapter.json")
    fields = meta.get("config")
    if not isinstance(fields, dict) or "type" not in fields:
        raise BadSpec(f"{folder / 'adapter.json'} names no adapter: its config has no type. Save the adapter again.")
    config = parse(get_adapter(str(fields["type"])).config, fields, f"{folder / 'adapter.json'}: ")
    state = read_tensors(folder / "adapter.safetensors")
    if check_base and (before := meta.get("quantization", "none")) != (now := scheme(model)):
        raise WrongBase(
            f"The adapter in {folder} was trained on a base with quantization: {before}, and this one has {now}. Load "
            "it that way, or with check_base=False: an adapter makes up for the rounding that it was trained with."
        )
    if check_base and (folder / "base.json").is_file():
        saved = read_json(folder / "base.json")
        try:
            _compare(saved, fingerprint(model), folder)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise BadSpec(f"{folder / 'base.json'} is no fingerprint of a base ({error!r}). Save it again.") from None
    injection = inject(model, config, name=name, tokenizer=tokenizer)
    try:
        injection.load_saved(state)
    except BaseException:
        injection.eject()
        raise
    return injection


def save_merged(
    injection: Injection,
    folder: str | Path,
    tokenizer: Any = None,
    max_shard_size: str = "5GB",
    *,
    dequantize: bool = False,
) -> None:
    """Merge an adapter into its base and save that as a folder `AutoModelForCausalLM` loads, without the lab.

    Args:
        injection: what is merged; its model is the merged one afterwards.
        folder: new or empty.
        tokenizer: saved beside the model.
        max_shard_size: largest safetensors file, e.g. "5GB".
        dequantize: as in `Injection.merge`.

    Raises:
        CannotMerge: see `Injection.merge`; or other adapters are in the model, which would be saved along.
        BadSpec: the folder exists and is not empty, or the size is not understood.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadSpec(f"{folder} exists already. Name a new folder.")
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]i?B", max_shard_size):
        raise BadSpec(f"The shard size {max_shard_size!r} is not of the form 5GB or 200MB.")
    if others := [name for name in injections(injection.model) if name != injection.name]:
        raise CannotMerge(f"The model also carries {', '.join(others)}, which a plain folder cannot hold. Eject first.")
    model: Any = merge(injection, dequantize=dequantize)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        model.save_pretrained(unfinished, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        for file in unfinished.glob("*.safetensors"):
            share(file)
        unfinished.chmod(0o755)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
