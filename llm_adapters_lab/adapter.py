"""What an adapter is, and the registry that finds every one of them.

An adapter is one file of `llm_adapters_lab/adapters`: a config, a class, `@register`. No other file names it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import nn

from llm_adapters_lab import weights
from llm_adapters_lab.anatomy import Anatomy, Site, modules
from llm_adapters_lab.errors import BadSpec, CannotInject, choices
from llm_adapters_lab.placement import Level, parse
from llm_adapters_lab.placement import sites as placement_sites
from llm_adapters_lab.wrappers import QuantizeConfig, SparseConfig, SplitConfig


class AdapterConfig(BaseModel):
    """Fields that every adapter has. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    type: str = Field(description="name of the adapter")
    at: str = Field(default="", description="placement, e.g. q,v or attn+mlp or down@0-7; empty for the usual one")
    sparse: SparseConfig | None = Field(default=None, description="mask: {score, sparsity, scope, warmup}")
    split: SplitConfig | None = Field(default=None, description="parts by turns in training: {parts, of, kl}")
    quantize: QuantizeConfig | None = Field(default=None, description="few bits for each weight: {bits}")

    @field_validator("at")
    @classmethod
    def _understood(cls, at: str) -> str:
        if at:
            parse(at)
        return at


class ModelAdapterConfig(AdapterConfig):
    """Fields of every adapter of the model as a whole, which has no placement to choose."""

    at: Literal[""] = Field(default="", description="empty: this adapter is not placed, it acts on the whole model")


class Adapter(nn.Module):
    """A trainable change of what happens at one site.

    Attributes:
        level: what `attn` and `mlp` mean in a placement for this adapter.
        identity: the adapted model equals the base before training (for the default initialisation).
        peft_type: how peft calls the method; empty where it has none.
    """

    level: ClassVar[Level] = "projection"
    identity: ClassVar[bool] = True
    peft_type: ClassVar[str] = ""

    def __init__(self, config: Any, site: Site, base: nn.Module) -> None:
        """Build the adapter for one site.

        Args:
            config: the adapter's own config.
            site: where it sits.
            base: the module at `site.path`, for its weight or device; never registered as a child.
        """
        super().__init__()

    @classmethod
    def sites(cls, anatomy: Anatomy, model: nn.Module, at: str) -> tuple[Site, ...]:
        """Return where the adapter sits in a model: what the placement says, unless the method has its own places."""
        return placement_sites(anatomy, at, cls.level)

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

    identity = False

    def __init__(self, config: Any, anatomy: Anatomy, model: nn.Module, tokenizer: Any = None) -> None:
        """Build the adapter from the anatomy of a model and, if one is at hand, its tokenizer."""
        nn.Module.__init__(self)

    @classmethod
    def sites(cls, anatomy: Anatomy, model: nn.Module, at: str) -> tuple[Site, ...]:
        """Return no site: the adapter is one for the whole model."""
        return ()

    def prepare(self, decoder: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments with which the decoder is to run."""
        raise NotImplementedError(f"{type(self).__name__} has no prepare")

    def finish(self, output: Any) -> Any:
        """Return what the decoder is to give back; output is None where it failed."""
        return output


class ParameterAdapter(Adapter):
    """An adapter that trains parameters of the base itself: fp32 copies of them stand in while their module runs.

    The base keeps its own. Modules that share a parameter share the copy.
    """

    def __init__(self, config: Any, site: Site, base: nn.Module) -> None:
        """Copy the parameters of the module at the site."""
        super().__init__(config, site, base)
        self.turned = weights.turned(base)
        if held := "offloaded" if weights.offloaded(base) else "quantised" if weights.packed(base) else "":
            cure = "Load the base as it is on disk and as a whole, or choose an adapter that leaves its weights alone."
            raise CannotInject(f"{config.type!r} trains what {site.path} holds, and that is {held}. {cure}")
        for name, value in base.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(value.detach().float().clone()))

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


@dataclass(frozen=True)
class Entry:
    """One registered adapter.

    Attributes:
        name: as written in `adapter.type`.
        cls: the module.
        config: its pydantic config.
        at: its usual placement.
        source: the paper.
        colour: in every figure, as #rrggbb; empty: chosen by name.
        idea: first line of the file's docstring.
    """

    name: str
    cls: type[Adapter]
    config: type[AdapterConfig]
    at: str
    source: str
    colour: str
    idea: str


ENTRY_POINTS = "llm_adapters_lab.adapters"
"""Group in which another package names modules that register adapters."""
REGISTRY: dict[str, Entry] = {}
A = TypeVar("A", bound=type[Adapter])


def register(name: str, *, config: type[AdapterConfig], at: str, source: str, colour: str = "") -> Callable[[A], A]:
    """Make an adapter known by name to specs, command line, saving and panels.

    Args:
        name: as written in `adapter.type`.
        config: its config class.
        at: the placement used where a spec names none.
        source: arXiv number of the paper.
        colour: in every figure, as #rrggbb.
    """
    if not (name.isascii() and name.replace("-", "_").isidentifier() and len(name) <= 64):
        raise BadSpec(f"An adapter cannot be called {name!r}: use letters, digits and dashes, 64 at most.")

    def add(cls: A) -> A:
        module = importlib.import_module(cls.__module__)
        if not cls.__module__.startswith(f"{__package__}.adapters."):
            _import_own()  # so that a clash is found here and not later
        before = REGISTRY.get(name)
        if before and before.cls.__module__ != cls.__module__:
            owner = f"{before.cls.__module__}.{before.cls.__name__}"
            cure = f"register {cls.__module__}.{cls.__name__} under another one."
            raise BadSpec(f"The adapter name {name!r} belongs to {owner}; {cure}")
        doc = cls.__doc__ if cls.__module__ == "__main__" else module.__doc__ or cls.__doc__
        idea = (doc or "").strip().partition("\n")[0]
        REGISTRY[name] = Entry(name, cls, config, at, source, colour, idea)
        return cls

    return add


@cache
def _import_own() -> None:
    from llm_adapters_lab import adapters

    for module in pkgutil.iter_modules(adapters.__path__):
        importlib.import_module(f"{adapters.__name__}.{module.name}")


@cache
def _import_all() -> None:
    _import_own()
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        point.load()


def all_adapters() -> dict[str, Entry]:
    """Return every registered adapter by name."""
    _import_all()
    return REGISTRY


def get_adapter(name: str) -> Entry:
    """Return the adapter of that name.

    Raises:
        BadSpec: there is none; the message offers the nearest names.
    """
    known = all_adapters()
    if name not in known:
        raise BadSpec(f"There is no adapter {name!r}. {choices(name, known)}")
    return known[name]
