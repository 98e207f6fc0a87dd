"""The optimiser of a training: AdamW, its learning-rate schedule and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from llm_adapters_lab.training.spec import TrainSpec

FACTOR = "factor"
"""Key of a parameter group that holds the factor of its learning rate."""


def make_optimizer(
    parameters: list[nn.Parameter], plan: TrainSpec, rates: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.Optimizer:
    """Return AdamW, fused into one kernel for all tensors where the device supports it.

    Args:
        parameters: the trainable tensors.
        plan: of the training.
        rates: factors of the learning rate, for tensors that have one.
    """
    # Restored moments are contiguous, and the fused kernel follows the memory order of the tensors.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_contiguous() for p in parameters)
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((rates or {}).get(parameter, 1.0), []).append(parameter)
    split = [{"params": group, FACTOR: factor} for factor, group in groups.items()]
    return torch.optim.AdamW(split, lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=fused)


def learning_rate(plan: TrainSpec, step: int, steps: int) -> float:
    """Return the learning rate of a step (from 0): a linear warm-up, then the schedule, towards 0 at the end."""
    if step < plan.warmup:
        return plan.learning_rate * (step + 1) / plan.warmup
    left = (steps - step) / max(1, steps - plan.warmup)
    factor = {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[plan.schedule]
    return plan.learning_rate * factor


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Set the learning rate of all parameters, times the factor that some have."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(FACTOR, 1.0)


def clip_gradients(accelerator: Accelerator, parameters: list[nn.Parameter], limit: float) -> float:
    """Scale the gradients down to a norm of at most `limit` (0: no limit); return their norm before that."""
    return float(accelerator.clip_grad_norm_(parameters, limit or math.inf) or 0.0)
