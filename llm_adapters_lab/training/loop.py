"""The training loop: a generator of events over Accelerate.

A cell, a panel, the command line and a test consume the same iterator; closing it stops the training.
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

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.modifiers.base import before_step, before_training
from llm_adapters_lab.errors import TrainingFailed
from llm_adapters_lab.events import Event, Norms, Step, Validated
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training import diagnostics
from llm_adapters_lab.training.batches import order, step_count
from llm_adapters_lab.training.checkpoints import Checkpoint, State
from llm_adapters_lab.training.device import deterministic, make_accelerator
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import Gradients, make_optimizer, same

# cuBLAS reads it once, at its first product; deterministic training needs it, and on Hopper it is the default size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
NORM_POINTS = 20
"""How often, over a whole training, the adapter norms are recorded."""


def learning_rate(plan: TrainSpec, step: int, steps: int) -> float:
    """Return the learning rate of a step (from 0): a linear warm-up, then the schedule towards 0 at the end."""
    if step < plan.warmup:
        return plan.learning_rate * (step + 1) / plan.warmup
    left = (steps - step) / max(1, steps - plan.warmup)
    factor = {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[plan.schedule]
    return plan.learning_rate * factor


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
    after_step: Callable[[State], None] | None = None,
    gradients: Gradients | None = None,
) -> Iterator[Event]:
    """Train the injected adapter; the base stays as it is.

    The loss of a step is the mean over the counted labels of the whole batch, whatever its micro-batches and processes.
    With validation rows the adapter ends at its best step.

    Args:
        model: the model that `inject` was called on.
        injection: what is trained.
        samples: the training rows.
        plan: learning rate, batch, steps and the rest.
        accelerator: default: one made for `plan.precision`.
        validation: rows whose loss chooses the best step.
        seed: of row order and dropout.
        pad_id: token id of padding.
        saved: go on from there.
        after_step: called when a step and its events are over; what it raises ends the training.
        gradients: who computes them, and readies the model; default: they are computed for this adapter alone.

    Yields:
        `FellBack`, `Step`, `Probed`, `Norms` and `Validated` events, in order of time.

    Raises:
        BadSpec: nothing can be compiled here.
        TrainingFailed: loss or gradient are not finite; the message names step and rows, and the step is not taken. Or
            one row alone needs more memory than there is.
    """
    accelerator = accelerator or make_accelerator(plan.precision)
    same(accelerator, injection)
    gradients = gradients or Gradients(model, injection, samples, plan, pad_id)
    optimizer = accelerator.prepare_optimizer(make_optimizer(injection.parameters(), plan))
    steps = step_count(plan, len(samples))
    check = plan.evaluate_every or steps
    state = State(injection, optimizer, accelerator.scaler, diagnostics.copied(injection))
    before_training(injection)
    torch.manual_seed(seed)
    if saved:
        state.restore(saved)
        gradients.news()  # told before
    began, tokens = time.perf_counter() - state.seconds, state.tokens
    with deterministic(plan.deterministic), gradients.ready(accelerator) as prepared:
        rows = pairwise(chain(order(len(samples), plan.batch, steps, seed), [[]]))
        for step, pair in islice(enumerate(rows), state.step, None):
            rate = learning_rate(plan, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch, following = ([samples[i] for i in numbers] for numbers in pair)
            if rank := accelerator.process_index:  # the chance of a checkpoint is that of the first process
                torch.manual_seed(hash((seed, step, rank)))
            if before_step(injection, step, partial(gradients.step, accelerator, prepared, batch)):
                same(accelerator, injection)
            loss = gradients.step(accelerator, prepared, batch, following)
            yield from gradients.news()
            norm = float(accelerator.clip_grad_norm_(injection.parameters(), plan.clip or math.inf) or 0.0)
            _check_finite(step, loss, 0.0 if accelerator.scaler else norm, batch)
            state.whole = False
            probed = diagnostics.update(optimizer, injection, step + 1, plan.probe_every, norm, plan.clip)
            tokens += sum(len(s.ids) for s in batch)
            spent = time.perf_counter() - began
            left = spent / (step + 1) * (steps - step - 1)
            yield Step(step + 1, steps, loss, rate, norm, tokens, spent, tokens / spent, left)
            yield from probed
            last = step + 1 == steps
            if last or (step + 1) % max(1, steps // NORM_POINTS) == 0:
                yield Norms(step + 1, diagnostics.moved(injection, state.start))
            if validation and (last or (step + 1) % check == 0):
                held_out = gradients.validation_loss(accelerator, prepared, validation)
                better = state.best is None or held_out < state.best[0]
                if better:
                    state.best = held_out, injection.state_dict()
                yield Validated(step + 1, held_out, better)
            state.done(step + 1, tokens, time.perf_counter() - began)
            if after_step:
                after_step(state)
        if state.best:
            injection.load_state_dict(state.best[1])


def _check_finite(step: int, loss: float, norm: float, batch: Sequence[Sample]) -> None:
    """Refuse a step, counted from 0, that would leave the adapter without a finite value."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = f"loss of step {step + 1} is {loss}" if not math.isfinite(loss) else f"gradient of step {step + 1} is {norm}"
    names = ", ".join(s.id for s in batch[:8])
    raise TrainingFailed(
        f"The {what}; its rows begin with {names}. "
        "Lower train.learning_rate, lengthen train.warmup, or use fp32 or bf16 instead of fp16."
    )
