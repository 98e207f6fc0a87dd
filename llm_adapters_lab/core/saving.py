"""Save a trained adapter, and load it into the base that it was trained on.

<folder>/adapter.safetensors  the tensors of `Injection.saved_tensors`
         adapter.json         base, config, version of the lab, and the tokens that were added to the base
         base.json            fingerprint of the base
"""

from __future__ import annotations

import copy
import os
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from llm_adapters_lab._version import __version__
from llm_adapters_lab.core.fingerprint import check_fingerprint, fingerprint
from llm_adapters_lab.core.injection import Injection, inject, injections
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.peft_format import from_peft
from llm_adapters_lab.core.quantized import scheme
from llm_adapters_lab.core.saved_adapters import Saved, read_saved
from llm_adapters_lab.core.tensor_files import check_alone, check_values, write_tensors
from llm_adapters_lab.core.vocabulary import extended, new_ids, new_tokens
from llm_adapters_lab.errors import BadSpec, CannotMerge, WrongBase, listed
from llm_adapters_lab.files import check_shard_size, share, write_json, writing_folder


def save_adapter(
    injection: Injection, folder: str | Path, base: str = "", base_print: dict[str, Any] | None = None
) -> None:
    """Save an adapter; it stays in the model.

    Args:
        injection: the adapter.
        folder: created if necessary.
        base: name of the base, as in `RunSpec.base`.
        base_print: fingerprint of the base; computed by default.

    Raises:
        BadSpec: the adapter has been ejected or merged, or the folder holds one in the format of peft.
        StateMismatch: it holds inf or nan, so that it could not be loaded again.
        CannotWrite: the folder cannot be written. After any error, what was there before is still there.
    """
    numbers = {name: tensor for name, tensor in injection.state_dict().items() if tensor.is_floating_point()}
    check_values(numbers, f"The adapter {injection.name!r}")
    added = {"tokens": new_tokens(injection.model), "token_ids": injection.tokens}
    meta: dict[str, Any] = {
        "base": base,
        "quantization": scheme(injection.model),
        "lab": __version__,
        "config": injection.config.model_dump(mode="json"),
    }
    meta |= {key: value for key in ("other_base", "prompt") if (value := getattr(injection, key))}
    meta |= {name: value for name, value in added.items() if value}
    check_alone(Path(folder), "adapter_config.json")
    with writing_folder(Path(folder)) as part:
        write_tensors(part / "adapter.safetensors", injection.saved_tensors())
        write_json(part / "base.json", base_print or fingerprint(injection.model))
        write_json(part / "adapter.json", meta)


