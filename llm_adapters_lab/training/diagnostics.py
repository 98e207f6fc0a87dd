"""How training moves the adapter, site by site: weights, gradients and updates, measured beside the training."""

from __future__ import annotations

import math
from typing import Any

import torch

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.events import Probed

Groups = dict[str, list[torch.Tensor]]


def tensors(injection: Injection) -> Groups:
    """Group the trainable tensors as events report them: by site, or one by one for a model-wide adapter."""
    groups: Groups = {key: list(a.parameters()) for key, a in injection.adapters.items()}
    if "model" in groups:
        groups = {f"model/{name}": [p] for name, p in injection.adapters["model"].named_parameters()}
    return groups


def copied(injection: Injection) -> Groups:
    """Return copies of the trainable tensors in fp32, grouped."""
    return {key: [p.detach().float().clone() for p in group] for key, group in tensors(injection).items()}


@torch.no_grad()
def moved(injection: Injection, start: Groups) -> dict[str, float]:
    """Return ||θ - θ_start|| by site."""
    return {
        key: math.sqrt(sum(float((p.float() - q).square().sum()) for p, q in zip(now, start[key], strict=True)))
        for key, now in tensors(injection).items()
    }


def update(optimizer: Any, injection: Injection, step: int, every: int, norm: float, clip: float) -> list[Probed]:
    """Let the optimiser take a step and clear the gradients; on every `every`-th step measure what it did.

    Measuring only reads, so training goes the same way with and without it.

    Args:
        optimizer: of the trainable tensors.
        injection: what is trained.
        step: number of the step, from 1.
        every: steps between measurements; 0: none.
        norm: of all gradients together, before they were clipped.
        clip: the norm to which they were clipped; 0: they were not.

    Returns:
        The measurement, or nothing on the other steps.
    """
    due = every > 0 and step % every == 0
    before = copied(injection) if due else {}
    optimizer.step()
    # The gradients at hand are clipped, by the factor that torch's `clip_grad_norm_` uses; what is told is not.
    found = [_probe(injection, before, step, max(1.0, (norm + 1e-6) / clip) if clip else 1.0)] if due else []
    optimizer.zero_grad()
    return found


@torch.no_grad()
def _probe(injection: Injection, before: Groups, step: int, unclip: float) -> Probed:
    groups = tensors(injection)
    now = [p.detach().float() for group in groups.values() for p in group]
    changes = torch._foreach_sub(now, [q for group in before.values() for q in group])
    slopes = [p.new_zeros(()) if p.grad is None else p.grad.float() for group in groups.values() for p in group]
    # All norms in one transfer: each of its own would make a GPU wait.
    norms = [n.to(now[0].device) for n in torch._foreach_norm([*now, *slopes, *changes])]
    values = iter(torch.stack(norms).tolist())
    weight, gradient, change = (
        {key: math.hypot(*(next(values) for _ in group)) for key, group in groups.items()} for _ in range(3)
    )
    return Probed(
        step,
        weight,
        {key: unclip * value for key, value in gradient.items()},
        {key: value / weight[key] if weight[key] else 0.0 for key, value in change.items()},
    )
