"""Ablations: the model with parts of an adapter switched off, or with more or less of it than was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from llm_adapters_lab.core.composition import mix
from llm_adapters_lab.core.hooks import Chain
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.errors import BadSpec, NoView
from llm_adapters_lab.inspection.probes import both, mean_loss
from llm_adapters_lab.inspection.weight_metrics import by_layer

Score = Callable[[Any, torch.Tensor], float]
SCALES = tuple(i / 10 for i in range(16))


@dataclass(frozen=True)
class Ablation:
    """A score with the adapter of each layer switched off, one layer at a time.

    Attributes:
        full: with the whole adapter.
        base: without any of it.
        without: by layer, with that layer's part off.
    """

    full: float
    base: float
    without: dict[int, float]


@contextmanager
def without(injection: Injection, keys: Iterable[str]) -> Iterator[None]:
    """Run the model as if the adapters of these sites were not there."""
    chains = [chain for key in keys if injection.name not in (chain := injection.chain(key)).off]
    for chain in chains:
        chain.off.add(injection.name)
    try:
        yield
    finally:
        for chain in chains:
            chain.off.discard(injection.name)


def ablation(model: Any, ids: torch.Tensor, injection: Injection, score: Score = mean_loss) -> Ablation:
    """Score the model with the adapters of each layer switched off, one layer at a time.

    Args:
        model: the adapted model.
        ids: of the text; what `score` gets as its second argument.
        injection: the adapters.
        score: of a model on the ids, for instance an accuracy.

    Raises:
        NoView: the method acts on the model as a whole or outside its layers.
    """
    layers = list(by_layer(injection))
    if not layers:
        raise NoView(f"{injection.config.type!r} is one adapter for all layers; no layer's part can be switched off.")
    base, full = both(injection, lambda: score(model, ids))
    result = {}
    for layer, keys in layers:
        with without(injection, keys):
            result[layer] = score(model, ids)
    return Ablation(full, base, result)


def interpolation(
    model: Any, ids: torch.Tensor, injection: Injection, scales: Sequence[float] = SCALES, score: Score = mean_loss
) -> list[tuple[float, float]]:
    """Score the model with what the adapter adds at every site multiplied by λ: y + λ (Δ(x, y) - y).

    Other adapters are off meanwhile; λ = 0 is the base, λ = 1 the adapter.

    Args:
        model: the adapted model.
        ids: of the text; what `score` gets as its second argument.
        injection: the adapters.
        scales: λ.
        score: of a model on the ids.

    Returns:
        (λ, score) in the order given.

    Raises:
        NoView: the method adds nothing at a site that could be scaled.
    """
    chains = [module for module in model.modules() if isinstance(module, Chain)]
    before = [(set(chain.off), dict(chain.mix)) for chain in chains]
    try:
        mix(model, {injection.name: 1.0})
    except BadSpec as error:
        raise NoView(f"There is no contribution to scale: {error}") from None
    result = []
    try:
        for scale in scales:
            mix(model, {injection.name: scale})
            result.append((scale, score(model, ids)))
    finally:
        for chain, (off, shares) in zip(chains, before, strict=True):
            chain.off, chain.mix = off, shares
    return result
