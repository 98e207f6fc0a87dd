"""The gradients of one step: its rows in micro-batches, made smaller when memory is short; and the optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.errors import CannotInject, TrainingFailed
from llm_adapters_lab.events import FellBack
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.batches import split
from llm_adapters_lab.training.compilation import Layers
from llm_adapters_lab.training.distributed import sharded
from llm_adapters_lab.training.fast_paths import choose
from llm_adapters_lab.training.loss import Objective
from llm_adapters_lab.training.spec import TrainSpec


def make_optimizer(parameters: list[nn.Parameter], plan: TrainSpec) -> torch.optim.Optimizer:
    """Return AdamW, in one kernel for all tensors where the device has it."""
    # Moments that were saved come back contiguous, and one kernel for all tensors goes by their order in memory.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_contiguous() for p in parameters)
    return torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=fused)


def set_checkpointing(model: Any, on: bool) -> None:
    """Turn the recomputation of activations on or off, under whichever name transformers has for it."""
    verb = "enable" if on else "disable"
    newer = getattr(model, f"activation_checkpointing_{verb}", None)
    (newer or getattr(model, f"gradient_checkpointing_{verb}"))()


@torch.no_grad()
def reduce(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients over the processes, all of them in one message.

    It takes the place of a wrapper such as DistributedDataParallel: what is trained is small, whole in every process
    and hangs in hooks, and nothing is sent while the model runs, so that each may split its rows as it likes.
    """
    if accelerator.num_processes == 1:
        return
    # A parameter that nothing of the batch went through has none, in this process; a zero says so of those of no use.
    used = [p.grad is not None for p in parameters]
    flat = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters]
    packed = torch.cat(
        [torch.tensor(used, dtype=torch.float32, device=flat[0].device), *(g.flatten().float() for g in flat)]
    )
    packed = accelerator.reduce(packed, "sum")
    counts, *sums = packed.split([len(used), *(g.numel() for g in flat)])
    for parameter, count, value in zip(parameters, counts.tolist(), sums, strict=True):
        parameter.grad = value.view(parameter.shape).to(parameter.dtype) if count else None


def same(accelerator: Accelerator, injection: Injection) -> None:
    """Give all processes the adapter of the first one."""
    if accelerator.num_processes > 1:
        injection.load_state_dict(broadcast(injection.state_dict()))


