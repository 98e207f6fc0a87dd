"""Convert adapters to and from folders of peft.

The name, fields and tensors of a method in peft are defined in its own file (`peft_type`, `to_peft`, `from_peft`,
`load_peft`). This module has what they share: target modules, file names, and checks that nothing is silently dropped:
every module that the config names has its tensors, every tensor belongs to such a module, and all are finite.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from llm_adapters_lab.core import placement, weights
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.matrix_hosts import MatrixHost
from llm_adapters_lab.core.modifiers.base import in_full
from llm_adapters_lab.core.peft_experts import stack, unstack
from llm_adapters_lab.core.registry import all_adapters, get_adapter, token_trainer
from llm_adapters_lab.core.sites import OUTER
from llm_adapters_lab.core.sublayers import base_modules
from llm_adapters_lab.core.tensor_files import check_alone, check_values, read_tensors, write_tensors
from llm_adapters_lab.core.vocabulary import extended, new_ids, new_tokens
from llm_adapters_lab.errors import BadSpec, CannotConvert, EmptyPlacement, StateMismatch, listed
from llm_adapters_lab.files import read_json, write_json, writing_folder
from llm_adapters_lab.privacy import pickles

ROOT = "base_model.model."
# Parts of names that torch.compile, DDP, FSDP and gradient checkpointing add to those of the modules.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Fields of a peft config that the tensors or the base determine, or that only matter in training.
_NEUTRAL = set(
    "peft_type auto_mapping base_model_name_or_path revision inference_mode peft_version target_modules "
    "target_parameters exclude_modules layers_to_transform layers_pattern feedforward_modules megatron_core "
    "ensure_weight_tying modules_to_tie target_modules_to_tie "
    "runtime_config qalora_group_size num_layers token_dim num_attention_heads".split()
)
# LoRA's matrices at an embedding, which peft transposes: there, A (r, V) is B^T and B (d, r) is A^T.
_AT_EMBEDDING = (("lora_A.weight", "lora_embedding_B"), ("lora_B.weight", "lora_embedding_A"))
_SIZES = {"num_layers", "token_dim", "num_attention_heads"}
_USUAL = {"task_type": "CAUSAL_LM", "num_transformer_submodules": 1, "bias": "none"}
_INSTEAD = "Keep it in the lab's own format: `export --format lab`."


def to_peft(injection: Injection, folder: str | Path, base: str = "", tokenizer: Any = None) -> None:
    """Save an adapter as a folder that `peft.PeftModel.from_pretrained` loads; several parts as folders 0, 1, … in it.

    Args:
        injection: the adapter; it stays in the model.
        folder: created if necessary.
        base: name of the base, saved as base_model_name_or_path.
        tokenizer: saved too if tokens were added to the base, which `PeftModel` needs resized to their number.

    Raises:
        CannotConvert: peft does not have the method, or does not support it at one of the sites.
        BadSpec: the adapter has been ejected or merged, or the folder holds one in the lab's own format.
        StateMismatch: it holds inf or nan.
        CannotWrite: the folder cannot be written. After any error, what was there before is still there.
    """
    injection.state_dict()  # raises if there is none
    if (parts := injection.config.parts) != (injection.config,):
        if unknown := next((part.type for part in parts if not get_adapter(part.type).cls.peft_type), ""):
            of = f"{injection.config.type!r} with its part {unknown!r}"
            raise CannotConvert(f"peft has no method like {of}. {_INSTEAD}")
        with writing_folder(Path(folder)) as whole:
            for number in range(len(parts)):
                to_peft(injection.part(number), whole / str(number) if len(parts) > 1 else whole, base, tokenizer)
        return
    kind = injection.config.type
    if not (peft_type := get_adapter(kind).cls.peft_type):
        raise CannotConvert(f"peft has no method like {kind!r}. {_INSTEAD}")
    config: dict[str, Any] = {"peft_type": peft_type, "task_type": "CAUSAL_LM"}
    config |= {"base_model_name_or_path": base or None, "inference_mode": True}
    by_site: dict[str, dict[str, torch.Tensor]] = {}
    parameters: list[str] = []
    try:
        rows = token_trainer().export_rows(injection, config)
        for key, adapter in injection.adapters.items():
            if adapter.for_tokens:
                continue
            with in_full(adapter):
                fields, tensors = adapter.to_peft(injection.config)
            config |= fields
            if key in injection.sites and injection.sites[key].role == "embed":
                tensors = {new: tensors[old].T for old, new in _AT_EMBEDDING}
            by_site[key] = tensors
        by_module, parameters = stack(injection, by_site, config)
        by_module |= rows
    except CannotConvert as error:
        raise CannotConvert(f"{error} {_INSTEAD}") from None
    tensors = {
        (f"{ROOT}{path}." if path else "") + name: tensor.detach().clone().contiguous()
        for path, own in by_module.items()
        for name, tensor in own.items()
    }
    if by_site and injection.sites:
        targets = _targets(injection, at_inputs="feedforward_modules" in config)
        if not config.pop("fan_in_fan_out", True) and targets.pop("fan_in_fan_out"):
            raise CannotConvert(f"peft cannot put {kind!r} at a projection whose weight is transposed. {_INSTEAD}")
        config |= targets
    if parameters:
        config["target_parameters"] = parameters
    check_values(tensors, f"The adapter {injection.name!r}")
    check_alone(Path(folder), "adapter.json")
    if rows and tokenizer is None and new_tokens(injection.model):
        raise BadSpec("The base has new tokens: pass its tokenizer, to be saved with them.")
    with writing_folder(Path(folder)) as part:
        write_tensors(part / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(part / "adapter_config.json", config)
        if rows and tokenizer is not None:
            tokenizer.save_pretrained(part)


def _targets(injection: Injection, *, at_inputs: bool) -> dict[str, Any]:
    """Return the fields that name the adapted modules; `at_inputs`: peft supports the method at inputs too."""
    model, kind = injection.model, injection.config.type
    sites = [site for key, site in injection.sites.items() if not isinstance(injection.host(key), MatrixHost)]
    sites = [site for site in sites if site.role != "tokens"]
    paths = [site.path for site in sites]
    inside = [site.path for site in sites if site.side == "in"]
    if inside and not at_inputs:
        raise CannotConvert(
            f"peft cannot put {kind!r} at an input, but here it is at the input of {inside[0]}. {_INSTEAD}"
        )
    for path in paths:
        if weights.dims(host := model.get_submodule(path)) is None and not isinstance(host, nn.Embedding):
            raise CannotConvert(f"peft puts {kind!r} at projections only, and {path} is none. {_INSTEAD}")
        if paths.count(path) > 1:
            raise CannotConvert(f"peft cannot put {kind!r} at both input and output of {path}. {_INSTEAD}")
    targets, inner = _shortest(model, paths), _shortest(model, inside)
    if not set(inner) <= set(targets):  # peft requires feedforward_modules to be a subset of target_modules
        targets, inner = paths, inside
    transposed = any(weights.is_transposed(model.get_submodule(path)) for path in paths)
    fields = {"target_modules": targets, "fan_in_fan_out": transposed}
    fields |= {"ensure_weight_tying": True} if any(site.tied for site in sites) else {}
    return fields | {"feedforward_modules": inner} if at_inputs else fields


def _shortest(model: nn.Module, paths: list[str]) -> list[str]:
    """Return the last components of module paths if these select the same modules, else the paths."""
    ends = sorted({path.rpartition(".")[2] for path in paths})
    selected = {name for name, m in model.named_modules() if name.rpartition(".")[2] in ends and weights.dims(m)}
    return ends if selected == set(paths) else paths


def from_peft(model: nn.Module, folder: str | Path, *, name: str = "default", tokenizer: Any = None) -> Injection:
    """Put an adapter saved by peft into a model; after an error the model is unchanged.

    Args:
        model: the base that it was trained on; peft saves no fingerprint, so this is not checked.
        folder: written by `PeftModel.save_pretrained`.
        name: as in `inject`.
        tokenizer: of the base; tokens that it lacks and the tokenizer in the folder has are added to it and the model.

    Raises:
        BadSpec: the folder has no readable adapter.
        CannotConvert: the lab does not have the method or one of its features; the message names it.
        StateMismatch: the tensors do not fit the model; the message lists the differences.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / "adapter_config.json"):
        raise BadSpec(f"{folder} holds no adapter: neither adapter.json nor adapter_config.json is there.")
    if not (folder / "adapter_model.safetensors").is_file():
        raise CannotConvert(
            f"{folder} has no adapter_model.safetensors (pickles here: {pickles(folder)}). Pickled weights are never "
            "opened, since they can run code. Save the adapter again where you trust it."
        )
    fields, tensors = read_json(folder / "adapter_config.json"), read_tensors(folder / "adapter_model.safetensors")
    check_values(tensors, f"{folder} cannot be read")
    by_module = _by_module(model, tensors)
    named: list[str] = []
    if fields.get("target_parameters"):
        projections = {site.path: site for site in Anatomy.of(model).projections}
        by_module, named = unstack(model, by_module, fields, projections)
    for own in by_module.values():
        own |= {old: own.pop(new).T for old, new in _AT_EMBEDDING if new in own}
    rows = token_trainer().read_rows(model, by_module, fields)
    ids = {number for own in rows.values() for number in own}
    with extended(model, tokenizer, new_tokens(model) or token_trainer().texts_of(folder, ids, tokenizer)) as larger:
        config = _config(model, fields, by_module, folder, named)
        injection = inject(model, config, name=name, tokenizer=larger, tokens=sorted(ids | set(new_ids(model))))
        injection.other_base = ["unknown, since folders of peft have no fingerprint of the base"]
        try:
            _load(injection, by_module, fields)
            token_trainer().load_rows(injection, rows)
        except BaseException:
            injection.eject()
            raise
    return injection


