"""Write adapters into the weights of the base: W' = W + ΔW, one module at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import packed, weights
from llm_adapters_lab.core.anatomy import parameters
from llm_adapters_lab.core.hooks import stand_back
from llm_adapters_lab.core.injection import Injection, injections
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.errors import CannotMerge

Tensors = dict[str, torch.Tensor]


def merged(injection: Injection, dequantize: bool = False) -> Iterator[tuple[nn.Module, Tensors]]:
    """Yield each module that merging changes, with its changed tensors by name, in fp32 and the orientation of `own`.

    Args:
        injection: the adapters.
        dequantize: packed weights may change, since they will be replaced by plain ones.

    Raises:
        CannotMerge: see `merge`.
    """
    _alone(injection)
    paths = {key: injection.sites[key].path if key in injection.sites else key for key in injection.adapters}
    # What changes a module's input multiplies what changes its weight, so it is merged after it.
    order = sorted(paths, key=lambda key: (paths[key], key in injection.sites and injection.sites[key].side == "in"))
    for _, keys in groupby(order, key=lambda key: paths[key]):
        changed: Tensors = {}
        for key in keys:
            changed |= change(injection, key, changed)
        refuse_held(paths[key], injection.host(key), changed, injection.config.type, dequantize)
        yield injection.host(key), changed


def refuse_held(path: str, host: nn.Module, changed: Tensors, kind: str, dequantize: bool = False) -> None:
    """Refuse to write into weights that are packed, unless they shall be dequantised, or that are not there."""
    if weights.offloaded(host):
        raise CannotMerge(f"{path} is offloaded, so nothing can be written into it. Load the base without device_map.")
    if "weight" in changed and weights.packed(host) and not dequantize:
        raise CannotMerge(
            f"{path} is quantised, and its packed weight cannot hold what {kind!r} learnt: it would be rounded. "
            "Keep the adapter beside the base, or dequantise that in merging: merge(dequantize=True), --dequantize."
        )


@torch.no_grad()
def merge(injection: Injection, *, dequantize: bool = False) -> nn.Module:
    """Write adapters into the weights of the base, remove them and return the model.

    Args:
        injection: the adapters.
        dequantize: make a quantised base a plain one, in the dtype of what was not quantised, to hold them.

    Raises:
        CannotMerge: the method is no linear change of a weight, another adapter acts on the same module, this one is
            off or part of a mix, or the base has no bias to hold one, is offloaded, or is quantised and is to stay so.
            The model is then as it was.
    """
    for _ in merged(injection, dequantize):
        pass  # everything that can be refused is refused before anything is written
    model = injection.model
    plain = packed.unpacked(model) if dequantize else {}
    replaced = {model.get_submodule(path): module for path, module in plain.items()}
    for host, changed in merged(injection, dequantize):
        weights.write(replaced.get(host, host), changed)
    injection.eject()
    if plain:
        packed.dequantize(model, plain)
    return model


def _alone(injection: Injection) -> None:
    """Refuse to merge what does not act by itself, since the merged model would act differently."""
    name, model = injection.name, injection.model
    if not injection.adapters:
        raise CannotMerge(f"The adapter {name!r} has been ejected or merged already.")
    for key in injection.adapters:
        chain = injection.chain(key)
        if chain.mix:
            raise CannotMerge("A mix is set; write it with `merge_mix(model)`, or undo it with `stack(model, name)`.")
        if name not in chain.active():
            raise CannotMerge(f"The adapter {name!r} is off; switch it on with `stack(model, {name!r})` first.")
    mine = {site.path for site in injection.sites.values()}
    for other in injections(model).values():
        for key, site in other.sites.items():
            if other is not injection and not mine.isdisjoint({site.path, site.reader}):
                raise CannotMerge(f"{key} also carries the adapter {other.name!r}; eject it first.")


@torch.no_grad()
def change(injection: Injection, key: str, before: Tensors | None = None) -> Tensors:
    """Return the tensors that one adapter changes in the module at its site.

    Args:
        injection: the adapters.
        key: of the site.
        before: what has been merged into that module already.

    Raises:
        CannotMerge: see `merge`.
    """
    adapter, kind = injection.adapters[key], injection.config.type
    if adapter.merged is None:
        known = sorted(name for name, entry in all_adapters().items() if entry.cls.merged is not None)
        raise CannotMerge(
            f"{kind!r} does more than a linear change of a weight, so it cannot be merged. "
            f"Keep it as an adapter, or use one that merges: {', '.join(known)}."
        )
    stand_back(injection.host(key))
    own = weights.own(injection.host(key)) | (before or {})
    inside = injection.sites[key].side == "in"
    changed = _before(key, adapter.merged, own) if inside else adapter.merged(own)
    if homeless := [name for name in changed if name not in own]:
        raise CannotMerge(f"{key} has no {homeless[0]} that could hold what {kind!r} learnt.")
    return changed


def _before(key: str, merge: Callable[..., Tensors], own: Tensors) -> Tensors:
    """Merge a change of the input, x -> M x + c: the weight becomes W M and the bias b + W c."""
    if (weight := own.get("weight")) is None:
        raise CannotMerge(f"{key} is the input of several projections and has no weight of its own to merge into.")
    width = weight.shape[1]
    kind: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    nothing = {"weight": torch.eye(width, **kind), "bias": torch.zeros(width, **kind)}
    unit = nothing | merge(nothing)
    changed: dict[str, Any] = {"weight": weight @ unit["weight"]}
    if unit["bias"].any():
        changed["bias"] = own.get("bias", 0) + weight @ unit["bias"]
    return changed


@contextmanager
def written(injection: Injection | None) -> Iterator[bool]:
    """Hold an adapter in the weights of the base while the context lasts; yield whether it is.

    An adapter that does not merge, or not alone, stays as it is, and so does one on a base that is not fp32, or packed:
    there the rounding of W + ΔW could change answers. Copies are kept of what is overwritten, and written back to the
    bit.
    """
    copies: list[tuple[nn.Parameter, torch.Tensor]] = []
    try:
        if injection is None or not _plain(injection.model):
            yield False
            return
        try:
            for host, changed in merged(injection):
                copies += [(p := host.get_parameter(name), p.detach().clone()) for name in changed]
                weights.write(host, changed)
        except CannotMerge:
            _write_back(copies)
            yield False
            return
        with injection.disabled():
            yield True
    finally:
        _write_back(copies)


def _plain(model: nn.Module) -> bool:
    exact = all(p.dtype == torch.float32 for _, p in parameters(model))
    return exact and not any(weights.packed(module) for module in model.modules())


@torch.no_grad()
def _write_back(copies: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
    while copies:
        parameter, value = copies.pop()
        parameter.copy_(value)
