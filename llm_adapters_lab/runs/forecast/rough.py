"""A rough duration of a run from its number of operations and the speed of this machine, measured once.

A pass takes the time of its multiplications, or that of reading the weights if that is longer, and some time for every
layer, which is what counts in small models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.models.loading import pick_dtype
from llm_adapters_lab.runs.forecast.size import size_of
from llm_adapters_lab.runs.spec import RunSpec

EFFICIENCY = 0.35
"""Speed of a model's multiplications as a share of that of large square ones."""
CALLS = 120
"""Time of a layer's other work in the forward pass, in calls of a tiny linear layer."""
SPOKEN = 0.5
"""Length of an answer as a share of the longest."""
AGAIN = 30.0
"""Seconds after which the speed of the machine is measured again."""
PASSES = 3
"""A training step in forward passes: its backward pass takes twice as long."""


@dataclass(frozen=True)
class Speed:
    """What this machine does in a second.

    Attributes:
        operations: floating-point operations of large multiplications.
        bytes: of weights that are read for a few rows.
        calls: of a tiny linear layer.
    """

    operations: float
    bytes: float
    calls: float


_MEASURED: dict[torch.dtype, tuple[float, Speed]] = {}
"""The highest speeds that were measured, with the time of the last measurement."""


def speed(dtype: torch.dtype) -> Speed:
    """Return the speed of this machine, measured in less than 0.5 s, again after half a minute.

    The highest one counts: where other programs take the processors, a multiplication may wait for them many times
    longer than it works.
    """
    at, best = _MEASURED.get(dtype, (-AGAIN, Speed(0, 0, 0)))
    if time.monotonic() - at > AGAIN:
        now = _measure(dtype)
        best = Speed(*(max(getattr(known, name) for known in (best, now)) for name in ("operations", "bytes", "calls")))
        _MEASURED[dtype] = time.monotonic(), best
    return best


def _measure(dtype: torch.dtype) -> Speed:
    gpu = torch.cuda.is_available()
    device, edges, wide = ("cuda", (2048, 4096), 8192) if gpu else ("cpu", (512, 768), 4096)
    with torch.no_grad():
        squares = [torch.ones(edge, edge, dtype=dtype, device=device) for edge in edges]
        tall, row = torch.ones(wide, wide, dtype=dtype, device=device), torch.ones(1, wide, dtype=dtype, device=device)
        tiny = torch.ones(4, 4, dtype=dtype, device=device)
        multiply = max(2 * len(square) ** 3 / _shortest(partial(torch.mm, square, square)) for square in squares)
        read = _shortest(lambda: row @ tall)
        call = _shortest(lambda: [torch.nn.functional.linear(tiny, tiny) for _ in range(20)]) / 20
    return Speed(multiply, tall.numel() * tall.element_size() / read, 1 / call)


def _shortest(work: Callable[[], object], limit: float = 0.06) -> float:
    """Return the shortest of several times of some work, in seconds."""
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < limit:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def seconds(
    spec: RunSpec, base: Blueprint, tokens: float, steps: int, length: float, asked: Mapping[str, tuple[int, int]]
) -> float:
    """Estimate the duration of a run in seconds; that of loading the base is not included.

    Args:
        spec: of the run.
        base: blueprint of its base.
        tokens: that are trained on, over all steps.
        steps: number of them.
        length: mean number of tokens of a row.
        asked: by task, the number of rows to score on and the longest answer in tokens.
    """
    amount, layers = size_of(spec, base), len(base.anatomy.layers)
    streams = max((getattr(part, "streams", 1) for part in spec.adapter.parts), default=1) if spec.adapter else 1
    held = speed(pick_dtype(spec.dtype))
    training = speed(pick_dtype(spec.train.precision))
    # An embedding is looked up, not multiplied. Forward pass and gradients of the activations are 4 operations per
    # parameter of the base, 6 per trainable one.
    used = amount.base - sum(site.d_in * site.d_out for site in base.anatomy.embeddings if site.role == "embed")
    per_token = 4 * used + 6 * amount.trainable
    found = (
        streams * tokens * per_token / (EFFICIENCY * training.operations)
        + steps * PASSES * layers * CALLS / training.calls
    )
    beams = 4 if spec.eval.protocol == "paper" else 1
    for rows, answer in asked.values():
        batches = -(-rows // spec.eval.batch)
        together = min(rows, spec.eval.batch) * beams * streams
        work = 2 * used * together / (EFFICIENCY * held.operations)
        step = max(work, amount.weights / held.bytes) + layers * CALLS / held.calls
        prompt = 2 * used * together * max(length, 1) / (EFFICIENCY * held.operations)
        found += batches * (SPOKEN * answer * step + prompt)
    return found