def _by_module(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Group tensors by the path of their module, "" for the whole model."""
    modules = {path for path, _ in base_modules(model)}
    result: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        parts = [part for part in key.split(".") if part not in _WRAPPERS]
        while parts[:2] == ROOT.split(".")[:2]:
            parts = parts[2:]
        end = next((i for i in range(len(parts), 0, -1) if ".".join(parts[:i]) in modules), 0)
        if not end and ROOT in key:
            raise StateMismatch(f"The saved tensor {key} belongs to no module of this {type(model).__name__}.")
        own, name = result.setdefault(".".join(parts[:end]), {}), ".".join(parts[end:])
        if name in own:
            raise StateMismatch(f"The saved tensor {key} occurs twice, under two names. Nothing was loaded.")
        own[name] = tensor
    return result


def _config(
    model: nn.Module, fields: dict[str, Any], by_module: dict[str, Any], folder: Path, matrices: list[str]
) -> AdapterConfig:
    """Return the lab's config for a peft config; every field that cannot be converted is an error."""
    kind = fields.get("peft_type")
    for entry in all_adapters().values():
        if entry.cls.peft_type and entry.cls.peft_type == kind:
            rest = dict(fields)
            try:
                own = entry.cls.from_peft(rest)
            except KeyError as error:
                raise CannotConvert(f"{folder}: the config of {kind} has no {error}. Nothing was loaded.") from None
            if own is not None:
                break
    else:
        known = sorted({entry.cls.peft_type for entry in all_adapters().values()} - {""})
        raise CannotConvert(f"{folder}: the lab has no counterpart of peft's {kind}. It reads {', '.join(known)}.")
    foreign = [f"{k} = {v!r}" for k, v in rest.items() if v and k not in _NEUTRAL and v != _USUAL.get(k)]
    if foreign:
        raise CannotConvert(f"{folder}: no counterpart in the lab for {'; '.join(foreign)}. Nothing was loaded.")
    at = _placement(model, fields, by_module, folder, matrices) if entry.placed else ""
    try:
        return entry.config(type=entry.name, at=at, **own)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors()]
        raise CannotConvert(f"{folder}: not possible in the lab: {'; '.join(faults)}. Nothing was loaded.") from None


