"""Models, rows and measurements for tests of training's fast paths."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.models import random_models
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training.loss import FastPaths, Objective


def samples(count: int = 12, loss_on: str = "answer", seed: int = 3, least: int = 8) -> list[Sample]:
    """Return rows that begin alike, half of them further than the others."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 128, (n,), generator=generator).tolist())

    first, second = draw(3), draw(2)
    rows = []
    for i in range(count):
        ids = (*first, *(second if i % 2 else ()), *draw(least - 3 + i % 5))
        rows.append(Sample(f"row/{i}", ids, (IGNORED,) * 5 + ids[5:] if loss_on == "answer" else ids))
    return rows


def adapted(family: str, adapter: str = "lora", **given: Any) -> tuple[Any, Injection]:
    """Return a model without dropout whose adapter is no longer at its start."""
    model = random_models.tiny(f"tiny:{family}")
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and (name == "p" or "drop" in name):
                setattr(module, name, 0.0)
    torch.manual_seed(0)
    injection = inject(model, get_adapter(adapter).config(type=adapter, **given))
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model, injection


def gradients(model: Any, injection: Injection, cuts: FastPaths, rows: list[Sample]) -> tuple[float, torch.Tensor]:
    """Return the mean loss per label and all gradients of it."""
    model.zero_grad()
    counted = sum(row.counted for row in rows)
    with Objective(model, cuts).loss(model, rows) as loss:
        (loss / counted).backward()
    return float(loss.detach()) / counted, torch.cat([p.grad.flatten() for p in injection.parameters()])


class Small(torch.nn.Module):
    """Has memory for so many tokens in training, and says so as a GPU does: in the forward or the backward pass."""

    def __init__(self, inner: torch.nn.Module, tokens: int, backward: bool) -> None:
        super().__init__()
        self.inner, self.tokens, self.backward = inner, tokens, backward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        if self.training and x.shape[:-1].numel() > self.tokens:
            if not self.backward:
                raise torch.OutOfMemoryError("too many tokens")
            y.register_hook(self.fail)
        return y

    def fail(self, slope: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("too many tokens")


def allocated(model: Any, cuts: FastPaths, rows: list[Sample]) -> int:
    """Return the most bytes that one forward and backward pass takes from torch's allocator, as its profiler says."""
    watched = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    gc.collect()  # what is freed now does not count as freed by the pass
    gc.disable()
    try:
        with watched as found, Objective(model, cuts).loss(model, rows) as loss:
            loss.backward()
    finally:
        gc.enable()
    now = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
