"""Base class of adapters with a part for each group of rows: a task, a language, a speaker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn.functional import linear

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.adapter import Adapter, Place, World
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import BadSpec, CannotInject, choices


class GroupedConfig(AdapterConfig):
    """Fields of every adapter with a part for each group."""

    groups: tuple[str, ...] = Field(
        default=(), description="names of the groups; default: those of the training rows, see data.group"
    )

    train: Literal["all", "groups"] = Field(
        default="all", description="groups: only what each group has of its own, with the rest as it is at the start"
    )

    def with_groups(self, names: Sequence[str]) -> Self:
        """Return the config with these groups, unless it names its own."""
        return self.model_copy(update={"groups": self.groups or tuple(names)})

    @model_validator(mode="after")
    def _generated(self) -> Self:
        if len({*self.groups}) < len(self.groups) or "" in self.groups:
            raise BadSpec("groups are different names, none of them empty.")
        if found := [name for name in ("sparse", "split", "quantize") if getattr(self, name)]:
            raise BadSpec(
                f"adapter.{found[0]}: it changes matrices, but those of this adapter are generated. Remove it."
            )
        return self


class Grouped(Adapter):
    """An adapter whose matrices are generated for the groups that occur in a call."""

    needs_context = True
    sliceable = False

    def __init__(self, config: Any, site: Site, base: nn.Module) -> None:
        """Remember the groups."""
        super().__init__(config, site, base)
        self.groups = config.groups

    @classmethod
    def build(cls, config: Any, places: Mapping[str, Place], world: World) -> dict[str, Adapter]:
        """Return an adapter for each site, joined by what they share, and freeze what is not trained."""
        adapters = super().build(config, places, world)
        with torch.device(weights.device(world.model)):
            cls.join(config, adapters)
        for adapter in adapters.values() if config.train == "groups" else ():
            for name, parameter in adapter.named_parameters():
                parameter.requires_grad_(name in cls.by_group(config))
        return adapters

    @classmethod
    def join(cls, config: Any, adapters: Mapping[str, Any]) -> None:
        """Let the adapters of an injection share what they do; by default nothing."""

    def present(self) -> tuple[list[int], torch.Tensor | None]:
        """Return the own numbers of the G groups in the running call, and where each is.

        The latter is 1 where a token is of the group and 0 elsewhere, (B, 1, G), or (1, T, G) in a packed call. Without
        groups in the call the list is empty, and stands for the mean of all; the latter is None, as it is for a single
        group.

        Raises:
            CannotInject: the adapter has no part for a group.
        """
        if (number := self.context.group) is None or not self.groups:
            return [], None
        found: torch.Tensor = number.unique()  # type: ignore[no-untyped-call]
        names = [self.context.groups[i] for i in found.tolist()]
        if strange := [name for name in names if name not in self.groups]:
            raise CannotInject(f"The adapter has no part for {strange[0]!r}. {choices(strange[0], self.groups)}")
        return [self.groups.index(name) for name in names], number[..., None] == found if len(names) > 1 else None

    def number(self, group: str) -> list[int]:
        """Return the own number of a group in a list, which is empty for "mean".

        Raises:
            BadSpec: there is no such group.
        """
        if group not in (*self.groups, "mean"):
            raise BadSpec(f"The adapter has no part for the group {group!r}. {choices(group, (*self.groups, 'mean'))}")
        return [self.groups.index(group)] if group in self.groups else []


def two_layers(
    x: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    where: torch.Tensor | None,
    between: Callable[[torch.Tensor], torch.Tensor] = lambda hidden: hidden,
) -> torch.Tensor:
    """Return second f(first x), (..., d_out), with the matrices of each token's group.

    All groups of the call are computed in one product, and what belongs to others is set to zero in between.

    Args:
        x: (..., d_in).
        first: (G, b, d_in).
        second: (G, d_out, b).
        where: from `Grouped.present`; None if G is 1.
        between: f, applied to (..., G, b).
    """
    hidden = between(linear(x, first.flatten(0, 1)).view(*x.shape[:-1], *first.shape[:2]))
    if where is not None:
        if x.ndim == 2:  # in models that flatten the input of their MLP
            where = where.expand(-1, len(x) // len(where), -1).flatten(0, 1) if where.shape[1] == 1 else where[0]
        hidden = hidden * where[..., None].to(hidden)
    return linear(hidden.flatten(-2), second.transpose(0, 1).flatten(1))
