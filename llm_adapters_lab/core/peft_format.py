"""Adapters to and from peft, and merged models as plain Hugging Face folders.

What an adapter is called in peft stands in its own file (`peft_type`, `to_peft`, `from_peft`, `load_peft`); here is
what all have in common: which modules, which file names, and that nothing is dropped in silence.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from llm_adapters_lab.core import placement, weights
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import all_adapters, get_adapter
from llm_adapters_lab.core.tensor_files import read_tensors, write_tensors
from llm_adapters_lab.errors import BadSpec, CannotExport, CannotImport, EmptyPlacement, StateMismatch
from llm_adapters_lab.files import read_json, write_json
from llm_adapters_lab.privacy import pickles

ROOT = "base_model.model."
# Fields of a peft config that say nothing the tensors or the base do not say, or that only matter in training.
_NEUTRAL = set(
    "peft_type auto_mapping base_model_name_or_path revision inference_mode peft_version target_modules "
    "exclude_modules layers_to_transform layers_pattern feedforward_modules megatron_core runtime_config "
    "qalora_group_size num_layers token_dim num_attention_heads".split()
)
_INSTEAD = "Keep it in the lab's own format: `export --format lab`."
_USUAL = {"task_type": "CAUSAL_LM", "num_transformer_submodules": 1, "bias": "none"}


def to_peft(injection: Injection, folder: str | Path, base: str = "") -> None:
    """Save an adapter as a folder that `peft.PeftModel.from_pretrained` loads.

    Args:
        injection: what is saved; it stays in the model.
        folder: made if need be.
        base: name of the base, written as base_model_name_or_path.

    Raises:
        CannotExport: peft has no such method, or cannot put it where it sits.
    """
    kind = injection.config.type
    if not get_adapter(kind).cls.peft_type:
        raise CannotExport(f"peft has no method like {kind!r}. {_INSTEAD}")
    config: dict[str, Any] = {"peft_type": get_adapter(kind).cls.peft_type, "task_type": "CAUSAL_LM"}
    config |= {"base_model_name_or_path": base or None, "inference_mode": True}
    tensors: dict[str, torch.Tensor] = {}
    for key, adapter in injection.adapters.items():
        fields, own = adapter.to_peft(injection.config)
        config |= fields
        place = f"{ROOT}{injection.sites[key].path}." if key in injection.sites else ""
        tensors |= {place + name: tensor.detach().clone().contiguous() for name, tensor in own.items()}
    config |= _targets(injection, "feedforward_modules" in config) if injection.sites else {}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "adapter_config.json", config)


def _targets(injection: Injection, inputs: bool) -> dict[str, Any]:
    """Return the fields that tell peft which modules are adapted; `inputs`: the method may sit at their inputs too."""
    model, kind = injection.model, injection.config.type
    paths = [site.path for site in injection.sites.values()]
    inside = [site.path for site in injection.sites.values() if site.side == "in"]
    if inside and not inputs:
        raise CannotExport(f"peft cannot put {kind!r} at an input, and here it sits at that of {inside[0]}. {_INSTEAD}")
    for path in paths:
        if weights.dims(model.get_submodule(path)) is None:
            raise CannotExport(f"peft puts {kind!r} at projections only, and {path} is none. {_INSTEAD}")
        if paths.count(path) > 1:
            raise CannotExport(f"peft cannot put {kind!r} at input and output of the one module {path}. {_INSTEAD}")
    targets, inner = _shortest(model, paths), _shortest(model, inside)
    if not set(inner) <= set(targets):  # peft wants the one list to be part of the other, word for word
        targets, inner = paths, inside
    turned = any(weights.turned(model.get_submodule(path)) for path in paths)
    return {"target_modules": targets, "fan_in_fan_out": turned} | ({"feedforward_modules": inner} if inputs else {})


def _shortest(model: nn.Module, paths: list[str]) -> list[str]:
    """Return the last parts of module paths where these mean the same modules, else the paths."""
    ends = sorted({path.rpartition(".")[2] for path in paths})
    meant = [name for name, m in model.named_modules() if name.rpartition(".")[2] in ends and weights.dims(m)]
    return ends if set(meant) == set(paths) else paths


def from_peft(model: nn.Module, folder: str | Path, *, name: str = "default", tokenizer: Any = None) -> Injection:
    """Put an adapter that peft saved into a model; after an error the model is as it was.

    Args:
        model: the base it was trained on. peft keeps no fingerprint of it, so that is for you to know.
        folder: of `PeftModel.save_pretrained`.
        name: as in `inject`.
        tokenizer: as in `inject`.

    Raises:
        BadSpec: the folder holds no readable adapter.
        CannotImport: the method or a feature of it has no counterpart here; the message names it.
        StateMismatch: the tensors do not fit the model.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / "adapter_config.json"):
        raise BadSpec(f"{folder} holds no adapter: neither adapter.json nor adapter_config.json is there.")
    if not (folder / "adapter_model.safetensors").is_file():
        raise CannotImport(
            f"{folder} has no adapter_model.safetensors. Pickled weights are not opened, since that can run code; here "
            f"they are {pickles(folder)}. Save the adapter anew, where you trust it."
        )
    fields, tensors = read_json(folder / "adapter_config.json"), read_tensors(folder / "adapter_model.safetensors")
    if not isinstance(fields, dict):
        raise BadSpec(f"{folder / 'adapter_config.json'} holds no JSON object but a {type(fields).__name__}.")
    by_module = _by_module(model, tensors)
    config = _config(model, fields, by_module, folder)
    injection = inject(model, config, name=name, tokenizer=tokenizer)
    try:
        _load(injection, by_module)
    except Exception:
        injection.eject()
        raise
    return injection


