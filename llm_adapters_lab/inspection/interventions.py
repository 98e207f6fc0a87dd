"""Edits: what a `Recorder` may change at a site while the model runs.

An edit is any function of y, the chosen tokens of a site's output, to what is to stand there instead. y is (rows, n, d)
or, for a boolean mask of tokens, (n, d).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Edit = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class AdapterScale:
    """Scale what one adapter changes: before + factor * (adapter(x, before) - before).

    Attributes:
        name: of the adapter, as given to `inject`.
        factor: 0 is as if it were off, 1 changes nothing, above 1 exaggerates, below 0 turns it around.
    """

    name: str
    factor: float


def zero(y: torch.Tensor) -> torch.Tensor:
    """Put zeros in place of y."""
    return torch.zeros_like(y)


def replace(value: torch.Tensor) -> Edit:
    """Put a value in place of y, such as what another run recorded there.

    Args:
        value: broadcasts to y, so (d,) or the shape of y.
    """
    return lambda y: value.to(y).expand_as(y)


def add(value: torch.Tensor) -> Edit:
    """Add a value to y, such as a steering direction.

    Args:
        value: broadcasts to y, so (d,) or the shape of y.
    """
    return lambda y: y + value.to(y)


def scale_adapter(name: str, factor: float) -> AdapterScale:
    """Scale what one adapter changes at a site; see `AdapterScale`."""
    return AdapterScale(name, factor)
