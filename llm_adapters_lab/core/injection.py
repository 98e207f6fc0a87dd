"""Put adapters into a model, and take them out again without a trace.

The base keeps its classes, its parameter names and, after `eject`, every bit of its weights; see `hooks`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.config import parse
from llm_adapters_lab.core import weights
from llm_adapters_lab.core.adapter import Adapter, Place, World
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.anatomy import Anatomy, base_parameters
from llm_adapters_lab.core.call_context import attach_context, detach_context
from llm_adapters_lab.core.hooks import AdapterChain, Sequence, attach, chain_name, detach, follow
from llm_adapters_lab.core.matrix_hosts import find_host
from llm_adapters_lab.core.modifiers.apply import apply_modifiers
from llm_adapters_lab.core.modifiers.base import modified
from llm_adapters_lab.core.quantized import check_gradients
from llm_adapters_lab.core.registry import Entry, all_adapters, get_adapter, token_trainer
from llm_adapters_lab.core.rounding import Rounding
from llm_adapters_lab.core.sites import ENCODER, OUTER, Site
from llm_adapters_lab.core.vocabulary import new_ids
from llm_adapters_lab.errors import BadSpec, CannotInject, EmptyPlacement, StateMismatch, choices, listed

INJECTIONS = "injections"
"""Attribute of a model that holds its injections."""


class Injection:
    """A named set of adapters in a model.

    Attributes:
        model: the model.
        anatomy: of the model.
        config: of the adapters.
        name: of the adapters in every chain.
        sites: the sites by key; empty for an adapter of the whole model.
        adapters: the adapters by site key ("model" for the whole model).
        other_base: how the base differs from the one that it was trained on, if it was loaded all the same; or why that
            is unknown.
        rounding: what rounding took from it when it was merged; None before.
        prompt: how its training rows were written, {"template": name or chat template, "system": prompt}; empty if that
            is unknown.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, config: AdapterConfig, name: str) -> None:
        """Create an empty injection, which `inject` fills."""
        self.model, self.anatomy, self.config, self.name = model, anatomy, config, name
        self.sites: dict[str, Site] = {}
        self.adapters: dict[str, Adapter] = {}
        self.other_base: list[str] = []
        self.rounding: Rounding | None = None
        self.prompt: dict[str, str] = {}
        self._hosts: dict[str, nn.Module] = {}
        self._frozen: list[nn.Parameter] = []

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable tensors in order of sites; shared ones occur once."""
        found = dict.fromkeys(p for adapter in self.adapters.values() for p in adapter.parameters())
        return [p for p in found if p.requires_grad]

    def rates(self) -> dict[nn.Parameter, float]:
        """Return the factors of the learning rate of the tensors that have one, see `Adapter.rates`."""
        found: dict[nn.Parameter, float] = {}
        for adapter in dict.fromkeys(self.adapters.values()):
            own = dict(adapter.named_parameters())
            for name, factor in adapter.rates().items():
                found[own[name] if name in own else own[f"parametrizations.{name}.original"]] = factor
        return found

    def count(self) -> int:
        """Return the number of trainable parameters, without those that a mask keeps at zero."""
        dropped = sum(modifier.dropped for _, _, modifier in modified(self.adapters))
        return sum(p.numel() for p in self.parameters()) - dropped

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return copies of the adapter tensors, named `site key/tensor name`, without those of the base.

        Raises:
            BadSpec: the adapter has been ejected or merged.
        """
        return {key: tensor.detach().clone().contiguous() for key, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return the adapter tensors; one that several sites share is named after the first."""
        if not self.adapters:
            raise BadSpec(f"The adapter {self.name!r} has been ejected or merged and has no tensors any more.")
        found: dict[torch.Tensor, str] = {}
        for key, adapter in self.adapters.items():
            for name, tensor in adapter.state_dict(keep_vars=True).items():
                found.setdefault(tensor, f"{key}/{name}")
        return {key: tensor for tensor, key in found.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Load the tensors of `state_dict`; after an error nothing has changed.

        Raises:
            StateMismatch: names, shapes or kinds of values differ; the message lists the differences.
        """
        own = self._tensors()
        faults = [f"missing {key}" for key in own if key not in state]
        faults += [f"unexpected {key}" for key in state if key not in own]
        for key in [key for key in own if key in state]:
            if own[key].shape != state[key].shape:
                faults.append(f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}")
            elif state[key].is_floating_point() != own[key].is_floating_point():
                faults.append(f"{key} holds {state[key].dtype}")
            elif not bool(state[key].float().isfinite().all()):
                faults.append(f"{key} holds inf or nan")
        if faults:
            raise StateMismatch(
                f"The saved tensors do not fit the {self.config.type} adapter at {self.config.at!r}: "
                f"{listed(faults)}. Use the spec they were trained with. Nothing was loaded."
            )
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(state[key])

    @torch.no_grad()
    def saved_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors to save: those of `state_dict`, packed if a modifier does so."""
        state = self.state_dict()
        for name, w, modifier in modified(self.adapters):
            state.pop(name)
            state |= modifier.to_state(name, w.detach().contiguous())
        return state

    @torch.no_grad()
    def load_saved(self, saved: dict[str, torch.Tensor]) -> None:
        """Load the tensors of `saved_tensors`; after an error nothing has changed.

        Raises:
            StateMismatch: names, shapes or kinds of values differ; the message lists the differences.
        """
        state = dict(saved)
        callbacks = [modifier.from_state(name, w, state) for name, w, modifier in modified(self.adapters)]
        self.load_state_dict(state)
        for callback in filter(None, callbacks):
            callback()

    def config_of(self, key: str) -> AdapterConfig:
        """Return the config of the adapter at a site: that of its part, if the injection has several."""
        parts, site = self.config.parts, self.sites.get(key)
        if site is not None:
            return parts[int(site.part[:-1])] if site.part else self.config
        return next((part for part in parts if get_adapter(part.type).cls.scope == "model"), self.config)

    def part(self, number: int) -> Injection:
        """Return a part as an injection of its own that shares its tensors, to read; it cannot be attached."""
        prefix, found = f"{number}/", Injection(self.model, self.anatomy, self.config.parts[number], self.name)
        for key, adapter in self.adapters.items():
            site = self.sites.get(key)
            # Rows of tokens go with the first part.
            of = f"{self.config.parts.index(self.config_of(key))}/" if site is None else site.part or "0/"
            if of == prefix:
                own = replace(site, part="") if site else None
                new = own.key if own else key
                found.sites |= {new: own} if own else {}
                found.adapters[new], found._hosts[new] = adapter, self._hosts[key]
        return found

    def penalty(self) -> torch.Tensor | None:
        """Return the sum of the adapters' own losses for the last forward pass, or None if they have none."""
        found = [adapter.penalty() for adapter in dict.fromkeys(self.adapters.values()) if adapter.penalty is not None]
        return torch.stack([value.to(found[0].device) for value in found]).sum() if found else None

    def host(self, key: str) -> nn.Module:
        """Return the module at which the adapter of a site sits.

        Raises:
            BadSpec: there is no such site.
        """
        if key not in self._hosts:
            raise BadSpec(f"The adapter {self.name!r} has no site {key!r}. {choices(key, self._hosts)}")
        return self._hosts[key]

    def chain(self, key: str) -> AdapterChain:
        """Return the chain of all adapters at a site."""
        chain = getattr(self.host(key), chain_name(self.sites.get(key)))
        assert isinstance(chain, AdapterChain)
        return chain

    @contextmanager
    def disabled(self, keys: Iterable[str] | None = None) -> Iterator[None]:
        """Disable the adapters within a context, all of them or those of some sites."""
        chains = [self.chain(key) for key in (self._hosts if keys is None else keys)]
        for chain in chains:
            chain.muted.append(self.name)
        try:
            yield
        finally:
            for chain in chains:
                chain.muted.remove(self.name)

    def eject(self) -> nn.Module:
        """Remove the adapters and all hooks, and return the base as it was before `inject`, bit for bit."""
        self.detach()
        self._hosts.clear()
        self.sites, self.adapters = {}, {}
        return self.model

    @property
    def tokens(self) -> list[int]:
        """The ids of the tokens whose rows it trains."""
        rows: list[Any] = [adapter for adapter in self.adapters.values() if adapter.for_tokens]
        return rows[0].ids.tolist() if rows else []

    def attach(self) -> None:
        """Attach the adapters to the model and freeze the base.

        Raises:
            BadSpec: they are attached, or have been ejected or merged; or the model has others of that name.
        """
        self._tensors()  # raises if there are none
        _check_name(self.model, self.name)
        for _, parameter in base_parameters(self.model):
            if parameter.requires_grad:
                self._frozen.append(parameter)
                parameter.requires_grad_(False)
        chains = [module for module in self.model.modules() if isinstance(module, AdapterChain)]
        mixed = any(chain.mix or chain.rule is not None for chain in chains)
        last = max((turn for chain in chains for turn, _ in chain.turns.values()), default=0)
        for index, (key, host) in enumerate(self._hosts.items()):
            chain = attach(self.model, host, self.sites.get(key))
            if self.adapters[key].token_gate is not None:
                follow(self.model, host, self.adapters[key].readers)
            adapter: nn.Module = self.adapters[key].train(host.training)
            if self.name in chain:  # an earlier part
                before = chain[self.name]
                adapter = Sequence([*(before if isinstance(before, Sequence) else [before]), adapter])
            else:
                chain.turns[self.name] = (last + 1, index)
            chain[self.name] = adapter
            if mixed:
                chain.off.add(self.name)  # only the adapters named in a mix or rule are on
        if readers := [a for a in self.adapters.values() if a.needs_context or a.looks_back]:
            decoder = self.model.get_submodule(self.anatomy.decoder)
            back, groups = any(a.looks_back for a in readers), [name for a in readers for name in a.groups]
            context = attach_context(decoder, self.name, looks_back=back, groups=groups)
            for adapter in readers:
                adapter.context = context
        self.model.__dict__.setdefault(INJECTIONS, {})[self.name] = self

    def detach(self) -> None:
        """Undo `attach`; the adapters keep their state and can be attached again."""
        if injections(self.model).get(self.name) is not self:
            return  # not attached; another one may have the name by now
        for key, host in self._hosts.items():
            detach(self.model, host, self.sites.get(key), self.name)
        detach_context(self.model.get_submodule(self.anatomy.decoder), self.name)
        others = self.model.__dict__.get(INJECTIONS, {})
        others.pop(self.name, None)
        frozen, self._frozen = self._frozen, []
        if others:  # the base stays frozen until the last injection is detached
            next(iter(others.values()))._frozen += frozen
            return
        self.model.__dict__.pop(INJECTIONS, None)
        for parameter in frozen:
            parameter.requires_grad_(True)


def find_sites(config: AdapterConfig, anatomy: Anatomy, model: nn.Module) -> dict[str, Site]:
    """Return the sites of an adapter, with all of its parts, in a model by key.

    Raises:
        LabError: a placement matches nothing.
    """
    found: dict[str, Site] = {}
    for number, part in enumerate(config.parts):
        entry = get_adapter(part.type)
        own = entry.cls.sites_of(part.model_copy(update={"at": part.at or entry.at}), anatomy, model)
        if part is not config:
            own = tuple(replace(site, part=f"{number}/") for site in own)
        found |= {site.key: site for site in own}
    return found


def _add(injection: Injection, config: AdapterConfig, prefix: str, world: World) -> None:
    """Build the adapters of one part; its sites get the prefix."""
    model, anatomy, entry = world.model, world.anatomy, get_adapter(config.type)
    decoder = model.get_submodule(anatomy.decoder)
    reads_call = entry.cls.scope == "model" or entry.cls.needs_context or entry.cls.looks_back
    called_with = inspect.signature(decoder.forward).parameters
    if reads_call and called_with.keys().isdisjoint(("input_ids", "inputs_embeds")):
        raise CannotInject(
            f"{config.type!r} acts on rows of tokens, and {type(model).__name__} has none ({anatomy.decoder or 'it'} "
            f"takes {', '.join(called_with)}). Choose an adapter that acts on single outputs, such as a low-rank one."
        )
    sites = {key: replace(site, part=prefix) for key, site in find_sites(config, anatomy, model).items()}
    if not sites and entry.cls.scope != "model":
        raise EmptyPlacement(f"{type(model).__name__} has nothing that {config.type!r} could change.")
    _check_experts(entry, config, sites.values())
    _check_outer(entry, config, sites.values(), world.tokens)
    if reads_call and (far := next((s.path for s in sites.values() if s.sublayer.startswith(ENCODER)), "")):
        raise CannotInject(
            f"{config.type!r} follows the calls of the decoder, and {far} is in the encoder, which runs outside of "
            "them. Place it in the decoder, or choose an adapter that acts on single outputs."
        )
    places = {key: Place(site, find_host(model, site)) for key, site in sites.items()}
    _check_hosts(config.type, places)
    adapters = entry.cls.build(config, places, world)
    hosts = {key: place.host for key, place in places.items()} | ({"model": decoder} if "model" in adapters else {})
    if missing := hosts.keys() ^ adapters.keys():
        raise CannotInject(f"{config.type!r} did not build exactly one adapter per site: {', '.join(sorted(missing))}.")
    with torch.device(weights.device(model)):
        trains_base = entry.cls.trains_base or entry.cls.for_tokens
        apply_modifiers(adapters, config, trains_base=trains_base, group=prefix)
    _check_parts(injection, sites, "model" in adapters)
    renamed = {key: key if key == "model" else sites[key].key for key in adapters}
    injection.sites |= {site.key: site for site in sites.values()}
    injection.adapters |= {renamed[key]: adapter for key, adapter in adapters.items()}
    injection._hosts |= {renamed[key]: host for key, host in hosts.items()}


def _check_parts(injection: Injection, sites: dict[str, Site], whole: bool) -> None:
    """Check that a part does not replace what an earlier one does."""
    if whole and "model" in injection.adapters:
        raise CannotInject("Two parts act on the whole model, and only one can. Remove one of them.")
    trained = {site.path for site in injection.sites.values() if site.side == "parameters"}
    if twice := [site.path for site in sites.values() if site.side == "parameters" and site.path in trained]:
        raise CannotInject(f"Two parts train the parameters of {twice[0]}. Remove one of them, or place it elsewhere.")


def _check_experts(entry: Entry, config: AdapterConfig, sites: Iterable[Site]) -> None:
    """Check that an adapter can be put at routed experts, if it is."""
    routed = next((site for site in sites if site.routed), None)
    if routed is not None and not entry.cls.experts:
        known = sorted(name for name, other in all_adapters().items() if other.cls.experts)
        beside = "the whole `mlp`" if entry.cls.level == "sublayer" else "`mixer`, `shared` or dense projections"
        raise CannotInject(
            f"{routed.path} is a routed expert, where {config.type!r} cannot be: it sees only some tokens of a row. "
            f"At experts: {', '.join(known)}. Beside them: {config.type!r} at {beside}."
        )
    if config.experts == "shared" and (routed is None or getattr(config, "init", "") in ("pissa", "olora")):
        why = "starts from the weights of each" if routed else "is at none"
        raise CannotInject(f"experts = 'shared' gives all routed experts one adapter, but this one {why}.")


def _check_outer(entry: Entry, config: AdapterConfig, sites: Iterable[Site], tokens: Iterable[int]) -> None:
    """Check that an adapter can be put at the token embedding or the output head, if it is."""
    if not (outer := [site for site in sites if site.role in OUTER]):
        return
    able = ", ".join(sorted(name for name, other in all_adapters().items() if other.cls.embeds))
    if any(site.tied for site in outer) and not (len(outer) == 2 and entry.cls.embeds):
        raise CannotInject(
            f"In this base, embed and head share one weight; {config.type!r} at {outer[0].role!r} would part them. "
            f"Place it at `embed,head`, which trains one change for both, with {able}; or elsewhere."
        )
    if any(site.role == "embed" for site in outer) and not entry.cls.embeds:
        raise CannotInject(f"{config.type!r} cannot be at `embed`, whose input are token ids. There can be: {able}.")
    if tokens:
        raise CannotInject(
            f"{config.type!r} at {outer[0].role!r} and rows of new tokens would change the same weight. Place it "
            "elsewhere, or train all parameters."
        )


def _check_hosts(kind: str, places: dict[str, Place]) -> None:
    """Check that no module, nor its adapter, would be reached by two paths."""
    found: dict[tuple[nn.Module, str], str] = {}
    for key, place in places.items():
        if (first := found.setdefault((place.host, chain_name(place.site)), key)) != key:
            raise CannotInject(
                f"{first} and {key} are one module, which has room for one {kind!r} adapter: both paths would share "
                f"it. Place it at one of them (q@0 is the q of layer 0), or give each layer a module of its own."
            )


def _check_name(model: nn.Module, name: str) -> None:
    if name in injections(model):
        raise BadSpec(f"The model already carries an adapter named {name!r}. Choose another name, or eject it first.")


def injections(model: nn.Module) -> dict[str, Injection]:
    """Return the injections of a model by name."""
    return dict(model.__dict__.get(INJECTIONS, {}))


def inject(
    model: nn.Module,
    config: AdapterConfig,
    *,
    at: str | None = None,
    name: str = "default",
    tokenizer: Any = None,
    tokens: Items[int] = (),
) -> Injection:
    """Freeze a model and put an adapter into it.

    Args:
        model: any decoder; it is changed in place, reversibly.
        config: of a registered adapter.
        at: placement; defaults to `config.at`, then to the usual placement of the adapter.
        name: distinguishes several adapters in one model.
        tokenizer: of the model, for adapters that are initialised from text.
        tokens: ids whose rows of embedding and head are trained too; default: those of the tokens added to the model.

    Returns:
        The injection: `parameters` to train, `state_dict` to save, `disabled`, `eject`.

    Raises:
        BadSpec: the placement or the name is invalid, or the name is taken.
        EmptyPlacement: nothing in the model matches the placement.
        UnknownAnatomy: the model is not a decoder whose layers and projections can be identified.
        CannotInject: the model is compiled (hooks would be ignored) or quantised in a way that does not propagate
            gradients, or the adapter cannot be built at a site.
    """
    if isinstance(model, torch._dynamo.OptimizedModule) or getattr(model, "_compiled_call_impl", None) is not None:
        raise CannotInject("The model is compiled, and a compiled model ignores new hooks. Inject first, compile last.")
    if not name.isidentifier() or hasattr(AdapterChain(), name):
        raise BadSpec(f"The adapter name {name!r} must be a plain word (letters, digits, underscores), and a free one.")
    _check_name(model, name)
    parse(type(config), config.model_dump())  # copies of pydantic are not validated
    check_gradients(model)
    entry = get_adapter(config.type)
    anatomy = Anatomy.of(model)
    if at and not entry.placed:
        raise BadSpec(f"{config.type!r} takes no placement of its own; given was {at!r}.")
    at = at or config.at or entry.at
    config = entry.cls.completed(config.model_copy(update={"at": at}))
    injection = Injection(model, anatomy, config, name)
    tokens = tuple(tokens) or new_ids(model)
    world = World(model, anatomy, tokenizer, tokens)
    for number, part in enumerate(config.parts):
        _add(injection, part, "" if part is config else f"{number}/", world)
    table = {site.path for site in anatomy.embeddings if site.role == "embed"}
    if tokens and table.isdisjoint(site.path for site in injection.sites.values()):  # else it trains their rows itself
        trainer = token_trainer()
        rows = {site.key: Place(site, find_host(model, site)) for site in trainer.sites(anatomy, model, "")}
        injection.adapters |= trainer.build(None, rows, world)
        injection.sites |= {key: place.site for key, place in rows.items()}
        injection._hosts |= {key: place.host for key, place in rows.items()}
    injection.attach()
    return injection
