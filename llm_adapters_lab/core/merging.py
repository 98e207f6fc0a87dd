"""Merge adapters into the weights of the base: W' = W + ΔW, one module at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import quantized, weights
from llm_adapters_lab.core.anatomy import base_parameters
from llm_adapters_lab.core.hooks import restore_parameters
from llm_adapters_lab.core.injection import Injection, injections
from llm_adapters_lab.core.matrix_hosts import MatrixHost
from llm_adapters_lab.core.modifiers.base import in_full
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.core.rounding import measure, probe
from llm_adapters_lab.core.sublayers import base_modules
from llm_adapters_lab.errors import CannotMerge

Tensors = dict[str, torch.Tensor]


@torch.no_grad()
def merge(injection: Injection, *, dequantize: bool = False, round: bool = False) -> nn.Module:
    """Merge adapters into the weights of the base, remove them, and return the model.

    What rounding to the dtype of the base takes from ΔW is in `injection.rounding`, and warned of if it is noticeable.

    Args:
        injection: the adapters.
        dequantize: dequantise a quantised base, to the dtype of its other parameters.
        round: merge even if less than 90 % of ΔW survives rounding.

    Raises:
        CannotMerge: the method is not a linear change of a weight; another adapter acts on the same module; this one is
            disabled or part of a mix; the base lacks a bias, is offloaded, or is quantised without `dequantize`; or
            rounding takes too much, without `round`. The model is then unchanged.
    """
    model = injection.model
    rounding = measure(model, merged_tensors(injection, dequantize), round)  # raises before anything is written
    before = probe(model) if rounding.noticeable else None
    plain = quantized.plain_projections(model) if dequantize else {}
    replaced = {model.get_submodule(path): module for path, module in plain.items()}
    for host, changed in merged_tensors(injection, dequantize):
        weights.write(replaced.get(host, host), changed)
    injection.eject()
    if plain:
        quantized.dequantize(model, plain)
    injection.rounding = rounding.told(model, before)
    return model


def merged_tensors(injection: Injection, dequantize: bool = False) -> Iterator[tuple[nn.Module, Tensors]]:
    """Yield each module that a merge changes, with its new tensors by name, fp32, as in `weights.own_tensors`.

    Raises:
        CannotMerge: see `merge`.
    """
    _check_alone(injection)
    model = injection.model
    # Hosts that share a parameter also share its trained copy.
    tied = {key for key, site in injection.sites.items() if site.tied}
    trained = [injection.host(key) for key, adapter in injection.adapters.items() if adapter.trains_base or key in tied]
    done: set[str] = set()
    paths = {key: injection.sites[key].path if key in injection.sites else key for key in injection.adapters}
    # Trained parameters are what the others change. A change of the input multiplies one of the weight and comes last.
    turns = {"parameters": 0, "out": 1, "in": 2}
    order = sorted(
        paths, key=lambda key: (paths[key], turns[injection.sites[key].side] if key in injection.sites else 1)
    )
    for path, group in groupby(order, key=lambda key: paths[key]):
        changed: Tensors = {}
        for index, key in enumerate(keys := list(group)):
            if key in tied and injection.sites[key].part in done:
                continue  # the weight that embedding and head share changes once
            earlier = [k for k in keys[:index] if not injection.adapters[k].trains_base]
            if injection.adapters[key].reads_weight and earlier:
                raise CannotMerge(
                    f"{injection.config_of(key).type!r} at {key} computes with the weight of the base, but follows "
                    f"{injection.config_of(earlier[-1]).type!r} there. Make it the first part, or keep the adapter."
                )
            changed |= changed_tensors(injection, key, changed)
            done |= {injection.sites[key].part} if key in tied else set()
        if not changed:
            continue
        host = injection.host(key)
        check_writable(path, host, changed, injection.config.type, dequantize)
        check_unshared(model, path, host, changed, twins=trained)
        yield host, changed


def _check_alone(injection: Injection) -> None:
    """Check that an adapter is neither mixed nor disabled, and shares no module with another injection."""
    name, model = injection.name, injection.model
    if not injection.adapters:
        raise CannotMerge(f"The adapter {name!r} has been ejected or merged already.")
    for key in injection.adapters:
        chain = injection.chain(key)
        if chain.rule is not None:
            raise CannotMerge(f"Adapters are composed; undo it with `stack(model, {name!r})` first.")
        if chain.mix:
            raise CannotMerge("A mix is set; merge it with `merge_mix(model)`, or undo it with `stack(model, name)`.")
        if name not in chain.active():
            raise CannotMerge(f"The adapter {name!r} is off; switch it on with `stack(model, {name!r})` first.")
    own = {site.path for site in injection.sites.values()}
    for other in injections(model).values():
        for key, site in other.sites.items():
            if other is not injection and not own.isdisjoint({site.path, site.reader}):
                raise CannotMerge(f"{key} also carries the adapter {other.name!r}; eject it first.")


def check_writable(path: str, host: nn.Module, changed: Tensors, kind: str, dequantize: bool = False) -> None:
    """Check that the weights of a module can be overwritten.

    Raises:
        CannotMerge: they are offloaded, or quantised without `dequantize`.
    """
    if weights.is_offloaded(host):
        raise CannotMerge(f"{path} is offloaded and cannot be written to. Load the base without device_map.")
    if "weight" in changed and weights.is_quantized(host) and not dequantize:
        raise CannotMerge(
            f"{path} is quantised, and its packed weight cannot store what {kind!r} learnt: it would be rounded. "
            "Do not merge, or dequantise the base: merge(dequantize=True), --dequantize."
        )


def check_unshared(
    model: nn.Module, path: str, host: nn.Module, changed: Tensors, twins: Collection[nn.Module] = ()
) -> None:
    """Check that no module but the host at `path`, and `twins`, which may share parameters, uses what a merge changes.

    Raises:
        CannotMerge: one does, so that it would change too.
    """
    tensors = [getattr(host, name) for name in changed]
    owner, own = (host.owner[0], [host.stored]) if isinstance(host, MatrixHost) else (host, tensors)
    for other, module in base_modules(model):
        for name, p in module.named_parameters(recurse=False):
            shared = any(p is q or 0 != _address(p) == _address(q) for q in own)
            if shared and module is not owner and not (module in twins and any(p is q for q in own)):
                raise CannotMerge(
                    f"{path} and {other} share one {name}, so a merge into the first would change the second. Keep "
                    "the adapter, or give each a copy before you inject: "
                    f"module.{name} = nn.Parameter(module.{name}.detach().clone())."
                )


def _address(tensor: torch.Tensor) -> int:
    plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.device.type != "meta"
    return tensor.data_ptr() if plain else 0


@torch.no_grad()
def changed_tensors(injection: Injection, key: str, before: Tensors | None = None) -> Tensors:
    """Return the tensors of the host that the adapter of one site changes.

    Args:
        injection: the adapters.
        key: of the site.
        before: tensors of the host that other adapters of the injection have already changed.

    Raises:
        CannotMerge: see `merge`.
    """
    adapter, kind = injection.adapters[key], injection.config_of(key).type
    if adapter.merged is None:
        known = sorted(name for name, entry in all_adapters().items() if entry.cls.merged is not None)
        raise CannotMerge(
            f"{kind!r} does more than a linear change of a weight, so it cannot be merged. "
            f"Keep it as an adapter, or use one that merges: {', '.join(known)}."
            + " What it generates for one group merges: bake that first (--group)."
            * (adapter.baked is not None)
        )
    restore_parameters(injection.host(key))
    own = weights.own_tensors(injection.host(key)) | (before or {})
    inside = injection.sites[key].side == "in"
    with in_full(adapter):
        changed = _merged_input(key, adapter.merged, own) if inside else adapter.merged(own)
    if missing := [name for name in changed if name not in own]:
        raise CannotMerge(f"{key} has no {missing[0]} that could hold what {kind!r} learnt.")
    return changed


def _merged_input(key: str, merge: Callable[..., Tensors], own: Tensors) -> Tensors:
    """Merge a change of the input, x -> M x + c: the weight becomes W M and the bias b + W c."""
    if (weight := own.get("weight")) is None:
        raise CannotMerge(f"{key} is the input of several projections and has no weight of its own to merge into.")
    width = weight.shape[1]
    like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    identity = {"weight": torch.eye(width, **like), "bias": torch.zeros(width, **like)}
    unit = identity | merge(identity)
    changed: dict[str, Any] = {"weight": weight @ unit["weight"]}
    if unit["bias"].any():
        changed["bias"] = own.get("bias", 0) + weight @ unit["bias"]
    return changed


@contextmanager
def temporarily_merged(injection: Injection | None) -> Iterator[bool]:
    """Merge an adapter within a context, if possible, and yield whether it is merged.

    Overwritten weights are restored bit for bit. An adapter that cannot be merged stays attached, and so does one on a
    base that is quantised or not in fp32, where rounding W + ΔW could change answers.
    """
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        if injection is None or not _is_exact(injection.model):
            yield False
            return
        try:
            for host, changed in merged_tensors(injection):
                copies += [(p := getattr(host, name), p.detach().clone()) for name in changed]
                weights.write(host, changed)
        except CannotMerge:
            _restore(copies)
            yield False
            return
        with injection.disabled():
            yield True
    finally:
        _restore(copies)


def _is_exact(model: nn.Module) -> bool:
    fp32 = all(p.dtype == torch.float32 for _, p in base_parameters(model))
    return fp32 and not any(weights.is_quantized(module) for module in model.modules())


@torch.no_grad()
def _restore(copies: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    while copies:
        parameter, value = copies.pop()
        parameter.copy_(value)
