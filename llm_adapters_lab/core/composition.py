"""Several named adapters in one model: which are on, in which order, or mixed with weights.

inject(model, config, name="sums"); inject(model, config, name="stories")
stack(model, "sums")                               # switch: only this one
stack(model, "stories", "sums")                    # one after the other, in this order
mix(model, {"sums": 0.7, "stories": 0.3})          # y + 0.7 Δ_sums(x, y) + 0.3 Δ_stories(x, y)
merge_mix(model)                                   # W + 0.7 ΔW_sums + 0.3 ΔW_stories, and all adapters gone
stack(model)                                       # the bare base
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.hooks import Chain, attribute_of
from llm_adapters_lab.core.injection import Injection, injections
from llm_adapters_lab.core.merging import change, refuse_held
from llm_adapters_lab.errors import BadSpec, CannotMerge, choices


def stack(model: nn.Module, *names: str) -> None:
    """Switch these adapters on, in this order at every site they share, and all others off; without names, all off.

    Raises:
        BadSpec: the model has no adapter of a name, or one is named twice.
    """
    _check(model, names)
    for chain in _chains(model):
        chain.mix = {}
        chain.off = set(chain) - set(names)
        for name in names:
            if name in chain:
                chain[name] = chain.pop(name)


def mix(model: nn.Module, shares: Mapping[str, float]) -> None:
    """Switch these adapters on side by side: what each changes at a site is added to the base's output, weighted.

    Exact for every adapter that sits at a site; for those that merge it is the same linear combination of their ΔW. All
    other adapters are switched off, and so are those that come later, until the next `stack` or `mix`.

    Args:
        model: the model they are in.
        shares: a weight for each name, of any sign; they need not sum to 1. {"a": 0.5, "b": 0.5} is the average.

    Raises:
        BadSpec: a name is unknown or a share not finite, an adapter acts on the whole model or on the base's own
            parameters, or two act on one module in ways that follow one another.
    """
    _check(model, tuple(shares))
    if not shares:
        raise BadSpec("A mix needs at least one adapter; `stack(model)` switches all off.")
    for name in shares:
        injection = injections(model)[name]
        if any(adapter.scope == "model" or adapter.trains_base for adapter in injection.adapters.values()):
            raise BadSpec(f"{name!r} is {injection.config.type!r}, whose effects do not add up; stack it instead.")
    if bad := [f"{name} = {share}" for name, share in shares.items() if not math.isfinite(share)]:
        raise BadSpec(f"The shares of a mix are finite numbers; given was {', '.join(bad)}.")
    _side_by_side(model, tuple(shares))
    for chain in _chains(model):
        chain.mix = {name: float(shares[name]) for name in chain if name in shares}
        chain.off = set(chain) - set(shares)


def merge_mix(model: nn.Module) -> nn.Module:
    """Write the present mix into the weights of the base, eject all adapters and return the model.

    Raises:
        CannotMerge: no mix is set, or one of its adapters cannot be merged. The model is then unchanged.
    """
    shares = {name: share for chain in _chains(model) for name, share in chain.mix.items()}
    if not shares:
        raise CannotMerge("There is no mix to merge; set one with `mix(model, {name: weight})`.")
    for _ in _mixed(model, shares):
        pass  # everything that can be refused is refused before anything is written
    for host, changed in _mixed(model, shares):
        weights.write(host, changed)
    for injection in list(injections(model).values()):
        injection.eject()
    return model


def _mixed(model: nn.Module, shares: Mapping[str, float]) -> Iterator[tuple[nn.Module, dict[str, torch.Tensor]]]:
    places: dict[Any, list[tuple[Injection, str]]] = {}
    for name in shares:
        injection = injections(model)[name]
        for key, site in injection.sites.items():
            # A module can carry a change of its input and one of its output, which would multiply.
            places.setdefault(site.path, []).append((injection, key))
    for path, changes in places.items():
        if len({injection.sites[key].side for injection, key in changes}) > 1:
            raise CannotMerge(f"{path} is changed at its input and at its output, which does not add up to one ΔW.")
        host = model.get_submodule(path)
        own = weights.own(host)
        total = {name: value.clone() for name, value in own.items()}
        for injection, key in changes:
            for name, value in change(injection, key).items():
                total[name] += shares[injection.name] * (value - own[name])
        found = {name: value for name, value in total.items() if not torch.equal(value, own[name])}
        refuse_held(path, host, found, " and ".join(shares))
        yield host, found


def _side_by_side(model: nn.Module, names: tuple[str, ...]) -> None:
    """Refuse adapters of which one would see what the other has changed at the same module."""
    places: dict[str, tuple[str, str]] = {}
    for name in names:
        for site in injections(model)[name].sites.values():
            other, attribute = places.setdefault(site.path, (name, attribute_of(site)))
            if other != name and attribute != attribute_of(site):
                raise BadSpec(f"{other!r} and {name!r} follow one another at {site.path}, so they cannot be mixed.")


def _chains(model: nn.Module) -> list[Chain]:
    return [module for module in model.modules() if isinstance(module, Chain)]


def _check(model: nn.Module, names: tuple[str, ...]) -> None:
    known = injections(model)
    for name in names:
        if name not in known:
            raise BadSpec(f"The model has no adapter {name!r}. {choices(name, known) if known else 'It has none.'}")
    if len(set(names)) < len(names):
        raise BadSpec(f"An adapter is named twice: {', '.join(names)}.")
