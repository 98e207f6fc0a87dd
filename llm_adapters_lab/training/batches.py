"""Batches: the number of steps, the rows of each step, micro-batches of similar length, padded tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.tasks.tokens import IGNORED, Sample, pad
from llm_adapters_lab.training.spec import TrainSpec


def step_count(plan: TrainSpec, rows: int) -> int:
    """Return the number of steps: `epochs` over the rows, at most `max_steps`."""
    steps = max(1, math.ceil(plan.epochs * rows / plan.batch))
    return min(steps, plan.max_steps or steps)


def describe_steps(plan: TrainSpec, rows: int) -> str:
    """Return the number of steps in words, such as "750 steps (3 epochs; max_steps 2,000 is not reached)"."""
    steps = step_count(plan, rows)
    words = f"{steps:,} step{'s' * (steps != 1)}"
    if plan.max_steps is None or steps < plan.max_steps:
        unreached = f"; max_steps {plan.max_steps:,} is not reached" if plan.max_steps else ""
        return f"{words} ({plan.epochs:g} epoch{'s' * (plan.epochs != 1)}{unreached})"
    return f"{words} (max_steps; {steps * plan.batch / rows:.2g} of {plan.epochs:g} epochs)"


def row_order(count: int, batch: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield the row numbers of each step: one seeded permutation per epoch, chained, so that every batch is full.

    The order depends on the seed only, not on the number of processes.
    """
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    for _ in range(steps):
        while len(waiting) < batch:
            waiting += torch.randperm(count, generator=generator).tolist()
        yield waiting[:batch]
        waiting = waiting[batch:]


def micro_batches(
    samples: Sequence[Sample], rows: int | None, tokens: int | None, *, padded: bool, halvings: int = 0
) -> list[list[Sample]]:
    """Split the rows of a step into micro-batches of similar length.

    Args:
        samples: the rows.
        rows: maximum number of rows in one; None: no limit.
        tokens: maximum number of tokens in one; a longer row gets one of its own. None: no limit.
        padded: count padding as well.
        halvings: how many times each is then cut in half.
    """
    chunks: list[list[Sample]] = []
    total = 0
    for sample in sorted(samples, key=lambda s: len(s.ids)):
        # Rows are sorted by length, so the last one is the longest.
        count = len(chunks[-1]) if chunks else 0
        total = (count + 1) * len(sample.ids) if padded else total + len(sample.ids)
        if not count or count == rows or (tokens and total > tokens):
            chunks.append([])
            total = len(sample.ids)
        chunks[-1].append(sample)
    for _ in range(halvings):
        halves = [(chunk[: (len(chunk) + 1) // 2], chunk[(len(chunk) + 1) // 2 :]) for chunk in chunks]
        chunks = [half for pair in halves for half in pair if half]
    return chunks


def collate(samples: Sequence[Sample], pad_id: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Return a batch padded on the right: input_ids, attention_mask and labels, each (rows, longest)."""
    batch = {
        "input_ids": pad([s.ids for s in samples], pad_id, "right"),
        "attention_mask": pad([[1] * len(s.ids) for s in samples], 0, "right"),
        "labels": pad([s.labels for s in samples], IGNORED, "right"),
    }
    return {name: send(tensor, device) for name, tensor in batch.items()}


def collate_extras(samples: Sequence[Sample], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Return the extra inputs of the rows by name, (rows, ...) each.

    Raises:
        BadSpec: some rows lack an input that others have.
    """
    names = dict.fromkeys(name for sample in samples for name in sample.extras)
    if lacking := [f"{s.id} lacks {name}" for s in samples for name in names if name not in s.extras]:
        raise BadSpec(f"All rows must have the same extra inputs, but {'; '.join(lacking[:8])}.")
    return {name: send(torch.stack([s.extras[name] for s in samples]), device) for name in names}


def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy a tensor to a device; a GPU keeps computing meanwhile."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