def _by_module(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Group tensors by the path of the module they belong to, "" for the whole model."""
    modules = {path for path, _ in model.named_modules()}
    result: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        parts = key.removeprefix(ROOT).split(".")
        ends = [i for i in range(len(parts), 0, -1) if ".".join(parts[:i]) in modules]
        if not ends and key.startswith(ROOT):
            raise StateMismatch(f"The saved tensor {key} belongs to no module of this {type(model).__name__}.")
        path = ".".join(parts[: ends[0]]) if ends else ""
        result.setdefault(path, {})[".".join(parts[ends[0] :] if ends else parts)] = tensor
    return result


def _config(model: nn.Module, fields: dict[str, Any], by_module: dict[str, Any], folder: Path) -> AdapterConfig:
    """Return the lab's config for one of peft; whatever it cannot say is an error."""
    kind, rest = fields.get("peft_type"), dict(fields)
    for entry in all_adapters().values():
        if entry.cls.peft_type and entry.cls.peft_type == kind:
            rest = dict(fields)
            try:
                own = entry.cls.from_peft(rest)
            except KeyError as error:
                raise CannotImport(f"{folder}: the config of {kind} has no {error}. Nothing was loaded.") from None
            if own is not None:
                break
    else:
        known = sorted({entry.cls.peft_type for entry in all_adapters().values()} - {""})
        raise CannotImport(f"{folder}: the lab has no counterpart of peft's {kind}. It reads {', '.join(known)}.")
    foreign = [f"{k} = {v!r}" for k, v in rest.items() if v and k not in _NEUTRAL and v != _USUAL.get(k)]
    if foreign:
        raise CannotImport(f"{folder}: no counterpart in the lab for {'; '.join(foreign)}. Nothing was loaded.")
    at = "" if not entry.placed else _placement(model, fields, by_module, folder)
    try:
        return entry.config(type=entry.name, at=at, **own)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors()]
        raise CannotImport(f"{folder}: not possible in the lab: {'; '.join(faults)}. Nothing was loaded.") from None


def _placement(model: nn.Module, fields: dict[str, Any], by_module: dict[str, Any], folder: Path) -> str:
    """Return the placement that means the modules for which there are tensors."""
    ending: Any = fields.get("feedforward_modules") or []
    paths = [path for path in by_module if path]
    if isinstance(ending, str):
        inside = [path for path in paths if re.fullmatch(ending, path)]
    else:
        inside = [path for path in paths if path.endswith(tuple(ending))]
    outside = [path for path in paths if path not in inside]
    try:
        anatomy = Anatomy.of(model)
        terms = [placement.describe(anatomy, part, side) for part, side in ((outside, "out"), (inside, "in")) if part]
    except EmptyPlacement as error:
        known = {site.path for site in anatomy.projections}
        names = [f"{path}.{name}" for path in paths if path not in known for name in by_module[path]]
        raise CannotImport(
            f"{folder} adapts modules where the lab puts no adapter: {', '.join(names[:8])}. {error} "
            "Nothing was loaded."
        ) from None
    return "+".join(terms)


def _load(injection: Injection, by_module: dict[str, dict[str, torch.Tensor]]) -> None:
    own = {site.path for site in injection.sites.values()} or {""}
    faults = [f"unexpected {path} {name}" for path in by_module if path not in own for name in by_module[path]]
    for key, adapter in injection.adapters.items():
        path = injection.sites[key].path if key in injection.sites else ""
        given, wanted = by_module.get(path, {}), adapter.to_peft(injection.config)[1]
        faults += [f"missing {path} {name}" for name in wanted if name not in given]
        faults += [f"unexpected {path} {name}" for name in given if name not in wanted]
        if given.keys() == wanted.keys():
            try:
                adapter.load_peft(given)
            except (RuntimeError, IndexError) as error:  # both stand for a wrong shape
                faults.append(f"{path or 'the adapter'}: {str(error).splitlines()[-1].strip().rstrip('.')}")
    if faults:
        raise StateMismatch(f"The saved tensors do not fit: {'; '.join(faults[:8])}. Nothing was loaded.")
