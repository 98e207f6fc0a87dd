"""What an adapter is.

An adapter is one file of `llm_adapters_lab/adapters`: a config, a class, and `@register_adapter`. No other file names
it. Everything that the rest of the lab needs to know about a method is an attribute or a method of its class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.call_context import CallContext
from llm_adapters_lab.core.placement import Level
from llm_adapters_lab.core.placement import sites as placement_sites
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.core.sublayers import base_modules
from llm_adapters_lab.errors import CannotInject


@dataclass(frozen=True)
class Place:
    """A site and its host, the module at which the adapter sits."""

    site: Site
    host: nn.Module


class Units(NamedTuple):
    """The hidden units of an adapter, which can be reordered without changing what it computes.

    Attributes:
        axes: the tensors that have a slice for each unit, with the axis of the units; 0 in what reads the input.
        symmetry: "order": units can be permuted; "sign": their signs can change too; "linear": they can be rotated.
    """

    axes: Mapping[str, int]
    symmetry: Literal["order", "sign", "linear"]


@dataclass(frozen=True)
class World:
    """The base as a whole, from which an adapter is built.

    Attributes:
        model: the base.
        anatomy: of the base.
        tokenizer: of the base, or None.
        tokens: ids of the new tokens, whose rows are trained too.
    """

    model: nn.Module
    anatomy: Anatomy
    tokenizer: Any = None
    tokens: tuple[int, ...] = ()


class Adapter(nn.Module):
    """A trainable change of the output, input or parameters of one module.

    Attributes:
        family: the kind of method, under which lists show it, such as "Low-rank" or "Bottleneck".
        scope: "site": there is one adapter per site; "model": one for the whole model, called around its decoder.
        level: what `attn` and `mlp` mean in a placement: each "projection" in them, or the whole "sublayer".
        identity: whether an untrained adapter leaves the model unchanged (by default initialisation).
        trains_base: whether its tensors are copies of the base's own parameters, which they replace.
        looks_back: whether a token's output depends on earlier tokens of its row; implies `needs_context`.
        needs_context: whether `forward` reads `context`, which is then set during every call of the decoder.
        sliceable: whether several such adapters can share one forward pass, each applied to its own slice of the rows.
        embeds: whether it can be put at the token embedding: `forward` then gets token ids (...) for x and zeros for y,
            and returns the rows of the change of the weight (d_out, d_in) that `merged` makes.
        for_tokens: whether it trains rows of tokens (`World.tokens`), so that it is put beside other adapters if tokens
            were added to the base.
        experts: whether it can be put at routed experts, which see only the tokens sent to them.
        reads_weight: whether `forward` depends on the weight of the host beside x and y, so that it cannot be merged if
            another adapter is before it at the same module.
        own_per_expert: the vectors that each expert keeps for itself if the experts of a layer share an adapter, and
            whether they have as many elements as its "d_in" or "d_out".
        readers: with `token_gate`, the paths of the projections that read the input of its MLP; `skipping.readers_of`.
        groups: names of the groups that it has a part for, such as tasks; see `CallContext.group`.
        peft_type: name of the method in peft; empty if peft does not have it.
        example: fields of a small config, for tests and documentation.
        context: the running call; see `CallContext`.
    """

    family: ClassVar[str] = "Other"
    scope: ClassVar[Literal["site", "model"]] = "site"
    level: ClassVar[Level] = "projection"
    identity: ClassVar[bool] = True
    trains_base: ClassVar[bool] = False
    looks_back: ClassVar[bool] = False
    needs_context: ClassVar[bool] = False
    sliceable: ClassVar[bool] = True
    embeds: ClassVar[bool] = False
    for_tokens: ClassVar[bool] = False
    experts: ClassVar[bool] = False
    reads_weight: ClassVar[bool] = False
    own_per_expert: ClassVar[Mapping[str, str]] = {}
    readers: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    peft_type: ClassVar[str] = ""
    example: ClassVar[Mapping[str, Any]] = {}
    context: CallContext

    def __init__(self, config: Any, site: Site, base: nn.Module) -> None:
        """Build the adapter for one site.

        Args:
            config: of the adapter.
            site: where it sits.
            base: the module at `site.path`; do not register it as a child.
        """
        super().__init__()
        self.context = CallContext()

    @classmethod
    def sites(cls, anatomy: Anatomy, model: nn.Module, at: str) -> tuple[Site, ...]:
        """Return the sites of the adapter in a model: by default, those of the placement."""
        return placement_sites(anatomy, at, cls.level)

    @classmethod
    def sites_of(cls, config: Any, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """Return the sites of the adapter with a config, whose placement is filled in."""
        return cls.sites(anatomy, model, config.at)

    @classmethod
    def units(cls, config: Any) -> Units | None:
        """Return the hidden units, by which adapters are aligned before they are merged with one another, or None."""
        return None

    @classmethod
    def completed(cls, config: Any) -> Any:
        """Return the config with what it refers to, such as the configs of saved adapters, for `save_adapter`."""
        return config

    @classmethod
    def build(cls, config: Any, places: Mapping[str, Place], world: World) -> dict[str, Adapter]:
        """Return the adapters of an injection by site key; the key "model" stands for the whole model.

        By default there is an independent adapter for each site. Override this if sites share tensors, or if one
        network produces all of them: a tensor that several adapters have is trained, counted and saved once.

        Args:
            config: of the adapter.
            places: the sites and their hosts, by key; empty if `scope` is "model".
            world: the base as a whole.
        """
        adapters: dict[str, Adapter] = {}
        for key, place in places.items():
            twin = next((adapters[k] for k in adapters if places[k].site.tied), None) if place.site.tied else None
            with torch.device(weights.device(place.host)):
                adapters[key] = cls(config, place.site, place.host)
            if twin is not None:  # one change of the weight that both share
                adapters[key]._parameters.update(twin._parameters)
                adapters[key]._buffers.update(twin._buffers)
        if config.experts == "shared":
            first: dict[Any, Adapter] = {}
            for key, place in places.items():
                one = first.setdefault(_sharing(place.site), adapters[key])
                for name, tensor in one.named_parameters():
                    if name not in cls.own_per_expert:
                        adapters[key].register_parameter(name, tensor)
        return adapters

    @classmethod
    def parameter_count(cls, config: Any, sites: Sequence[Site], world: World) -> int:
        """Return the number of trainable parameters by the method's formula, without building an adapter."""
        sites = list({site.tied or site.key: site for site in sites}.values())
        if config.experts == "each":
            return sum(cls.per_site(config, site) for site in sites)
        whole = set({_sharing(site): site for site in reversed(sites)}.values())
        rest = [site for site in sites if site not in whole]
        widths = [int(getattr(site, side)) for site in rest for side in cls.own_per_expert.values()]
        return sum(cls.per_site(config, site) for site in whole) + sum(widths)

    @staticmethod
    def per_site(config: Any, site: Site) -> int:
        """Return the number of trainable parameters at one site, by the method's formula."""
        raise NotImplementedError("This adapter has no formula for its number of parameters.")

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the new output of the site, (..., d_out).

        Args:
            x: input of the site, (..., d_in).
            y: output of the site, (..., d_out); at an input site, that input.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    merged: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None
    """In adapters that can be merged, a method that takes the tensors of the host by name ("weight" (d_out, d_in) and
    "bias"; fp32, or fp64 for inspection) and returns those that change."""

    penalty: Callable[[], torch.Tensor] | None = None
    """In adapters with a loss of their own, a method that returns it for the last forward pass: a scalar, in nats per
    label, which training adds to the mean loss."""

    token_gate: Callable[[torch.Tensor], torch.Tensor] | None = None
    """In adapters that run an MLP for some tokens only, a method that takes its input x (..., d_in) and returns the
    factor of its output, (...), 0 for tokens that do not run. y is then the output times that factor; see
    `skipping`."""

    baked: Callable[[Any, str], tuple[Any, dict[str, torch.Tensor]]] | None = None
    """In adapters whose tensors are generated for a group, a method that takes the config and the name of a group, or
    "mean", and returns the config of an ordinary adapter and its tensors, see `bake`."""

    skill_weights: Callable[[], torch.Tensor] | None = None
    """In adapters with an inventory of skills, a method that returns how much of each of K skills the T groups take in
    each of S blocks, (T, S, K); a row sums to 1. Without groups, T is 1."""

    @staticmethod
    def by_group(config: Any) -> Mapping[str, tuple[str, ...]]:
        """Return, for tensors with a row for each group or for a part of its name, the names of these rows."""
        return {}

    def rates(self) -> Mapping[str, float]:
        """Return, for tensors that learn faster or slower than others, the factor of their learning rate by name."""
        return {}

    def to_peft(self, config: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return the fields of peft's config, and the adapter's tensors by their names in peft."""
        raise NotImplementedError(f"{type(self).__name__} has no to_peft")

    @classmethod
    def from_peft(cls, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Return the fields of the lab's config for a peft config, or None if that is of another method.

        Args:
            fields: peft's config; the fields that are converted are removed from it.
        """
        raise NotImplementedError(f"{cls.__name__} has no from_peft")

    @staticmethod
    def read_peft(tensors: dict[str, torch.Tensor], fields: dict[str, Any], path: str) -> dict[str, torch.Tensor]:
        """Return tensors for `load_peft`, if `fields`, peft's config, treats the module at `path` in its own way."""
        return tensors

    def load_peft(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load tensors as returned by `to_peft`."""
        raise NotImplementedError(f"{type(self).__name__} has no load_peft")


def _sharing(site: Site) -> Any:
    """Return what the sites have in common that share an adapter: layer, role and side of routed experts."""
    return (site.layer, site.role, site.side) if site.routed else site.key


class ModelAdapter(Adapter):
    """An adapter of the whole model, called around its decoder."""

    scope = "model"
    identity = False
    sliceable = False

    def __init__(self, config: Any, world: World) -> None:
        """Build the adapter."""
        nn.Module.__init__(self)
        self.context = CallContext()

    @classmethod
    def sites(cls, anatomy: Anatomy, model: nn.Module, at: str) -> tuple[Site, ...]:
        """Return no sites: there is one adapter for the whole model."""
        return ()

    @classmethod
    def build(cls, config: Any, places: Mapping[str, Place], world: World) -> dict[str, Adapter]:
        """Return the adapter under the key "model"."""
        with torch.device(weights.device(world.model)):
            return {"model": cls(config, world)}

    def prepare(self, decoder: nn.Module, kwargs: dict[str, Any]) -> tuple[dict[str, Any], Finish | None]:
        """Return new keyword arguments for a call of the decoder, and a function that postprocesses its output.

        Args:
            decoder: the module that is called.
            kwargs: of the call.

        Returns:
            The new arguments; and a function that takes the decoder's output (None if the call failed) and returns the
            new output, or None to leave it unchanged.
        """
        raise NotImplementedError(f"{type(self).__name__} has no prepare")


Finish = Callable[[Any], Any]


class ParameterAdapter(Adapter):
    """An adapter that trains fp32 copies of the host's parameters, which replace them while the host runs.

    The base's own parameters do not change. Modules that share a parameter share its copy.
    """

    trains_base = True
    sliceable = False

    def __init__(self, config: Any, site: Site, base: nn.Module) -> None:
        """Copy the parameters of the host.

        Raises:
            CannotInject: they are offloaded or quantised.
        """
        super().__init__(config, site, base)
        self.transposed = weights.is_transposed(base)
        if state := "offloaded" if weights.is_offloaded(base) else "quantised" if weights.is_quantized(base) else "":
            raise CannotInject(
                f"{config.type!r} trains the parameters of {site.path}, which are {state}. Load an unquantised base on "
                "one device, or choose an adapter that does not train the base's own parameters."
            )
        for name, value in base.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(value.detach().float().clone()))

    @classmethod
    def build(cls, config: Any, places: Mapping[str, Place], world: World) -> dict[str, Adapter]:
        """Return an adapter for each site; hosts that share a parameter share its copy."""
        adapters = super().build(config, places, world)
        copies: dict[nn.Parameter, nn.Parameter] = {}
        for key, place in places.items():
            for name, parameter in place.host.named_parameters(recurse=False):
                copy = copies.setdefault(parameter, adapters[key].get_parameter(name))
                adapters[key].register_parameter(name, copy)
        return adapters

    @classmethod
    def parameter_count(cls, config: Any, sites: Sequence[Site], world: World) -> int:
        """Return the number of parameters of the hosts; shared ones count once."""
        hosts = [world.model.get_submodule(site.path) for site in sites]
        return sum(p.numel() for p in {p for host in hosts for p in host.parameters(recurse=False)})

    @staticmethod
    def parameter_sites(
        model: nn.Module, wanted: Callable[[nn.Module], bool] = lambda module: True
    ) -> tuple[Site, ...]:
        """Return a site for each module that has parameters of its own and that `wanted` accepts."""
        return tuple(
            Site(path, "module", -1, 0, 0, "parameters", path)
            for path, module in base_modules(model)
            if path and weights.has_parameters(module) and wanted(module)
        )

    def merged(self, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the trained parameters."""
        return {name: p.T if self.transposed and name == "weight" else p for name, p in self.named_parameters()}