def _placement(
    model: nn.Module, fields: dict[str, Any], by_module: dict[str, Any], folder: Path, matrices: list[str]
) -> str:
    """Return the placement that selects the modules that have tensors; they must be those that the config names."""
    feedforward: Any = fields.get("feedforward_modules") or []
    paths = [path for path in by_module if path]
    try:
        if isinstance(feedforward, str):
            inside = [path for path in paths if re.fullmatch(feedforward, path)]
        else:
            inside = [path for path in paths if path.endswith(tuple(feedforward))]
        named = [*_targeted(model, fields), *matrices]
        if fields.get("ensure_weight_tying"):
            named += [site.path for site in Anatomy.of(model).embeddings if site.tied and site.path not in named]
    except (TypeError, re.error) as error:
        raise CannotConvert(
            f"{folder}: target_modules = {fields.get('target_modules')!r:.200} and the fields beside it do not say "
            f"which modules are adapted: {error}. Nothing was loaded."
        ) from None
    outside = [path for path in paths if path not in inside]
    anatomy = Anatomy.of(model)
    try:
        terms = [placement.describe(anatomy, part, side) for part, side in ((outside, "out"), (inside, "in")) if part]
    except EmptyPlacement as error:
        known = {site.path for site in anatomy.projections}
        names = [f"{path}.{name}" for path in paths if path not in known for name in by_module[path]]
        raise CannotConvert(
            f"{folder} adapts modules where the lab puts no adapter: {', '.join(names[:8])}. {error} "
            "Nothing was loaded."
        ) from None
    faults = [f"{path} has no tensors" for path in named if path not in paths]
    faults += [f"{path} has tensors and is not named" for path in paths if path not in named]
    if faults:
        raise StateMismatch(
            f"{folder} is not whole: its config names {len(named)} modules, its tensors are of {len(paths)}: "
            f"{listed(faults)}. Save the adapter again. Nothing was loaded."
        )
    return "+".join(terms)


