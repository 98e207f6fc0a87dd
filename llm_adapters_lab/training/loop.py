"""The training loop: a generator of events over Accelerate.

A notebook cell, a panel, the command line and a test consume the same iterator; closing it stops the training.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice, pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.utils import get_total_norm

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.modifiers.base import before_step, before_training
from llm_adapters_lab.errors import TrainingFailed
from llm_adapters_lab.events import Event, Norms, Step, Validated
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training import diagnostics
from llm_adapters_lab.training.batches import row_order, step_count
from llm_adapters_lab.training.checkpoints import Checkpoint, TrainingState
from llm_adapters_lab.training.device import deterministic, make_accelerator
from llm_adapters_lab.training.optimizer import clip_gradients, learning_rate, make_optimizer, set_learning_rate
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import GradientComputer, broadcast_adapter

# Deterministic kernels need it, and cuBLAS reads it once, at its first product. On Hopper it is the default size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
NORM_POINTS = 20
"""Number of times per training that the adapter norms are recorded."""


def train(
    model: Any,
    injection: Injection,
    samples: Sequence[Sample],
    plan: TrainSpec,
    accelerator: Accelerator | None = None,
    *,
    validation: Sequence[Sample] = (),
    seed: int = 0,
    pad_id: int = 0,
    saved: Checkpoint | None = None,
    after_step: Callable[[TrainingState], None] | None = None,
    gradients: GradientComputer | None = None,
) -> Iterator[Event]:
    """Train the injected adapter; the base stays as it is.

    The loss of a step is the mean over the counted labels (pairs, answers) of the whole batch, however it is split into
    micro-batches and over processes. With validation rows, the adapter ends in the state of its best validation.

    Args:
        model: the model that `inject` was called on.
        injection: what is trained.
        samples: the training rows.
        plan: learning rate, batch, number of steps and the rest.
        accelerator: default: one for `plan.precision`.
        validation: rows whose loss selects the best step.
        seed: for the row order and dropout.
        pad_id: token id of padding.
        saved: the checkpoint to resume from.
        after_step: called after each step and its events; an exception ends the training.
        gradients: computes the gradients and prepares the model; default: one for this adapter alone.

    Yields:
        `FellBack`, `Noticed`, `Step`, `Probed`, `Merged`, `Norms` and `Validated` events, in order of time.

    Raises:
        BadSpec: compilation is asked for, and there is no compiler.
        TrainingFailed: loss, gradient or adapter are not finite (the message names step and rows, and the step is not
            taken or not saved), or a single row needs more memory than there is.
    """
    accelerator = accelerator or make_accelerator(plan.precision)
    broadcast_adapter(accelerator, injection)
    gradients = gradients or GradientComputer(model, injection, samples, plan, pad_id)
    heads = gradients.heads
    optimizer = accelerator.prepare_optimizer(make_optimizer(gradients.trained, plan, injection.rates()))
    steps = step_count(plan, len(samples))
    state = TrainingState(injection, optimizer, accelerator.scaler, diagnostics.snapshot(injection))
    state.heads, state.accelerator = heads, accelerator
    before_training(injection)
    torch.manual_seed(seed)
    if saved:
        state.restore(saved)
        gradients.warnings()  # already in the log
    began, tokens = time.perf_counter() - state.seconds, state.tokens
    with deterministic(plan.deterministic), gradients.ready(accelerator) as prepared:
        for step, batch, following in _batches(samples, plan, steps, seed, state.step):
            set_learning_rate(optimizer, rate := learning_rate(plan, step, steps))
            if rank := accelerator.process_index:  # checkpoints hold the random state of the first process only
                torch.manual_seed(hash((seed, step, rank)))
            batch = gradients.objective.draw(accelerator, seed, step, batch)
            if before_step(injection, step, partial(gradients.step, accelerator, prepared, batch)):
                broadcast_adapter(accelerator, injection)

            loss = gradients.step(accelerator, prepared, batch, following)
            yield from gradients.warnings()
            if step == 0:
                yield from diagnostics.without_gradient(
                    heads.groups() if heads else diagnostics.trainable_tensors(injection)
                )
            if heads:
                norm = heads.clip(accelerator, plan.clip)
            else:
                norm = clip_gradients(accelerator, gradients.trained, plan.clip)
            _check_finite(step, {"loss": loss, "gradient": 0.0 if accelerator.scaler else norm}, batch)
            state.consistent = False
            probed = diagnostics.optimizer_step(optimizer, injection, step + 1, plan.probe_every, norm, plan.clip)
            largest = float(get_total_norm([p.detach() for p in gradients.trained], math.inf))
            _check_finite(step, {"largest weight": largest}, batch)
            merged = heads.after_step(accelerator, optimizer, step + 1, steps, NORM_POINTS) if heads else []

            tokens += sum(len(sample.ids) for sample in batch)
            seconds = time.perf_counter() - began
            left = seconds / (step + 1) * (steps - step - 1)
            yield Step(step + 1, steps, loss, rate, norm, tokens, seconds, tokens / seconds, left, gradients.measured)
            yield from (*probed, *merged)
            last = step + 1 == steps
            if last or (step + 1) % max(1, steps // NORM_POINTS) == 0:
                yield Norms(step + 1, diagnostics.distances(injection, state.start))
            if validation and (last or (step + 1) % (plan.evaluate_every or steps) == 0):
                held_out, right = gradients.validate(accelerator, prepared, validation)
                _check_finite(step, {"validation loss": held_out}, validation)
                yield Validated(step + 1, held_out, state.keep_best(held_out), right)

            state.step_done(step + 1, tokens, time.perf_counter() - began)
            if after_step:
                after_step(state)
        if state.best:
            injection.load_state_dict(state.best[1])


def _batches(
    samples: Sequence[Sample], plan: TrainSpec, steps: int, seed: int, start: int
) -> Iterator[tuple[int, list[Sample], list[Sample]]]:
    """Yield from step `start` on (counted from 0): its number, its rows, and the rows of the next step."""
    batches = chain(row_order(len(samples), plan.batch, steps, seed), [[]])
    for step, (rows, following) in islice(enumerate(pairwise(batches)), start, None):
        yield step, [samples[i] for i in rows], [samples[i] for i in following]


def _check_finite(step: int, values: dict[str, float], batch: Sequence[Sample]) -> None:
    """Refuse a step (counted from 0) that would destroy the adapter, or has."""
    wrong = next((f"{what} of step {step + 1} is {x}" for what, x in values.items() if not math.isfinite(x)), None)
    if wrong is None:
        return
    raise TrainingFailed(
        f"The {wrong}; its rows begin with {', '.join(s.id for s in batch[:8])}. "
        "Lower train.learning_rate, lengthen train.warmup, or use fp32 or bf16 instead of fp16."
    )
