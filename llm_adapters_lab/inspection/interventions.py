"""Interventions: functions that a `Recorder` applies to what a site computes while the model runs.

Any function will do that takes the selected tokens y of a site's output, (rows, n, d), or (n, d) for a boolean mask of
tokens, and returns their replacement, of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from llm_adapters_lab.config import finite
from llm_adapters_lab.errors import BadSpec

Edit = Callable[[torch.Tensor], torch.Tensor]


class AdapterScale(NamedTuple):
    """An intervention on one adapter instead of the whole output; see `scale_adapter`."""

    name: str
    factor: float


def zero(y: torch.Tensor) -> torch.Tensor:
    """Replace y by zeros."""
    return torch.zeros_like(y)


def replace(value: torch.Tensor) -> Edit:
    """Replace y by a value that broadcasts to it, such as an activation recorded in another run (patching)."""
    return lambda y: value.to(y).expand_as(y)


def add(value: torch.Tensor) -> Edit:
    """Add a value that broadcasts to y, such as a steering vector (d,)."""
    return lambda y: y + value.to(y)


def scale_adapter(name: str, factor: float) -> AdapterScale:
    """Scale the change that one adapter makes: before + factor * (adapter(x, before) - before).

    Args:
        name: of the adapter, as given to `inject`.
        factor: 0 switches it off and 1 changes nothing, both exactly; negative factors reverse it.

    Raises:
        BadSpec: the factor is not finite in fp32.
    """
    if not finite(factor):
        raise BadSpec(f"scale_adapter({name!r}, …): the factor must be finite in fp32.")
    return AdapterScale(name, factor)
