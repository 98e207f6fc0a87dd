"""What an adapter is.

An adapter is one file of `llm_adapters_lab/adapters`: a config, a class, `@register`. No other file names it. What the
rest of the lab has to know of a method, it asks of the class: its attributes below, and the methods that it overrides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.anatomy import Anatomy, modules
from llm_adapters_lab.core.call_context import CallContext
from llm_adapters_lab.core.placement import Level
from llm_adapters_lab.core.placement import sites as placement_sites
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotInject


@dataclass(frozen=True)
class Place:
    """Where one adapter is built: a site, and the module at it (never registered as a child of the adapter)."""

    site: Site
    host: nn.Module


@dataclass(frozen=True)
class World:
    """What an adapter may look at while it is built.

    Attributes:
        model: the base.
        anatomy: of the base.
        tokenizer: of the base, if one is at hand.
    """

    model: nn.Module
    anatomy: Anatomy
    tokenizer: Any = None


class Adapter(nn.Module):
    """A trainable change of what happens at one site.

    Attributes:
        scope: "site" sits at places of the base; "model" is one for the whole model, called around its decoder.
        level: what `attn` and `mlp` mean in a placement for this adapter.
        identity: the adapted model equals the base before training (for the default initialisation).
        trains_base: its tensors are copies of the base's own parameters, and stand in for them.
        looks_back: it mixes tokens, so the tokens before one in its row matter; implies `needs_context`.
        needs_context: `context` is filled in during every call of the decoder.
        sliceable: several of these can share one pass of the base, each acting on its own slice of the rows.
        peft_type: the method's name in peft; empty where it has none.
        example: fields of a small config, for tests and the documentation.
        context: the call that is running; see `CallContext`.
    """

    scope: ClassVar[Literal["site", "model"]] = "site"
    level: ClassVar[Level] = "projection"
    identity: ClassVar[bool] = True
    trains_base: ClassVar[bool] = False
    looks_back: ClassVar[bool] = False
    needs_context: ClassVar[bool] = False
    sliceable: ClassVar[bool] = True
    peft_type: ClassVar[str] = ""
    example: ClassVar[Mapping[str, Any]] = {}
    context: CallContext

    def __init__(self, config: Any, site: Site, base: nn.Module) -> None:
        """Build the adapter for one site.

        Args:
            config: the adapter's own config.
            site: where it sits.
            base: the module at `site.path`, for its weight or device; never registered as a child.
        """
        super().__init__()
        self.context = CallContext()

    @classmethod
    def sites(cls, anatomy: Anatomy, model: nn.Module, at: str) -> tuple[Site, ...]:
        """Return where the adapter sits in a model: what the placement says, unless the method has its own places."""
        return placement_sites(anatomy, at, cls.level)

    @classmethod
    def build(cls, config: Any, places: Mapping[str, Place], world: World) -> dict[str, Adapter]:
        """Return the adapters of an injection by site key; "model" stands for the whole model.

        By default one for each place, independent of the others. Override it where places share tensors, or where a
        network makes the tensors of all of them: a tensor that several adapters hold is trained, counted and saved
        once.

        Args:
            config: the adapter's own config.
            places: the sites with their modules, by key; empty with scope "model".
            world: the base as a whole.
        """
        adapters: dict[str, Adapter] = {}
        for key, place in places.items():
            with torch.device(weights.device(place.host)):
                adapters[key] = cls(config, place.site, place.host)
        return adapters

    @classmethod
    def parameter_count(cls, config: Any, sites: Sequence[Site], world: World) -> int:
        """Return the number of trainable parameters by the formula of the method, with nothing built."""
        return sum(cls.per_site(config, site) for site in sites)

    @staticmethod
    def per_site(config: Any, site: Site) -> int:
        """Return the number of trainable parameters at one site."""
        raise NotImplementedError("This adapter has no formula for its number of parameters.")

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the new output.

        Args:
            x: input of the site, (..., d_in).
            y: output of the site, (..., d_out).
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    # A mergeable adapter overrides this with a method that takes the own tensors of the module at its site by name
    # ("weight" as (d_out, d_in), "bias"; fp32, or fp64 for views) and returns those that change.
    merged: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None

    # An adapter with a loss of its own overrides this with a method that returns it: a scalar for the pass that has
    # just run, in nats per counted label, which training adds to the mean loss.
    penalty: Callable[[], torch.Tensor] | None = None

    def to_peft(self, config: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return the fields of peft's config, and this adapter's tensors by the names they have in peft."""
        raise NotImplementedError(f"{type(self).__name__} has no to_peft")

    @classmethod
    def from_peft(cls, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Return the lab's config for one of peft, taking out of `fields` what is understood; None: not this method."""
        raise NotImplementedError(f"{cls.__name__} has no from_peft")

    def load_peft(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load the tensors that `to_peft` would give."""
        raise NotImplementedError(f"{type(self).__name__} has no load_peft")


class ModelAdapter(Adapter):
    """An adapter of the model as a whole, called around its decoder."""

    scope = "model"
    identity = False
    sliceable = False

    def __init__(self, config: Any, world: World) -> None:
        """Build the adapter from the base as a whole."""
        nn.Module.__init__(self)
        self.context = CallContext()

    @classmethod
    def sites(cls, anatomy: Anatomy, model: nn.Module, at: str) -> tuple[Site, ...]:
        """Return no site: the adapter is one for the whole model."""
        return ()

    @classmethod
    def build(cls, config: Any, places: Mapping[str, Place], world: World) -> dict[str, Adapter]:
        """Return the one adapter, under "model"."""
        with torch.device(weights.device(world.model)):
            return {"model": cls(config, world)}

    def prepare(self, decoder: nn.Module, kwargs: dict[str, Any]) -> tuple[dict[str, Any], Finish | None]:
        """Return the keyword arguments with which the decoder is to run, and what to do with its output.

        Args:
            decoder: the module that is called.
            kwargs: of the call.

        Returns:
            The new arguments; and a function that takes the decoder's output, or None where it failed, and returns the
            output to pass on. None leaves the output as it is.
        """
        raise NotImplementedError(f"{type(self).__name__} has no prepare")


Finish = Callable[[Any], Any]


class ParameterAdapter(Adapter):
    """An adapter that trains parameters of the base itself: fp32 copies of them stand in while their module runs.

    The base keeps its own. Modules that share a parameter share the copy.
    """

    trains_base = True
    sliceable = False

    def __init__(self, config: Any, site: Site, base: nn.Module) -> None:
        """Copy the parameters of the module at the site."""
        super().__init__(config, site, base)
        self.turned = weights.turned(base)
        if held := "offloaded" if weights.offloaded(base) else "quantised" if weights.packed(base) else "":
            cure = "Load the base as it is on disk and as a whole, or choose an adapter that leaves its weights alone."
            raise CannotInject(f"{config.type!r} trains what {site.path} holds, and that is {held}. {cure}")
        for name, value in base.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(value.detach().float().clone()))

    @classmethod
    def build(cls, config: Any, places: Mapping[str, Place], world: World) -> dict[str, Adapter]:
        """Return an adapter for each place; modules that share a parameter of the base share its copy."""
        adapters = super().build(config, places, world)
        copies: dict[nn.Parameter, nn.Parameter] = {}
        for key, place in places.items():
            for name, parameter in place.host.named_parameters(recurse=False):
                copy = copies.setdefault(parameter, adapters[key].get_parameter(name))
                adapters[key].register_parameter(name, copy)
        return adapters

    @classmethod
    def parameter_count(cls, config: Any, sites: Sequence[Site], world: World) -> int:
        """Return the number of parameters at the sites, shared ones once."""
        hosts = [world.model.get_submodule(site.path) for site in sites]
        return sum(p.numel() for p in {p for host in hosts for p in host.parameters(recurse=False)})

    @staticmethod
    def places(model: nn.Module, wanted: Callable[[nn.Module], bool] = lambda module: True) -> tuple[Site, ...]:
        """Return a site for each module with parameters of its own that `wanted` accepts."""
        return tuple(
            Site(path, "module", -1, 0, 0, "parameters", path)
            for path, module in modules(model)
            if path and weights.holds(module) and wanted(module)
        )

    def merged(self, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the trained parameters."""
        return {name: p.T if self.turned and name == "weight" else p for name, p in self.named_parameters()}
