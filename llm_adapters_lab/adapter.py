"""What an adapter is, and the registry that finds every one of them.

An adapter is one file of `llm_adapters_lab/adapters`: a config, a class, `@register`. No other file names it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import nn

from llm_adapters_lab.anatomy import Anatomy, Site
from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.placement import Level, parse


class AdapterConfig(BaseModel):
    """Fields that every adapter has. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str = Field(description="name of the adapter, as in `llm_adapters_lab adapters`")
    at: str = Field(default="", description="placement, e.g. q,v or attn+mlp or down@0-7; empty for the usual one")

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
        scope: "site" for one module per site; "model" for a single module built from the whole anatomy.
        level: what `attn` and `mlp` mean in a placement for this adapter.
        identity: the adapted model equals the base before training (for the default initialisation).
    """

    scope: ClassVar[Literal["site", "model"]] = "site"
    level: ClassVar[Level] = "projection"
    identity: ClassVar[bool] = True

    def __init__(self, config: Any, site: Site, base: nn.Module) -> None:
        """Build the adapter for one site.

        Args:
            config: the adapter's own config.
            site: where it sits.
            base: the module at `site.path`, for its weight or device; never registered as a child.
        """
        super().__init__()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the new output.

        Args:
            x: input of the site, (..., d_in).
            y: output of the site, (..., d_out).
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    # A mergeable adapter overrides this with a method W -> W', both (d_out, d_in), in fp32.
    merged_weight: Callable[[torch.Tensor], torch.Tensor] | None = None


class ModelAdapter(Adapter):
    """An adapter of the model as a whole, called before its decoder runs."""

    scope = "model"

    def __init__(self, config: Any, anatomy: Anatomy, model: nn.Module) -> None:
        """Build the adapter from the anatomy of a model."""
        nn.Module.__init__(self)

    def prepare(self, decoder: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments with which the decoder is to run."""
        raise NotImplementedError(f"{type(self).__name__} has no prepare")


@dataclass(frozen=True)
class Entry:
    """One registered adapter.

    Attributes:
        name: as written in `adapter.type`.
        cls: the module.
        config: its pydantic config.
        at: its usual placement.
        source: the paper.
        idea: first line of the file's docstring.
    """

    name: str
    cls: type[Adapter]
    config: type[AdapterConfig]
    at: str
    source: str
    idea: str


REGISTRY: dict[str, Entry] = {}
A = TypeVar("A", bound=type[Adapter])


def register(name: str, *, config: type[AdapterConfig], at: str, source: str) -> Callable[[A], A]:
    """Make an adapter known by name to specs, command line, saving and panels.

    Args:
        name: as written in `adapter.type`.
        config: its config class.
        at: the placement used where a spec names none.
        source: arXiv number of the paper.
    """

    def add(cls: A) -> A:
        module = importlib.import_module(cls.__module__)
        idea = (module.__doc__ or cls.__doc__ or "").strip().partition("\n")[0]
        REGISTRY[name] = Entry(name, cls, config, at, source, idea)
        return cls

    return add


@cache
def _import_all() -> None:
    from llm_adapters_lab import adapters

    for module in pkgutil.iter_modules(adapters.__path__):
        importlib.import_module(f"{adapters.__name__}.{module.name}")


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