def load_adapter(
    model: nn.Module, folder: str | Path, *, name: str = "default", tokenizer: Any = None, check_base: bool = True
) -> Injection:
    """Put a saved adapter into a model; after an error the model is unchanged.

    Args:
        model: the base that it was trained on.
        folder: written by `save_adapter` or by peft.
        name: as in `inject`.
        tokenizer: of the base; it gets the tokens that were added to the base for the adapter, as the model does.
        check_base: False allows any base of the same shape. What differs, and what could not be compared, is kept in
            `Injection.other_base`, and saved.

    Raises:
        BadSpec: the folder has no adapter, one in each of two formats, or files that cannot be read.
        WrongBase: the model is another base; the message lists the differences.
        StateMismatch: the tensors do not fit; the message lists the differences.
        CannotConvert: the adapter is one of peft, with a feature that the lab does not have.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / "adapter.json"):
        return from_peft(model, folder, name=name, tokenizer=tokenizer)
    saved = read_saved(folder)
    config, state, meta = saved.config, saved.tensors, saved.meta
    if check_base:
        _check_scheme(saved, model)
    faults = [str(fault) for fault in meta.get("other_base", [])]
    tokens, rows = meta.get("tokens", {}), meta.get("token_ids", [])
    if not (isinstance(tokens, dict) and all(isinstance(start, str) for start in tokens.values())):
        raise BadSpec(f"{folder / 'adapter.json'}: tokens is no mapping of texts to start words. Save it again.")
    if not (isinstance(rows, list) and all(type(row) is int and row >= 0 for row in rows)):
        raise BadSpec(f"{folder / 'adapter.json'}: token_ids is no list of ids. Save the adapter again.")
    with extended(model, tokenizer, tokens, again=True) as larger:
        if saved.base:
            faults += check_fingerprint(saved.base, model, folder, larger, refuse=check_base)
        else:
            faults.append("unknown, since the folder has no base.json")
        if tokens and rows and not {*new_ids(model)} <= {*rows}:
            here, there = (listed([*map(str, ids)], gap=", ") for ids in (new_ids(model), rows))
            raise WrongBase(
                f"The new tokens have the ids {here} here, but the adapter in {folder} has rows of {there}. Pass the "
                "tokenizer of the base that it was trained on."
            )
        injection = inject(model, config, name=name, tokenizer=larger, tokens=rows)
        injection.other_base, injection.prompt = faults, dict(meta.get("prompt", {}))
        try:
            injection.load_saved(state)
        except BaseException:
            injection.eject()
            raise
    return injection


def _check_scheme(saved: Saved, model: nn.Module) -> None:
    if (before := saved.meta.get("quantization", "none")) != (now := scheme(model)):
        raise WrongBase(
            f"The adapter in {saved.name} was trained on a base with quantization: {before}, and this one has {now}. "
            "Load such a base, or use check_base=False; an adapter compensates for the quantisation error of its base."
        )


def check_base_of(saved: Saved, model: nn.Module, tokenizer: Any = None) -> None:
    """Check that a model, which may be without weights, is the base of a saved adapter.

    Raises:
        WrongBase: it is another one.
    """
    if next(model.parameters()).device.type != "meta":
        _check_scheme(saved, model)
    if saved.base:
        check_fingerprint(saved.base, model, Path(saved.name), tokenizer)


def save_merged(
    injection: Injection,
    folder: str | Path,
    tokenizer: Any = None,
    max_shard_size: str = "5GB",
    *,
    dequantize: bool = False,
    round: bool = False,
) -> None:
    """Merge an adapter into its base, and save the result for `AutoModelForCausalLM.from_pretrained`.

    Args:
        injection: the adapter; its model is merged after the folder is written, and unchanged after an error.
        folder: new or empty.
        tokenizer: saved with the model.
        max_shard_size: maximum size of a safetensors file, e.g. "5GB".
        dequantize: as in `merge`.
        round: as in `merge`; what rounding took is also written to merge.json.

    Raises:
        CannotMerge: see `merge`; or the model has other adapters, which would be saved too.
        BadSpec: the folder is not empty, or the size is invalid.
        CannotWrite: the folder cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadSpec(f"{folder} exists already. Name a new folder.")
    check_shard_size(max_shard_size)
    if tokenizer is None and (tokens := new_tokens(injection.model)):
        raise BadSpec(f"The base has new tokens, such as {min(tokens)!r}: pass its tokenizer, to be saved with it.")
    if others := [name for name in injections(injection.model) if name != injection.name]:
        raise CannotMerge(f"The model also carries {', '.join(others)}, which a plain folder cannot hold. Eject first.")
    with writing_folder(folder) as part:
        twin = _twin(injection)
        model: Any = merge(twin, dequantize=dequantize, round=round)
        try:
            model.save_pretrained(part, max_shard_size=max_shard_size)
        except RuntimeError as error:  # modules share a tensor that the class of the model keeps apart
            raise CannotMerge(f"The merged model cannot be saved: {' '.join(str(error).split()):.400}") from None
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        config, found = injection.config.model_dump(mode="json"), {"rounding": vars(twin.rounding)}
        found |= {"prompt": injection.prompt} if injection.prompt else {}
        write_json(part / "merge.json", {"lab": __version__, "config": config} | found)
        for file in part.glob("*.safetensors"):
            share(file)
    del model, twin  # the merged weights
    merge(injection, dequantize=dequantize, round=round)


def _twin(injection: Injection) -> Injection:
    """Return the injection of a copy of its model that shares all tensors but the parameters of the hosts."""
    model = injection.model
    if injections(model).get(injection.name) is not injection:
        raise CannotMerge(f"The adapter {injection.name!r} has been ejected or merged already.")
    own = {id(p) for key in injection.adapters for p in injection.host(key).parameters(recurse=False)}
    shared: dict[int, Any] = {id(t): t for t in chain(model.parameters(), model.buffers()) if id(t) not in own}
    return injections(copy.deepcopy(model, shared))[injection.name]
