"""Ablations: the model with part of an adapter switched off, or with its contribution scaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_adapters_lab.core.composition import mix
from llm_adapters_lab.core.hooks import AdapterChain
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.errors import BadSpec, NoView
from llm_adapters_lab.inspection.probes import both, mean_loss
from llm_adapters_lab.inspection.weight_metrics import by_layer

Score = Callable[[Any, torch.Tensor], float]
SCALES = tuple(i / 10 for i in range(16))


@dataclass(frozen=True)
class Ablation:
    """Scores with the adapters of one layer at a time switched off.

    Attributes:
        full: with the whole adapter.
        base: without it.
        without: by layer, without the adapters of that layer.
    """

    full: float
    base: float
    without: dict[int, float]


without = Injection.disabled
"""A context in which the model runs as if an injection's adapters at some sites were not there."""


def ablation(model: Any, ids: torch.Tensor, injection: Injection, score: Score = mean_loss) -> Ablation:
    """Score the model with the adapters of one layer at a time switched off.

    Args:
        model: the adapted model.
        ids: token ids of a text; the second argument of `score`.
        injection: the adapters.
        score: of a model on the ids, such as a loss or an accuracy.

    Raises:
        NoView: the method acts on the model as a whole or outside its layers.
    """
    layers = list(by_layer(injection))
    if not layers:
        raise NoView(f"{injection.config.type!r} is one adapter for all layers; no layer's part can be switched off.")
    base, full = both(injection, lambda: score(model, ids))
    scores = {}
    for layer, keys in layers:
        with without(injection, keys):
            scores[layer] = score(model, ids)
    return Ablation(full, base, scores)


def interpolation(
    model: Any, ids: torch.Tensor, injection: Injection, scales: Sequence[float] = SCALES, score: Score = mean_loss
) -> list[tuple[float, float]]:
    """Score the model with the adapter's contribution at every site scaled by λ: y + λ (Δ(x, y) - y).

    Other adapters are off meanwhile; λ = 0 is the base, λ = 1 the adapter.

    Args:
        model: the adapted model.
        ids: token ids of a text; the second argument of `score`.
        injection: the adapters.
        scales: λ.
        score: of a model on the ids, such as a loss or an accuracy.

    Returns:
        (λ, score) in the order given.

    Raises:
        NoView: the method adds nothing at a site that could be scaled.
    """
    chains = [chain for chain in model.modules() if isinstance(chain, AdapterChain)]
    before = [(chain, set(chain.off), dict(chain.mix), chain.rule) for chain in chains]
    result = []
    try:
        for scale in scales:
            try:
                mix(model, {injection.name: scale})
            except BadSpec as error:
                raise NoView(f"There is no contribution to scale: {error}") from None
            result.append((scale, score(model, ids)))
    finally:
        for chain, off, shares, rule in before:
            chain.off, chain.mix, chain.rule = off, shares, rule
    return result
