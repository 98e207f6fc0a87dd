"""The gradients of one step: forward and backward passes over micro-batches, which shrink when memory runs out."""

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
from llm_adapters_lab.errors import BadSpec, CannotInject, TrainingFailed
from llm_adapters_lab.events import FellBack
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.batches import micro_batches
from llm_adapters_lab.training.compilation import CompiledLayers
from llm_adapters_lab.training.distributed import sharded
from llm_adapters_lab.training.dpo import PreferenceObjective
from llm_adapters_lab.training.fast_paths import choose_fast_paths, keep_lower
from llm_adapters_lab.training.loss import Objective
from llm_adapters_lab.training.regimes import Heads, HeadsObjective
from llm_adapters_lab.training.reward import Answering, RewardObjective
from llm_adapters_lab.training.spec import TrainSpec


def set_gradient_checkpointing(model: Any, on: bool) -> None:
    """Turn the recomputation of activations on or off, under whichever name transformers has for it."""
    verb = "enable" if on else "disable"
    newer = getattr(model, f"activation_checkpointing_{verb}", None)
    (newer or getattr(model, f"gradient_checkpointing_{verb}"))()
    # transformers gives the embeddings a gradient, which would run back through all layers below the adapter.
    model.disable_input_require_grads()


@torch.no_grad()
def sum_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients over the processes, all of them in one message.

    This replaces a wrapper such as DistributedDataParallel: an adapter is small, whole in every process and called by
    hooks; and as nothing is sent while the model runs, each process may split its rows as it likes.
    """
    if accelerator.num_processes == 1:
        return
    # A parameter that this process did not use has no gradient; the flags tell "unused here" from "unused everywhere".
    used = [p.grad is not None for p in parameters]
    flat = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters]
    flags = torch.tensor(used, dtype=torch.float32, device=flat[0].device)
    message = accelerator.reduce(torch.cat([flags, *(g.flatten().float() for g in flat)]), "sum")
    counts, *sums = message.split([len(used), *(g.numel() for g in flat)])
    for parameter, count, value in zip(parameters, counts.tolist(), sums, strict=True):
        parameter.grad = value.view(parameter.shape).to(parameter.dtype) if count else None


def broadcast_adapter(accelerator: Accelerator, injection: Injection) -> None:
    """Give all processes the adapter of the first one."""
    if accelerator.num_processes > 1:
        injection.load_state_dict(broadcast(injection.state_dict()))


class GradientComputer:
    """Computes the gradients of a training step by step, in micro-batches, with the fast paths that hold.

    Attributes:
        objective: the loss.
        injection: what is trained.
        plan: of the training.
        halvings: how many times micro-batches have been halved because memory ran out.
        measured: what the objective has measured in the last step beside the loss, by name.
        heads: what is trained in place of the injection, if the plan has a regime; else None.
        prefetches: whether the rows of the next step are laid out while the device computes, which pays on a GPU only.
    """

    def __init__(
        self,
        model: nn.Module,
        injection: Injection,
        samples: Sequence[Sample],
        plan: TrainSpec,
        pad_id: int,
        answering: Answering | None = None,
        heads: Heads | None = None,
    ) -> None:
        """Choose the fast paths for all rows; the model is not yet wrapped for several processes.

        The objective "reward" needs `answering`, and a regime `heads`.

        Raises:
            BadSpec: the plan has a regime, but there are no heads; or it wants the layers compiled, and there is no
                compiler; or the objective cannot learn from these rows or this model.
            CannotInject: parts of the base are offloaded.
        """
        if plan.regime and heads is None:
            raise BadSpec("train.regime needs heads. Do the run by `run`, or pass them: `GradientComputer(heads=...)`.")
        if any(map(weights.is_offloaded, model.modules())):
            raise CannotInject(
                "Parts of the base are offloaded to memory or disk, which works for scoring but not for training. "
                "Set device_map to none, or quantise the base."
            )
        self._layers = CompiledLayers(model, injection.anatomy) if plan.compile else nullcontext()
        longest = answering.longest(samples) if answering else samples
        fast_paths, self._warnings = choose_fast_paths(model, injection, longest, plan)
        parts = (model, fast_paths, pad_id, injection)
        self.objective, self.plan, self.halvings = Objective(*parts), plan, 0
        self.injection, self.prefetches = injection, weights.device(model).type == "cuda"
        self.measured: dict[str, float] = {}
        self.heads, self._told_of_lower = heads, False
        if plan.objective == "dpo":
            self.objective = PreferenceObjective(plan, samples, *parts)
        elif heads:
            self.objective, self.prefetches = HeadsObjective(heads.regime.heads, *parts), False
        elif plan.objective == "reward":
            self.objective, self.prefetches = RewardObjective(plan, samples, answering, *parts), False
        if plan.cache_below:
            self.objective.lower, warned = keep_lower(model, injection, samples, plan, fast_paths)
            self._warnings += warned

    def warnings(self) -> list[FellBack]:
        """Return, once, the settings of the plan that have turned out not to hold."""
        if (lower := self.objective.lower) and lower.dropped and not self._told_of_lower:
            self._told_of_lower = True
            self._warnings.append(FellBack("train.cache_below", f"{lower.dropped}; the other rows are computed again."))
        found, self._warnings = self._warnings, []
        return found

    @contextmanager
    def ready(self, accelerator: Accelerator) -> Iterator[Any]:
        """Yield the model as it is called in training, possibly wrapped; restore it afterwards, in evaluation mode."""
        model: Any = self.objective.model
        if self.plan.gradient_checkpointing:
            set_gradient_checkpointing(model, True)
        # Gradients are summed by `sum_gradients`; a wrapper that does so would conflict with hooks and fast paths.
        prepared = model if sharded() else accelerator.prepare_model(model, evaluation_mode=True)
        try:
            with self.heads.attached() if self.heads else nullcontext():
                prepared.train()
                yield prepared
        finally:
            accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
            if self.plan.gradient_checkpointing:
                set_gradient_checkpointing(model, False)
            model.eval()

    def split(self, samples: Sequence[Sample], default: int | None = None) -> list[list[Sample]]:
        """Return the micro-batches of some rows, of at most `default` rows where the plan sets no `micro_batch`."""
        rows, padded = self.plan.micro_batch or default, not self.objective.fast_paths.packing
        return micro_batches(samples, rows, self.plan.micro_tokens, padded=padded, halvings=self.halvings)

    def step(
        self, accelerator: Accelerator, prepared: Any, samples: Sequence[Sample], following: Sequence[Sample] = ()
    ) -> float:
        """Accumulate the gradients of one step, and sum them over the processes.

        When memory runs out, micro-batches are halved for this and all later steps; the result is the same.

        Args:
            accelerator: of the training.
            prepared: the model as it is called.
            samples: the rows of the step; every process takes its share.
            following: the rows of the next step.

        Returns:
            The mean loss per unit of the objective, such as a counted label, over all processes, in nats.

        Raises:
            TrainingFailed: a single row needs more memory than there is.
        """
        units = max(1, self.objective.units(samples))
        while True:
            try:
                total = self._accumulate(accelerator, prepared, self._chunks(accelerator, samples), units)
                break
            except torch.OutOfMemoryError as error:
                if sharded():  # the other processes wait in the middle of a layer
                    raise
                self.clear()
                self._halve(samples[accelerator.process_index :: accelerator.num_processes], error)
            # Outside the handler, whose traceback keeps the tensors of the failed step alive.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if self.prefetches and following:  # the device is busy, and this process is about to wait for it
            self.objective.prefetch(self._chunks(accelerator, following))
        # Only now: a process that runs out of memory starts its share again.
        if self.heads is None:  # those of other heads are of no use here
            sum_gradients(accelerator, self.injection.parameters())
        loss, *measured = accelerator.reduce(total, "sum").tolist()
        self.measured = dict(zip(self.objective.measures, measured, strict=True))
        return float(loss)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The tensors that the gradients are of."""
        return self.heads.parameters() if self.heads else self.injection.parameters()

    def clear(self) -> None:
        """Clear the gradients."""
        for parameter in self.trained:
            parameter.grad = None

    @torch.no_grad()
    def validate(self, accelerator: Accelerator, prepared: Any, samples: Sequence[Sample]) -> tuple[float, str]:
        """Return what `Validated` has of held-out rows: the mean loss per unit of the objective, and `right`.

        There is no dropout.
        """
        prepared.eval()
        total = torch.zeros(1 + len(samples), dtype=torch.float64)
        alone = accelerator.num_processes == 1 or sharded()  # sharded, every process computes everything
        share = samples if alone else samples[accelerator.process_index :: accelerator.num_processes]
        places = {id(sample): i for i, sample in enumerate(samples, 1)}
        for chunk in self.split(share, self.plan.batch):
            self.objective.hits = [] if self.plan.objective == "likelihood" else None
            with self._layers, self.objective.loss(prepared, chunk) as loss:
                total[0] += float(loss)
            if self.objective.hits:
                rows = torch.split(torch.cat(self.objective.hits), [sample.counted for sample in chunk])
                for sample, hits in zip(chunk, rows, strict=True):
                    total[places[id(sample)]] = bool(hits.all())
        measured, self.objective.hits = bool(self.objective.hits), None
        prepared.train()
        mean, *right = (total if alone else accelerator.reduce(total.to(accelerator.device), "sum")).tolist()
        found = "".join(f"{each:.0f}" for each in right) if measured else ""
        return float(mean) / max(1, self.objective.units(samples)), found

    def _chunks(self, accelerator: Accelerator, samples: Sequence[Sample]) -> list[list[Sample]]:
        """Return the micro-batches of this process; sharded processes, which run layers together, need equally many."""
        world = accelerator.num_processes
        chunks = self.split(samples[accelerator.process_index :: world])
        most = max(len(self.split(samples[rank::world])) for rank in range(world)) if sharded() else 0
        while len(chunks) < most:
            longest = max(chunks, key=len)
            chunks.remove(longest)
            chunks += [longest[::2], longest[1::2]]
        return chunks

    def _accumulate(
        self, accelerator: Accelerator, prepared: Any, chunks: Sequence[Sequence[Sample]], units: int
    ) -> torch.Tensor:
        total = torch.zeros(1 + len(self.objective.measures), device=accelerator.device)
        for chunk in chunks:
            with self._layers, self.objective.loss(prepared, chunk) as loss:
                accelerator.backward(loss / units)
                total += torch.stack([loss.detach(), *self.objective.measured]) / units
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
        self._warnings.append(FellBack("train.micro_batch", f"out of memory with {before} rows at a time; now {now}."))
