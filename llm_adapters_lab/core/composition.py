"""Combine several named adapters in one model: enable, order or mix them.

inject(model, config, name="sums"); inject(model, config, name="stories")
stack(model, "sums")                               # enable only this one
stack(model, "stories", "sums")                    # one after the other, in this order
mix(model, {"sums": 0.7, "stories": 0.3})          # y + 0.7 Δ_sums(x, y) + 0.3 Δ_stories(x, y)
merge_mix(model)                                   # W + 0.7 ΔW_sums + 0.3 ΔW_stories, without adapters
compose(model, Stack("a", Average("b", "c")))       # a, then the mean of what b and c change; rules nest
compose(model, "a > (b | c)")                      # the same as text
compose(model, Route({"a": "de", "b": "fr"}))      # by the group of each row: with grouped(model, ["de", "fr"]): ...
stack(model)                                       # the base alone
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from llm_adapters_lab.config import finite
from llm_adapters_lab.core import weights
from llm_adapters_lab.core.call_context import attach_context
from llm_adapters_lab.core.hooks import AdapterChain, chain_name
from llm_adapters_lab.core.injection import Injection, injections
from llm_adapters_lab.core.merging import changed_tensors, check_unshared, check_writable
from llm_adapters_lab.core.rounding import measure, probe
from llm_adapters_lab.core.rule_text import parse_rule
from llm_adapters_lab.core.rules import Route, Rule, Stack
from llm_adapters_lab.errors import BadSpec, CannotMerge, choices


def stack(model: nn.Module, *names: str) -> None:
    """Enable these adapters, in this order wherever they sit at the same output, and disable all others.

    Args:
        model: the model that they are in.
        names: of the adapters; without any, all adapters are disabled.

    Raises:
        BadSpec: the model has no adapter of a name, or a name is given twice.
    """
    _named(model, names)
    for chain in _chains(model):
        chain.mix, chain.rule = {}, None
        chain.off = set(chain) - set(names)
        chain.turns |= {name: (i, chain.turns[name][1]) for i, name in enumerate(names, 1) if name in chain}


def mix(model: nn.Module, shares: Mapping[str, float]) -> None:
    """Enable these adapters side by side: the weighted sum of their changes is added to the output of the base.

    Exact for all adapters that sit at sites; for those that can be merged it is the linear combination of their ΔW.
    All other adapters are disabled, also those that are injected later, until the next `stack` or `mix`.

    Args:
        model: the model that they are in.
        shares: a weight per name, of any sign and sum; {"a": 0.5, "b": 0.5} is the average.

    Raises:
        BadSpec: a name is unknown or a weight is not finite; an adapter acts on the whole model or on the base's own
            parameters; or one adapter would read what another changes.
    """
    mixed = _named(model, shares)
    if not shares:
        raise BadSpec("A mix needs at least one adapter; `stack(model)` switches all off.")
    if bad := [name for name, share in shares.items() if not finite(share)]:
        raise BadSpec(f"The shares of a mix are numbers that are finite in fp32; that of {', '.join(bad)} is not.")
    _check_sites(mixed)
    for chain in _chains(model):
        chain.mix = {name: float(shares[name]) for name in chain if name in shares}
        chain.rule, chain.off = None, set(chain) - set(shares)


def compose(model: nn.Module, rule: Rule | str) -> None:
    """Enable the adapters that a rule names, let them act together by it, and disable all others.

    Args:
        model: the model that they are in.
        rule: of `rules`, or a text as in `rule_text`; `stack` and `mix` are shorthands for the simplest.

    Raises:
        BadSpec: a name is unknown; an adapter acts on the whole model or on the base's own parameters, or sits at
            experts, where rows cannot be told apart; or one would read what another changes.
    """
    rule = parse_rule(rule) if isinstance(rule, str) else rule
    if type(rule) is Stack and all(isinstance(member, str) for member in rule.members):
        stack(model, *rule.names())
        return
    named = _named(model, dict.fromkeys(rule.names()))
    if not named:
        raise BadSpec("A rule needs at least one adapter; `stack(model)` switches all off.")
    _check_sites(named)
    groups = [group for each in rule.rules() if isinstance(each, Route) for group in each.groups]
    if by_row := any(each.by_row for each in rule.rules()):
        for name, injection in named.items():
            if any(site.routed for site in injection.sites.values()):
                raise BadSpec(f"{name!r} is at experts, which get the tokens of all rows mixed; it cannot be routed.")
    context = None
    for name, injection in named.items() if by_row else ():
        decoder = model.get_submodule(injection.anatomy.decoder)
        back = any(adapter.looks_back for adapter in injection.adapters.values())
        context = attach_context(decoder, name, looks_back=back, groups=groups)
    for chain in _chains(model):
        chain.mix, chain.rule, chain.call, chain.off = {}, rule, context, set(chain) - set(named)


def _check_sites(named: Mapping[str, Injection]) -> None:
    """Check that the changes of adapters add up."""
    at: dict[str, set[tuple[str, str]]] = {}
    for name, injection in named.items():
        if any(a.scope == "model" or a.trains_base or a.token_gate is not None for a in injection.adapters.values()):
            raise BadSpec(f"{name!r} is {injection.config.type!r}, whose effects do not add up; stack it instead.")
        for site in injection.sites.values():
            here = at.setdefault(site.path, set())
            here.add((name, chain_name(site)))
            if len(names := sorted({n for n, _ in here})) > 1 and len({chain for _, chain in here}) > 1:
                raise BadSpec(f"{' and '.join(map(repr, names))} follow one another at {site.path}: they do not mix.")


def merge_mix(model: nn.Module, *, round: bool = False) -> nn.Module:
    """Merge the current mix into the weights of the base, eject all adapters, and return the model.

    Args:
        model: the model that they are in.
        round: as in `merge`.

    Raises:
        CannotMerge: there is no mix, one of its adapters cannot be merged, or rounding takes too much. The model is
            then unchanged.
    """
    shares = {name: share for chain in _chains(model) for name, share in chain.mix.items()}
    if not shares:
        raise CannotMerge("There is no mix to merge; set one with `mix(model, {name: weight})`.")
    rounding = measure(model, _mixed_tensors(model, shares), round)  # raises before anything is written
    before = probe(model) if rounding.noticeable else None
    for host, changed in _mixed_tensors(model, shares):
        weights.write(host, changed)
    mixed = list(injections(model).values())
    for injection in mixed:
        injection.eject()
    rounding = rounding.told(model, before)
    for injection in mixed:
        injection.rounding = rounding
    return model


def _mixed_tensors(
    model: nn.Module, shares: Mapping[str, float]
) -> Iterator[tuple[nn.Module, dict[str, torch.Tensor]]]:
    changes: dict[str, list[tuple[Injection, str]]] = {}
    tied: list[nn.Module] = []
    for name in shares:
        injection = injections(model)[name]
        for key, site in injection.sites.items():
            tied += [injection.host(key)] * site.tied
            if not site.tied or isinstance(injection.host(key), nn.Embedding):  # the shared weight changes once
                changes.setdefault(site.path, []).append((injection, key))
    for path, parts in changes.items():
        # A change of the input and one of the output would multiply.
        if len({injection.sites[key].side for injection, key in parts}) > 1:
            raise CannotMerge(f"{path} is changed at its input and at its output, which does not add up to one ΔW.")
        host = parts[0][0].host(parts[0][1])
        own = weights.own_tensors(host)
        total = {name: value.clone() for name, value in own.items()}
        for injection, key in parts:
            for name, value in changed_tensors(injection, key).items():
                total[name] += shares[injection.name] * (value - own[name])
        changed = {name: value for name, value in total.items() if not torch.equal(value, own[name])}
        check_writable(path, host, changed, " and ".join(shares))
        check_unshared(model, path, host, changed, twins=tied)
        yield host, changed


def _chains(model: nn.Module) -> list[AdapterChain]:
    return [module for module in model.modules() if isinstance(module, AdapterChain)]


def _named(model: nn.Module, names: Iterable[str]) -> dict[str, Injection]:
    """Return the injections of the given names, in their order."""
    known, names = injections(model), list(names)
    for name in names:
        if name not in known:
            raise BadSpec(f"The model has no adapter {name!r}. {choices(name, known) if known else 'It has none.'}")
    if len(set(names)) < len(names):
        raise BadSpec(f"An adapter is named twice: {', '.join(names)}.")
    return {name: known[name] for name in names}
