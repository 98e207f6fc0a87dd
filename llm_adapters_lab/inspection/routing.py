"""How a mixture of experts distributes tokens: the share that each expert gets, and the weight of what it returns.

plain, adapted = both(injection, lambda: expert_loads(model, rows))       # without the adapter, and with it
adapted["model.layers.0.mlp.experts"].share                               # (experts,), sums to 1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.weights import device as device_of
from llm_adapters_lab.errors import NoView


@dataclass(frozen=True)
class ExpertLoad:
    """What the routed experts of one layer were given.

    Attributes:
        layer: number of the layer.
        share: of the assignments of tokens to experts, (experts,); sums to 1.
        weight: mean weight of an expert in the sum, over the tokens that visit it, (experts,); nan if none does. None
            if experts are modules of a list, which do not receive it.
        tokens: number of tokens.
    """

    layer: int
    share: torch.Tensor
    weight: torch.Tensor | None
    tokens: int


def has_experts(anatomy: Anatomy) -> bool:
    """Return whether a model has routed experts."""
    return any(site.sublayer.endswith("experts") for site in anatomy.projections)


@torch.no_grad()
def expert_loads(model: Any, rows: Sequence[torch.Tensor | Sequence[int]]) -> dict[str, ExpertLoad]:
    """Return the load of the routed experts of each layer, by the path of the module that holds them.

    The model runs as it is, on one row after the other, so nothing is padded. Tokens that an adapter prepends are not
    counted.

    Args:
        model: base or adapted model.
        rows: token ids of each text, (tokens,) each.

    Raises:
        NoView: the model has no routed experts, or they are called in a way that does not show which tokens they get.
    """
    banks = _banks(model)
    if not banks or not len(rows):
        missing = "There are no rows to look at." if banks else f"{type(model).__name__} has no routed experts."
        raise NoView(missing)
    with ExitStack() as hooks:
        for hook in (hook for bank in banks for hook in bank.hooks(model)):
            hooks.callback(hook.remove)
        for row in rows:
            ids = torch.as_tensor(row, device=device_of(model)).view(1, -1)
            for bank in banks:
                bank.begin(ids.shape[1])
            model(input_ids=ids, use_cache=False)
            for bank in banks:
                bank.end()
    return {bank.path: bank.load() for bank in banks}


class _Bank:
    """The experts of one layer, in one module or in a list, and what they have been given so far."""

    def __init__(self, model: nn.Module, path: str, layer: int) -> None:
        self.path, self.layer, self.module = path, layer, model.get_submodule(path)
        self.listed = isinstance(self.module, nn.ModuleList | nn.ModuleDict)
        count = len(list(self.module.children())) if self.listed else len(_stacks(self.module)[0])
        self.assigned, self.weights, self.now = torch.zeros(3, count, dtype=torch.float64)
        self.tokens = self.length = 0

    def hooks(self, model: nn.Module) -> Iterator[RemovableHandle]:
        """Register what counts."""
        if not self.listed:
            yield self.module.register_forward_pre_hook(self._stacked, with_kwargs=True)
            return
        yield model.get_submodule(self.path.rpartition(".")[0]).register_forward_pre_hook(self._block, with_kwargs=True)
        for number, expert in enumerate(self.module.children()):
            yield expert.register_forward_pre_hook(partial(self._one, number), with_kwargs=True)

    def begin(self, length: int) -> None:
        """Start a row."""
        self.length, self.now = length, torch.zeros_like(self.now)
        self.tokens += length

    def end(self) -> None:
        """Add up a row."""
        if not self.now.any():
            raise self._refused("were not called as one module or as modules of a list")
        if self.listed and bool((self.now >= self.length).all()):
            raise self._refused("all read every token, and are weighted elsewhere")
        self.assigned += self.now

    def load(self) -> ExpertLoad:
        """Return the result."""
        share = self.assigned / self.assigned.sum()
        return ExpertLoad(self.layer, share, None if self.listed else self.weights / self.assigned, self.tokens)

    def _stacked(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the experts of each token, (tokens, k), and their weights, (tokens, k) or (tokens, experts)."""
        given = [z for z in (*args, *kwargs.values()) if isinstance(z, torch.Tensor)]
        tables = [z for z in given[1:] if z.ndim == 2]
        chosen = next((z for z in tables if not z.is_floating_point()), None)
        weights = next(
            (z for z in tables if z.is_floating_point() and chosen is not None and len(z) == len(chosen)), None
        )
        if chosen is None or weights is None:
            raise self._refused("are not called with the experts of each token and their weights")
        chosen = chosen[-self.length :].long()  # what an adapter prepends comes first
        weights = weights[-self.length :]
        if weights.shape != chosen.shape:
            weights = weights.gather(-1, chosen)
        own = chosen < len(self.assigned)  # beyond them are those that compute nothing
        experts, values = chosen[own].cpu(), weights[own].double().cpu()
        self.now += experts.bincount(minlength=len(self.assigned))
        self.weights += experts.bincount(values, minlength=len(self.assigned))

    def _block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _tokens(args, kwargs) != self.length:
            raise self._refused("are a list, in which the tokens that an adapter prepends cannot be told from others")

    def _one(self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.now[number] += _tokens(args, kwargs)

    def _refused(self, reason: str) -> NoView:
        return NoView(
            f"The load of the experts at {self.path} ({type(self.module).__name__}) is unknown: they {reason}."
        )


def _banks(model: nn.Module) -> list[_Bank]:
    modules = dict(model.named_modules())
    found: dict[str, int] = {}
    for site in Anatomy.of(model).projections:
        if site.sublayer.endswith("experts") and (path := _holder(modules, site.path)):
            found.setdefault(path, site.layer)
    return [_Bank(model, path, layer) for path, layer in found.items()]


def _holder(modules: dict[str, nn.Module], path: str) -> str:
    """Return the path of the list of experts, or of the module with stacked experts, in which a projection lies."""
    while path:
        path = path.rpartition(".")[0]
        module = modules.get(path)
        if isinstance(module, nn.ModuleList | nn.ModuleDict) or (module is not None and _stacks(module)):
            break
    return path


def _stacks(module: nn.Module) -> list[torch.Tensor]:
    return [p for p in module._parameters.values() if p is not None and p.ndim == 3]


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    z = next(z for z in (*args, *kwargs.values()) if isinstance(z, torch.Tensor))
    return z.shape[:-1].numel()
