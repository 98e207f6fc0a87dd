"""Diagnostics: how a step moves the adapter at each site (weights, gradients, updates), measured without effect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.errors import listed
from llm_adapters_lab.events import Noticed, Probed

Groups = dict[str, list[torch.Tensor]]


def trainable_tensors(injection: Injection) -> Groups:
    """Return the trainable tensors as events group them: by site, or one by one for a model-wide adapter."""
    groups: Groups = {key: list(a.parameters()) for key, a in injection.adapters.items()}
    if "model" in groups:
        groups = {f"model/{name}": [p] for name, p in injection.adapters["model"].named_parameters()}
    return groups


def snapshot(injection: Injection) -> Groups:
    """Return fp32 copies of the trainable tensors by group."""
    return {key: [p.detach().float().clone() for p in group] for key, group in trainable_tensors(injection).items()}


@torch.no_grad()
def distances(injection: Injection, start: Groups) -> dict[str, float]:
    """Return ||θ - θ_start|| by group."""
    return {
        key: math.sqrt(sum(float((p.float() - q).square().sum()) for p, q in zip(now, start[key], strict=True)))
        for key, now in trainable_tensors(injection).items()
    }


def without_gradient(groups: Mapping[str, Sequence[torch.Tensor]]) -> list[Noticed]:
    """Return a warning if a step has given some sites no gradient at all, because the model did not use them.

    Args:
        groups: what is trained, by site.
    """
    unused = [key for key, group in groups.items() if group and all(p.grad is None for p in group)]
    text = (
        f"The first step gave no gradient to {len(unused)} of {len(groups)} sites ({listed(unused, 3, ', ')}): the "
        "model did not call them on these rows, or reads their weights from elsewhere. They learn nothing."
    )
    return [Noticed(text)] if unused else []


def optimizer_step(
    optimizer: Any, injection: Injection, step: int, every: int, norm: float, clip: float
) -> list[Probed]:
    """Take a step of the optimiser and clear the gradients; at every `every`-th step, measure what it did.

    Args:
        optimizer: of the trainable tensors.
        injection: what is trained.
        step: number of the step, from 1.
        every: steps between measurements; 0: none.
        norm: of all gradients together before clipping.
        clip: the norm they were clipped to; 0: they were not.

    Returns:
        The measurement, or an empty list at the other steps.
    """
    due = every > 0 and step % every == 0
    before = snapshot(injection) if due else {}
    optimizer.step()
    # The gradients have been clipped by this factor of torch's `clip_grad_norm_`; norms before clipping are reported.
    found = [_probe(injection, before, step, max(1.0, (norm + 1e-6) / clip) if clip else 1.0)] if due else []
    optimizer.zero_grad()
    return found


@torch.no_grad()
def _probe(injection: Injection, before: Groups, step: int, unclip: float) -> Probed:
    groups = trainable_tensors(injection)
    now = [p.detach().float() for group in groups.values() for p in group]
    changes = torch._foreach_sub(now, [q for group in before.values() for q in group])
    slopes = [p.new_zeros(()) if p.grad is None else p.grad.float() for group in groups.values() for p in group]
    # All norms in one transfer; a GPU would wait for each separate one.
    norms = [n.to(now[0].device) for n in torch._foreach_norm([*now, *slopes, *changes])]
    values = iter(torch.stack(norms).tolist())
    weight, gradient, change = (
        {key: math.hypot(*(next(values) for _ in group)) for key, group in groups.items()} for _ in range(3)
    )
    return Probed(
        step,
        norm=weight,
        gradient_norm={key: unclip * value for key, value in gradient.items()},
        update_ratio={key: value / weight[key] if weight[key] else 0.0 for key, value in change.items()},
    )
