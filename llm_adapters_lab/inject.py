"""Put adapters into a model, and take them out again without a trace.

The base keeps its classes, its parameter names and, after `eject`, its every bit; `chain` has the mechanism.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from llm_adapters_lab import placement, weights
from llm_adapters_lab.adapter import Adapter, AdapterConfig, ModelAdapter, all_adapters, get_adapter
from llm_adapters_lab.anatomy import Anatomy, Site
from llm_adapters_lab.chain import Chain, attach, attribute_of, detach
from llm_adapters_lab.errors import BadSpec, CannotInject, CannotMerge, StateMismatch


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
        self._required_grad: list[nn.Parameter] = []

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable tensors, in order of sites."""
        return [p for adapter in self.adapters.values() for p in adapter.parameters()]

    def count(self) -> int:
        """Return the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return copies of the adapter tensors, named `site key / tensor name`; nothing of the base."""
        return {
            f"{key}/{name}": tensor.detach().clone().contiguous()
            for key, adapter in self.adapters.items()
            for name, tensor in adapter.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Load tensors that `state_dict` gave; all of them or none.

        Raises:
            StateMismatch: names or shapes differ; the message lists how.
        """
        own = self.state_dict()
        faults = [f"missing {key}" for key in own if key not in state]
        faults += [f"unexpected {key}" for key in state if key not in own]
        faults += [
            f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
            for key in own
            if key in state and own[key].shape != state[key].shape
        ]
        if faults:
            more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
            raise StateMismatch(
                f"The saved tensors do not fit the {self.config.type} adapter at {self.config.at!r}: "
                f"{'; '.join(faults[:8])}{more}. Use the spec they were trained with. Nothing was loaded."
            )
        for key, adapter in self.adapters.items():
            adapter.load_state_dict({name: state[f"{key}/{name}"] for name in adapter.state_dict()})

    def _chain(self, key: str) -> Chain:
        chain = getattr(self._hosts[key], attribute_of(self.sites.get(key)))
        assert isinstance(chain, Chain)
        return chain

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the model as if these adapters were not there."""
        chains = [self._chain(key) for key in self._hosts]
        before = [self.name in chain.off for chain in chains]
        for chain in chains:
            chain.off.add(self.name)
        try:
            yield
        finally:
            for chain, was_off in zip(chains, before, strict=True):
                if not was_off:
                    chain.off.discard(self.name)

    def merge(self) -> nn.Module:
        """Write the adapters into the weights of the base, remove them and return the model.

        Raises:
            CannotMerge: the method has no merged weight, another adapter acts on the same output, or the base is
                quantised. The model is then unchanged.
        """
        merged: list[tuple[nn.Module, torch.Tensor]] = []
        with torch.no_grad():
            for key, adapter in self.adapters.items():
                if adapter.merged_weight is None:
                    raise CannotMerge(
                        f"{self.config.type!r} does more than a linear change of a weight, so it cannot be merged. "
                        f"Keep it as an adapter, or use one that merges: {', '.join(_mergeable())}."
                    )
                if len(chain := self._chain(key)) > 1:
                    raise CannotMerge(f"{key} also carries {[n for n in chain if n != self.name]}; eject it first.")
                merged.append((self._hosts[key], adapter.merged_weight(weights.read(self._hosts[key]).float())))
        for host, weight in merged:
            weights.write(host, weight)
        return self.eject()

    def eject(self) -> nn.Module:
        """Remove the adapters and every hook; the base is as it was before `inject`, bit for bit."""
        for key, host in self._hosts.items():
            detach(self.model, host, self.sites.get(key), self.name)
        self._hosts.clear()
        self.sites = {}
        self.adapters = {}
        for parameter in self._required_grad:
            parameter.requires_grad_(True)
        return self.model


def inject(model: nn.Module, config: AdapterConfig, *, at: str | None = None, name: str = "default") -> Injection:
    """Freeze a model and put an adapter into it.

    Args:
        model: any decoder; it is changed in place, reversibly.
        config: of a registered adapter.
        at: placement; default: that of the config, else the usual one of the adapter.
        name: tells several adapters in one model apart.

    Returns:
        The injection: its parameters to train, its state to save, `disabled`, `merge`, `eject`.

    Raises:
        BadSpec: the placement or the name is not understood, or the name is taken.
        EmptyPlacement: nothing in the model matches the placement.
        UnknownAnatomy: the model is not a decoder whose parts can be told apart.
        CannotInject: the model is compiled (hooks would be ignored) or the site has no single input.
    """
    if isinstance(model, torch._dynamo.OptimizedModule) or getattr(model, "_compiled_call_impl", None) is not None:
        raise CannotInject("The model is compiled, and a compiled model ignores new hooks. Inject first, compile last.")
    if not name.isidentifier():
        raise BadSpec(f"The adapter name {name!r} must be a plain word: letters, digits and underscores.")
    entry = get_adapter(config.type)
    anatomy = Anatomy.of(model)
    if at and issubclass(entry.cls, ModelAdapter):
        raise BadSpec(f"{config.type!r} acts on the whole model and takes no placement; given was {at!r}.")
    at = at or config.at or entry.at
    injection = Injection(model, anatomy, config.model_copy(update={"at": at}), name)
    device = next(model.parameters()).device
    with torch.device(device):
        if issubclass(entry.cls, ModelAdapter):
            injection._hosts["model"] = model.get_submodule(anatomy.decoder)
            injection.adapters["model"] = entry.cls(config, anatomy, model)
        else:
            injection.sites = {site.key: site for site in placement.sites(anatomy, at, entry.cls.level)}
            for key, site in injection.sites.items():
                injection._hosts[key] = model.get_submodule(site.path)
                injection.adapters[key] = entry.cls(config, site, injection._hosts[key])
    _hang(injection)
    return injection


def _mergeable() -> list[str]:
    return sorted(name for name, entry in all_adapters().items() if entry.cls.merged_weight is not None)


def _hang(injection: Injection) -> None:
    """Hang the built adapters into the model; checked first, so that a refusal leaves no trace."""
    for key, host in injection._hosts.items():
        if injection.name in getattr(host, attribute_of(injection.sites.get(key)), ()):
            raise BadSpec(f"{key} already carries an adapter named {injection.name!r}. Choose another name.")
    for name, parameter in injection.model.named_parameters():
        if parameter.requires_grad and "adapters." not in name:
            injection._required_grad.append(parameter)
            parameter.requires_grad_(False)
    for key, host in injection._hosts.items():
        chain = attach(injection.model, host, injection.sites.get(key))
        chain[injection.name] = injection.adapters[key].train(host.training)
