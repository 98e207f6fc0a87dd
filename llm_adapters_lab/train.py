"""The training loop: a generator of events over Accelerate.

A cell, a panel, the command line and a test consume the same iterator; closing it stops the training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.nn.functional import cross_entropy

from llm_adapters_lab import dynamics
from llm_adapters_lab.batches import IGNORED, Sample, collate, order
from llm_adapters_lab.checkpoint import Checkpoint, State
from llm_adapters_lab.errors import BadSpec, TrainingFailed
from llm_adapters_lab.events import Event, Norms, Step, Validated
from llm_adapters_lab.inject import Injection
from llm_adapters_lab.models import pick_dtype
from llm_adapters_lab.spec import TrainSpec
from llm_adapters_lab.wrappers import quantize, sparse, split

Loss = Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
NORM_POINTS = 20
"""How often, over a whole training, the adapter norms are recorded."""


def make_accelerator(precision: str) -> Accelerator:
    """Return an accelerator for a precision of `TrainSpec`; "auto" is bf16 on a GPU that has it, else fp32."""
    dtype = pick_dtype(precision)  # type: ignore[arg-type]
    mixed = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    # Accelerate keeps the first precision of a process for ever; a notebook trains with several.
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed)


def step_count(plan: TrainSpec, rows: int) -> int:
    """Return the number of steps: epochs over the rows, or `max_steps` if that is less."""
    steps = max(1, math.ceil(plan.epochs * rows / plan.batch))
    return min(steps, plan.max_steps or steps)


def learning_rate(plan: TrainSpec, step: int, steps: int) -> float:
    """Return the learning rate of a step (from 0): a linear warm-up, then the schedule towards 0 at the end."""
    if step < plan.warmup:
        return plan.learning_rate * (step + 1) / plan.warmup
    left = (steps - step) / max(1, steps - plan.warmup)
    factor = {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[plan.schedule]
    return plan.learning_rate * factor


def token_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the summed negative log-likelihood of the counted labels, in nats.

    Args:
        model: a causal language model.
        batch: of `batches.collate`.
    """
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    labels = batch["labels"][:, 1:]
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def _objective(injection: Injection) -> Loss:
    """Return the loss that is trained, summed over labels: a split adapter compares two forwards."""
    plan = injection.config.split
    if plan is None or plan.parts == 1:
        return token_loss

    def both(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        labels = batch["labels"][:, 1:]
        first, second = (model(**inputs, use_cache=False).logits[:, :-1][labels != IGNORED].float() for _ in range(2))
        targets = labels[labels != IGNORED]
        fits = sum(cross_entropy(logits, targets, reduction="sum") for logits in (first, second)) / 2
        return fits + plan.kl * split.divergence(first, second)

    return both


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

    Yields:
        `Step`, `Probed`, `Norms` and `Validated` events, in order of time.

    Raises:
        BadSpec: the batch cannot be shared among the processes.
        TrainingFailed: loss or gradient are not finite; the message names step and rows. The step is not taken.
    """
    accelerator = accelerator or make_accelerator(plan.precision)
    world, rank = accelerator.num_processes, accelerator.process_index
    if plan.batch % world:
        raise BadSpec(f"train.batch = {plan.batch} cannot be shared equally among {world} processes.")
    if plan.gradient_checkpointing:
        set_checkpointing(model, True)
    optimizer = torch.optim.AdamW(injection.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    steps = step_count(plan, len(samples))
    check = plan.evaluate_every or steps
    state, loss_of = State(injection, optimizer, accelerator.scaler, dynamics.copied(injection)), _objective(injection)
    quantize.train_on(injection)
    torch.manual_seed(seed)
    if saved:
        state.restore(saved)
    prepared.train()
    began, tokens = time.perf_counter() - state.seconds, state.tokens
    try:
        for step, rows in islice(enumerate(order(len(samples), plan.batch, steps, seed)), state.step, None):
            rate = learning_rate(plan, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = [samples[i] for i in rows]
            mine = sorted(batch[rank::world], key=lambda s: len(s.ids))
            work = (accelerator, prepared, loss_of, mine, plan.micro_batch, sum(s.counted for s in batch), pad_id)
            sparse.settle(injection, step, partial(_gradients, *work))
            loss = _gradients(*work)
            norm = float(accelerator.clip_grad_norm_(injection.parameters(), plan.clip or math.inf) or 0.0)
            _check_finite(step, loss, 0.0 if accelerator.scaler else norm, batch)
            state.whole = False
            probed = dynamics.update(optimizer, injection, step + 1, plan.probe_every, norm, plan.clip)
            tokens += sum(len(s.ids) for s in batch)
            spent = time.perf_counter() - began
            left = spent / (step + 1) * (steps - step - 1)
            yield Step(step + 1, steps, loss, rate, norm, tokens, spent, tokens / spent, left)
            yield from probed
            last = step + 1 == steps
            if last or (step + 1) % max(1, steps // NORM_POINTS) == 0:
                yield Norms(step + 1, dynamics.moved(injection, state.start))
            if validation and (last or (step + 1) % check == 0):
                held_out = validation_loss(prepared, validation, plan, pad_id, accelerator.device)
                better = state.best is None or held_out < state.best[0]
                if better:
                    state.best = held_out, injection.state_dict()
                yield Validated(step + 1, held_out, better)
            state.done(step + 1, tokens, time.perf_counter() - began)
            if after_step:
                after_step(state)
        if state.best:
            injection.load_state_dict(state.best[1])
    finally:
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        if plan.gradient_checkpointing:
            set_checkpointing(model, False)
        model.eval()


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


def set_checkpointing(model: Any, on: bool) -> None:
    """Turn the recomputation of activations on or off, under whichever name transformers has for it."""
    verb = "enable" if on else "disable"
    newer = getattr(model, f"activation_checkpointing_{verb}", None)
    (newer or getattr(model, f"gradient_checkpointing_{verb}"))()


def _gradients(
    accelerator: Accelerator,
    model: Any,
    loss_of: Loss,
    samples: Sequence[Sample],
    micro: int | None,
    counted: int,
    pad_id: int,
) -> float:
    """Accumulate the gradients of one step over micro-batches; return the mean loss over all processes."""
    size = micro or len(samples)
    chunks = [samples[i : i + size] for i in range(0, len(samples), size)]
    total = torch.zeros((), device=accelerator.device)
    for number, chunk in enumerate(chunks, start=1):
        with accelerator.no_sync(model) if number < len(chunks) else nullcontext():
            loss = loss_of(model, collate(chunk, pad_id, accelerator.device)) / max(1, counted)
            # Data parallelism averages gradients over processes, and a mean over all labels is wanted.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    return float(accelerator.reduce(total, "sum"))


@torch.no_grad()
def validation_loss(model: Any, samples: Sequence[Sample], plan: TrainSpec, pad_id: int, device: torch.device) -> float:
    """Return the mean loss per counted label over held-out rows, in nats, with dropout off."""
    model.eval()
    size = plan.micro_batch or plan.batch
    ordered = sorted(samples, key=lambda s: len(s.ids))
    chunks = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    total = sum(float(token_loss(model, collate(chunk, pad_id, device))) for chunk in chunks)
    model.train()
    return total / max(1, sum(s.counted for s in samples))