class Gradients:
    """Computes the gradients of one step after the other, in micro-batches, with the shortcuts that hold.

    Attributes:
        objective: the loss.
        injection: what is trained.
        halvings: how often micro-batches have been halved because memory was short.
        ahead: the rows of the next step are laid out while the device is at work; only a GPU has nothing to lose by it.
    """

    def __init__(
        self, model: nn.Module, injection: Injection, samples: Sequence[Sample], plan: TrainSpec, pad_id: int
    ) -> None:
        """Choose the shortcuts.

        Args:
            model: a causal language model, before it is wrapped for several processes.
            injection: what is trained.
            samples: all rows.
            plan: micro-batches and shortcuts.
            pad_id: token id of padding.

        Raises:
            BadSpec: the plan wants the layers compiled, and nothing can be compiled here.
            CannotInject: parts of the base are offloaded.
        """
        if any(map(weights.offloaded, model.modules())):
            raise CannotInject(
                "Parts of the base are offloaded to memory or disk. That serves scoring, but training needs the whole. "
                "Set device_map to none or quantise the base."
            )
        self._layers = Layers(model, injection.anatomy) if plan.compile else nullcontext()
        shortcuts, self._news = choose(model, injection, samples, plan)
        self.objective, self.plan, self.halvings = Objective(model, shortcuts, pad_id, injection), plan, 0
        self.injection, self.ahead = injection, weights.device(model).type == "cuda"

    def news(self) -> list[FellBack]:
        """Return what has not gone as the plan says, since this was last asked."""
        told, self._news = self._news, []
        return told

    @contextmanager
    def ready(self, accelerator: Accelerator) -> Iterator[Any]:
        """Give the model as it is called in training, perhaps wrapped; afterwards it is as it was, in evaluation."""
        model: Any = self.objective.model
        if self.plan.gradient_checkpointing:
            set_checkpointing(model, True)
        # The gradients are summed here; a wrapper that does it would be in the way of hooks and shortcuts.
        prepared = model if sharded() else accelerator.prepare_model(model, evaluation_mode=True)
        prepared.train()
        try:
            yield prepared
        finally:
            accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
            if self.plan.gradient_checkpointing:
                set_checkpointing(model, False)
            model.eval()

    def split(self, samples: Sequence[Sample], most: int | None = None) -> list[list[Sample]]:
        """Return the micro-batches of some rows, each of `most` rows at most where the plan names no number."""
        rows, tokens = self.plan.micro_batch or most, self.plan.micro_tokens
        padded = not self.objective.shortcuts.packing
        return split(samples, rows, tokens, padded=padded, halvings=self.halvings)

    def step(
        self, accelerator: Accelerator, prepared: Any, samples: Sequence[Sample], following: Sequence[Sample] = ()
    ) -> float:
        """Accumulate the gradients of one step, and sum them over the processes.

        Where memory is short, micro-batches are halved from then on; the step stays what it was.

        Args:
            accelerator: of the training.
            prepared: the model as it is called.
            samples: the rows of the step; every process takes its share.
            following: those of the next one.

        Returns:
            The mean loss per counted label over all processes, in nats.

        Raises:
            TrainingFailed: one row alone needs more memory than there is.
        """
        while True:
            try:
                total = self._accumulate(accelerator, prepared, self._chunks(accelerator, samples), samples)
                break
            except torch.OutOfMemoryError as error:
                if sharded():  # the others wait in the middle of a layer
                    raise
                self.forget()
                self._halve(samples[accelerator.process_index :: accelerator.num_processes], error)
            # Outside the handler, whose traceback holds on to what the failed step had made.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if self.ahead and following:  # the device has its work now, and this process is about to wait for it
            self.objective.expect(self._chunks(accelerator, following))
        # Not before: a process that is short of memory may begin its share again.
        reduce(accelerator, self.injection.parameters())
        return float(accelerator.reduce(total, "sum"))

    def _chunks(self, accelerator: Accelerator, samples: Sequence[Sample]) -> list[list[Sample]]:
        """Return the micro-batches of this process; with FSDP, where layers run in all at once, as many in each."""
        world = accelerator.num_processes
        chunks = self.split(samples[accelerator.process_index :: world])
        most = max(len(self.split(samples[rank::world])) for rank in range(world)) if sharded() else 0
        while len(chunks) < most:
            longest = max(chunks, key=len)
            chunks.remove(longest)
            chunks += [longest[::2], longest[1::2]]
        return chunks

    def forget(self) -> None:
        """Clear the gradients, of which a part may be there."""
        for parameter in self.injection.parameters():
            parameter.grad = None

    def _accumulate(
        self, accelerator: Accelerator, prepared: Any, chunks: Sequence[Sequence[Sample]], samples: Sequence[Sample]
    ) -> torch.Tensor:
        total, counted = torch.zeros((), device=accelerator.device), max(1, sum(s.counted for s in samples))
        for chunk in chunks:
            with self._layers, self.objective.loss(prepared, chunk) as loss:
                accelerator.backward(loss / counted)
                total += loss.detach() / counted
        return total

    def _halve(self, samples: Sequence[Sample], error: Exception) -> None:
        before = max(map(len, self.split(samples)))
        if before == 1:
            raise TrainingFailed(
                f"One row of {max(len(s.ids) for s in samples)} tokens needs more memory than there is ({error}). "
                "Lower data.max_tokens or set train.gradient_checkpointing."
            ) from error
        self.halvings += 1
        now = max(map(len, self.split(samples)))
        self._news.append(FellBack("train.micro_batch", f"out of memory with {before} rows at a time; now {now}."))

    @torch.no_grad()
    def validation_loss(self, accelerator: Accelerator, prepared: Any, samples: Sequence[Sample]) -> float:
        """Return the mean loss per counted label over held-out rows, in nats, with dropout off."""
        prepared.eval()
        total = torch.zeros((), dtype=torch.float64)
        alone = accelerator.num_processes == 1 or sharded()  # with FSDP every process computes all of it
        share = samples if alone else samples[accelerator.process_index :: accelerator.num_processes]
        for chunk in self.split(share, self.plan.batch):
            with self._layers, self.objective.loss(prepared, chunk) as loss:
                total += float(loss)
        prepared.train()
        summed = total if alone else accelerator.reduce(total.to(accelerator.device), "sum")
        return float(summed) / max(1, sum(s.counted for s in samples))
