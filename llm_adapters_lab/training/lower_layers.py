"""The layers below the lowest adapter: what they make of a row does not depend on the adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core.injection import Injection


def layers_below(*injections: Injection) -> int:
    """Return the number of layers below all sites of some adapters of a decoder; 0 if one acts on the whole model."""
    lowest = [min((site.layer for site in each.sites.values()), default=0) for each in injections]
    return max(0, min(lowest))


@contextmanager
def copied_above(
    layers: Sequence[nn.Module], copies: int, shape: Sequence[int], begin: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Give copies of the rows, one after the other, to these layers; what lies below them runs once.

    Args:
        layers: in their order, up to the last one.
        copies: their number.
        shape: of the token ids, (B, L); with one packed sequence (1, T), copies are laid end to end.
        begin: called before the first of the layers runs.
    """
    rows, length = shape

    def copy(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(copy, value))
        if not isinstance(value, torch.Tensor) or value.ndim < 2 or value.shape[0] != rows:
            return value
        if rows == 1:
            return value.repeat(1, copies, *[1] * (value.ndim - 2)) if value.shape[1] == length else value
        return value.repeat(copies, *[1] * (value.ndim - 1))

    def before(layer: nn.Module, args: Any, kwargs: Any) -> Any:
        if layer is layers[0]:
            begin()
        return copy(args), {name: copy(value) for name, value in kwargs.items()}

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
