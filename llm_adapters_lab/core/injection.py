"""Put adapters into a model, and take them out again without a trace.

The base keeps its classes, its parameter names and, after `eject`, its every bit; `chain` has the mechanism.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.adapter import Adapter, Place, World
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.anatomy import Anatomy, parameters
from llm_adapters_lab.core.call_context import listen, unlisten
from llm_adapters_lab.core.hooks import Chain, attach, attribute_of, detach
from llm_adapters_lab.core.modifiers.base import from_state, idle, to_state
from llm_adapters_lab.core.modifiers.wrap import wrap
from llm_adapters_lab.core.packed import check_gradients
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import BadSpec, CannotInject, EmptyPlacement, StateMismatch

INJECTIONS = "injections"
"""Where a model keeps the adapters that are in it."""


class Injection:
    """A named set of adapters in a model.

    Attributes:
        model: the model they are in.
        anatomy: of that model.
        config: what they were made from.
        name: their name in every chain.
        adapters: the adapters by site key ("model" for a model-wide one).
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, config: AdapterConfig, name: str) -> None:
        """Hold what belongs together; `inject` fills it."""
        self.model, self.anatomy, self.config, self.name = model, anatomy, config, name
        self.sites: dict[str, Site] = {}
        self.adapters: dict[str, Adapter] = {}
        self._hosts: dict[str, nn.Module] = {}
        self._frozen: list[nn.Parameter] = []

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable tensors, in order of sites, each once."""
        return list(dict.fromkeys(p for adapter in self.adapters.values() for p in adapter.parameters()))

    def count(self) -> int:
        """Return the number of trainable parameters, less those that a mask keeps at zero."""
        return sum(p.numel() for p in self.parameters()) - idle(self.adapters)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return copies of the adapter tensors, named `site key / tensor name`; nothing of the base."""
        return {key: tensor.detach().clone().contiguous() for key, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return the adapters' own tensors; one that several sites share stands under the first."""
        if not self.adapters:
            raise BadSpec(f"The adapter {self.name!r} has been ejected or merged; it holds no tensors any more.")
        found: dict[torch.Tensor, str] = {}
        for key, adapter in self.adapters.items():
            for name, tensor in adapter.state_dict(keep_vars=True).items():
                found.setdefault(tensor, f"{key}/{name}")
        return {key: tensor for tensor, key in found.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Load tensors that `state_dict` gave; all of them or none.

        Raises:
            StateMismatch: names or shapes differ; the message lists how.
        """
        own = self._tensors()
        faults = [f"missing {key}" for key in own if key not in state]
        faults += [f"unexpected {key}" for key in state if key not in own]
        faults += [
            f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
            for key in own
            if key in state and own[key].shape != state[key].shape
        ]
        for key in own.keys() & state.keys():
            if state[key].is_floating_point() != own[key].is_floating_point():
                faults.append(f"{key} holds {state[key].dtype}")
            elif not bool(state[key].isfinite().all()):
                faults.append(f"{key} holds inf or nan")
        if faults:
            more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
            raise StateMismatch(
                f"The saved tensors do not fit the {self.config.type} adapter at {self.config.at!r}: "
                f"{'; '.join(faults[:8])}{more}. Use the spec they were trained with. Nothing was loaded."
            )
        with torch.no_grad():
            for key, tensor in self._tensors().items():
                tensor.copy_(state[key])

    def saved_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors to save: those of `state_dict`, packed where a modifier says so."""
        return to_state(self, self.state_dict())

    def load_saved(self, saved: dict[str, torch.Tensor]) -> None:
        """Load what `saved_tensors` gave; all of it or none.

        Raises:
            StateMismatch: names, shapes or sizes differ; the message lists how.
        """
        state, after = from_state(self, saved)
        self.load_state_dict(state)
        for then in after:
            then()

    def penalty(self) -> torch.Tensor | None:
        """Return the sum of the adapters' own losses for the pass that has just run, or None if there are none."""
        found = [adapter.penalty() for adapter in dict.fromkeys(self.adapters.values()) if adapter.penalty is not None]
        return torch.stack([value.to(found[0].device) for value in found]).sum() if found else None

    def host(self, key: str) -> nn.Module:
        """Return the module that the adapter of a site hangs at."""
        return self._hosts[key]

    def chain(self, key: str) -> Chain:
        """Return all adapters at the place where this one is."""
        chain = getattr(self._hosts[key], attribute_of(self.sites.get(key)))
        assert isinstance(chain, Chain)
        return chain

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the model as if these adapters were not there."""
        chains = [self.chain(key) for key in self._hosts]
        for chain in chains:
            chain.muted.append(self.name)
        try:
            yield
        finally:
            for chain in chains:
                chain.muted.remove(self.name)

    def eject(self) -> nn.Module:
        """Remove the adapters and every hook; the base is as it was before `inject`, bit for bit."""
        self.take_out()
        self._hosts.clear()
        self.sites = {}
        self.adapters = {}
        return self.model

    def put_in(self) -> None:
        """Hang the adapters into the model and freeze the rest of it."""
        for _, parameter in parameters(self.model):
            if parameter.requires_grad:
                self._frozen.append(parameter)
                parameter.requires_grad_(False)
        mixed = any(isinstance(module, Chain) and module.mix for module in self.model.modules())
        for key, host in self._hosts.items():
            chain = attach(self.model, host, self.sites.get(key))
            chain[self.name] = self.adapters[key].train(host.training)
            if mixed:
                chain.off.add(self.name)  # a mix names its members
        if readers := [a for a in self.adapters.values() if a.needs_context or a.looks_back]:
            decoder = self.model.get_submodule(self.anatomy.decoder)
            context = listen(decoder, self.name, looks_back=any(a.looks_back for a in readers))
            for adapter in readers:
                adapter.context = context
        self.model.__dict__.setdefault(INJECTIONS, {})[self.name] = self

    def take_out(self) -> None:
        """Undo `put_in`: the model is as it was before; the adapters stay as they are, to be put in again."""
        for key, host in self._hosts.items():
            detach(self.model, host, self.sites.get(key), self.name)
        unlisten(self.model.get_submodule(self.anatomy.decoder), self.name)
        others = self.model.__dict__.get(INJECTIONS, {})
        others.pop(self.name, None)
        frozen, self._frozen = self._frozen, []
        if others:  # the base stays frozen for them; the last one thaws it
            next(iter(others.values()))._frozen += frozen
            return
        self.model.__dict__.pop(INJECTIONS, None)
        for parameter in frozen:
            parameter.requires_grad_(True)


def injections(model: nn.Module) -> dict[str, Injection]:
    """Return the adapters that are in a model, by name."""
    return dict(model.__dict__.get(INJECTIONS, {}))


def inject(
    model: nn.Module, config: AdapterConfig, *, at: str | None = None, name: str = "default", tokenizer: Any = None
) -> Injection:
    """Freeze a model and put an adapter into it.

    Args:
        model: any decoder; it is changed in place, reversibly.
        config: of a registered adapter.
        at: placement; default: that of the config, else the usual one of the adapter.
        name: tells several adapters in one model apart.
        tokenizer: of the model, for adapters that start from a text.

    Returns:
        The injection: its parameters to train, its state to save, `disabled`, `merge`, `eject`.

    Raises:
        BadSpec: the placement or the name is not understood, or the name is taken.
        EmptyPlacement: nothing in the model matches the placement.
        UnknownAnatomy: the model is not a decoder whose parts can be told apart.
        CannotInject: the model is compiled (hooks would be ignored), packed in a way that passes no gradient on, or the
            site has no single input.
    """
    if isinstance(model, torch._dynamo.OptimizedModule) or getattr(model, "_compiled_call_impl", None) is not None:
        raise CannotInject("The model is compiled, and a compiled model ignores new hooks. Inject first, compile last.")
    if not name.isidentifier() or hasattr(Chain(), name):
        raise BadSpec(f"The adapter name {name!r} must be a plain word (letters, digits, underscores), and a free one.")
    if name in injections(model):
        raise BadSpec(f"The model already carries an adapter named {name!r}. Choose another name, or eject it first.")
    check_gradients(model)
    entry = get_adapter(config.type)
    anatomy = Anatomy.of(model)
    if at and not entry.placed:
        raise BadSpec(f"{config.type!r} acts on the whole model and takes no placement; given was {at!r}.")
    at = at or config.at or entry.at
    injection = Injection(model, anatomy, config.model_copy(update={"at": at}), name)
    injection.sites = {site.key: site for site in entry.cls.sites(anatomy, model, at)}
    if not injection.sites and entry.cls.scope != "model":
        raise EmptyPlacement(f"{type(model).__name__} has nothing that {config.type!r} could change.")
    places = {key: Place(site, model.get_submodule(site.path)) for key, site in injection.sites.items()}
    injection.adapters = entry.cls.build(config, places, World(model, anatomy, tokenizer))
    injection._hosts = {key: place.host for key, place in places.items()}
    if "model" in injection.adapters:
        injection._hosts["model"] = model.get_submodule(anatomy.decoder)
    if missing := injection._hosts.keys() ^ injection.adapters.keys():
        raise CannotInject(
            f"{config.type!r} built adapters for other places than it has: {', '.join(sorted(missing))}."
        )
    with torch.device(weights.device(model)):
        wrap(injection.adapters, config, trains_base=entry.cls.trains_base)
    injection.put_in()
    return injection