def _targeted(model: nn.Module, fields: dict[str, Any]) -> list[str]:
    """Return the paths of the modules that a peft config names, by the rules of peft.

    Raises:
        TypeError: a field is missing or has another type.
        re.error: a pattern is no regular expression.
    """
    targets: Any = fields.get("target_modules")
    excluded, layers = fields.get("exclude_modules") or (), fields.get("layers_to_transform")
    layers = layers if isinstance(layers, list) else [] if layers is None else [layers]
    lists: Any = fields.get("layers_pattern") or ()
    lists = [rf"(?:^|.*?\.){name}" for name in ([lists] if isinstance(lists, str) else lists)] or [r".*?\.[^.]*"]
    found, head = [], getattr(model, "get_output_embeddings", lambda: None)()
    for path, module in base_modules(model):
        if isinstance(targets, str) and targets.lower() == "all-linear":
            chosen = weights.dims(module) is not None and module is not head
        else:
            chosen = _named(path, targets)
        if chosen and layers and not isinstance(targets, str) and path not in targets:
            indices = (re.match(rf"{name}\.(\d+)\.", path) for name in lists)
            chosen = next((int(index[1]) for index in indices if index), None) in layers
        if path and chosen and not _named(path, excluded):
            found.append(path)
    return found


def _named(path: str, names: str | Iterable[str]) -> bool:
    """Return whether a path matches a regular expression, or is or ends in one of several names."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _load(injection: Injection, by_module: dict[str, dict[str, torch.Tensor]], fields: dict[str, Any]) -> None:
    own = {site.path for site in injection.sites.values()} or {""}
    faults = [f"unexpected {path} {name}" for path in by_module if path not in own for name in by_module[path]]
    pair = [by_module.get(site.path, {}) for site in injection.sites.values() if site.tied and site.role in OUTER]
    if any(name not in pair[1] or not tensor.equal(pair[1][name]) for name, tensor in (pair or [{}])[0].items()):
        raise CannotConvert("Embedding and head share their weight, but are adapted apart. Nothing was loaded.")
    for key, adapter in injection.adapters.items():
        if adapter.for_tokens:
            continue
        path = injection.sites[key].path if key in injection.sites else ""
        given = by_module.get(path, {})
        try:
            sizes, wanted = adapter.to_peft(injection.config)
            if given.keys() == wanted.keys():
                given = adapter.read_peft(given, fields, path)
        except CannotConvert as error:
            raise CannotConvert(f"The saved tensors cannot be read. {error} Nothing was loaded.") from None
        for name in sorted(_SIZES & sizes.keys()):
            if fields.get(name) not in (None, sizes[name]):
                faults.append(f"{name} is {fields[name]}, but here {sizes[name]}")
        faults += [f"missing {path} {name}" for name in wanted if name not in given]
        faults += [f"unexpected {path} {name}" for name in given if name not in wanted]
        if given.keys() == wanted.keys():
            try:
                adapter.load_peft(given)
            except (RuntimeError, IndexError) as error:  # either may report a wrong shape
                faults.append(f"{path or 'the adapter'}: {str(error).splitlines()[-1].strip().rstrip('.')}")
    if faults:
        raise StateMismatch(f"The saved tensors do not fit: {listed(faults)}. Nothing was loaded.")
