"""Joint training: several adapters over one base, their gradients computed in one pass that they share.

All of them are in the model; the rows of a step run through it once per adapter, side by side, and every adapter acts
on its own slice. As they share no tensor, one backward pass of the sum of their losses gives each its own gradients.
Adapters for which this does not hold take their steps separately, as the only one in the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from llm_adapters_lab.core.injection import Injection, injections
from llm_adapters_lab.core.modifiers.base import due, modified
from llm_adapters_lab.events import FellBack
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.fast_paths import FAILURES, find_dropout, mismatch, probe_rows, rounding_noise, trial_run
from llm_adapters_lab.training.loss import adds_router_loss
from llm_adapters_lab.training.lower_layers import layers_below
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import GradientComputer

TOKENS = {"cpu": 2048, "cuda": 8192}
"""Default maximum of tokens in a shared pass, including padding. On a CPU, larger ones were not faster; the value for
GPUs is a guess."""

SMALL = 400
"""Number of tokens of an adapter up to which a shared pass is faster on a CPU, whatever its arithmetic."""
WORTH_IT = 1.1


class Member(GradientComputer):
    """Computes the gradients of one adapter of a `JointTrainer`, unless a shared pass has done so.

    Attributes:
        obstacle: why it shares no pass; "" if it does.
        running: whether its training has begun.
    """

    def __init__(
        self,
        trainer: JointTrainer,
        model: nn.Module,
        injection: Injection,
        samples: Sequence[Sample],
        plan: TrainSpec,
        pad_id: int,
    ) -> None:
        """Choose the fast paths, while no other adapter is in the model, and join; see `GradientComputer`."""
        super().__init__(model, injection, samples, plan, pad_id)
        self.trainer, self.samples, self.running = trainer, samples, False
        self.obstacle = _obstacle(model, injection, plan)
        trainer.members.append(self)

    @contextmanager
    def ready(self, accelerator: Accelerator) -> Iterator[Any]:
        """Yield the model, which the first member prepares for all."""
        if self.trainer.prepared is None:
            self.trainer.prepared = self.trainer.closing.enter_context(super().ready(accelerator))
        self.running = True
        yield self.trainer.prepared

    def step(
        self, accelerator: Accelerator, prepared: Any, samples: Sequence[Sample], following: Sequence[Sample] = ()
    ) -> float:
        """Return the loss of a step, whose gradients a shared pass or this call computes."""
        loss = self.trainer.shared_loss(self, accelerator, samples)
        if loss is not None:
            return loss
        self.trainer.activate(self.injection)
        return super().step(accelerator, prepared, samples, following)

    def validate(self, accelerator: Accelerator, prepared: Any, samples: Sequence[Sample]) -> tuple[float, str]:
        """Return the loss on held-out rows with this adapter alone in the model, and which it answers."""
        self.trainer.activate(self.injection)
        return super().validate(accelerator, prepared, samples)

    def separate(self, reason: str) -> None:
        """Share no pass from now on."""
        self.obstacle = reason
        self.warn(f"{reason}; trained separately, as the only adapter in the model.")

    def warn(self, reason: str) -> None:
        """Report that the adapter is not trained as a study should train it."""
        self._warnings.append(FellBack("study", reason))


class JointTrainer:
    """Adapters that are trained over one base, one step of each after the other.

    Attributes:
        model: the base.
        members: in the order in which they take their steps.
        tokens: maximum number of tokens in a shared pass.
        prepared: the model as it is called in training; None before and after.
        closing: what restores the model after the training.
    """

    def __init__(self, model: nn.Module, tokens: int | None = None) -> None:
        """Start without members; `tokens` defaults to `TOKENS`."""
        self.model, self.prepared, self.closing = model, None, ExitStack()
        self.tokens = tokens or TOKENS["cuda" if torch.cuda.is_available() else "cpu"]
        self._weighs = not tokens and not torch.cuda.is_available()  # whether sharing a pass has to pay
        self.members: list[Member] = []
        self._due: list[Member] = []
        self._losses: dict[Member, float] = {}
        self._slices: list[str] = []
        self._told: set[Member] = set()
        self._once = not getattr(model.config, "is_encoder_decoder", False)

    def activate(self, *wanted: Injection) -> None:
        """Put these adapters into the model and take all others out."""
        inside, names = injections(self.model), {injection.name for injection in wanted}
        for injection in wanted:
            if injection.name not in inside:
                injection.attach()
        for name, injection in inside.items():
            if name not in names:
                injection.detach()

    def start(self) -> None:
        """Find out which members can share a pass, before the model is prepared."""
        for member in self.members:
            if member.obstacle:
                member.separate(member.obstacle)
        able = [member for member in self.members if not member.obstacle]
        if len(able) > 1:
            self._try(able)

    def finish(self) -> None:
        """Restore the model as it was before the training."""
        self.prepared = None
        self.closing.close()

    def begin_step(self, names: Sequence[str], step: int) -> None:
        """Announce the next step of the adapters with these names, which have taken `step` steps."""
        self._losses = {}
        # One that has not run here may still have to be restored from its checkpoint.
        able = [m for m in self.members if m.injection.name in names and m.running and not m.obstacle]
        self._due = [m for m in able if not due(m.injection, step)]

    def shared_loss(self, member: Member, accelerator: Accelerator, samples: Sequence[Sample]) -> float | None:
        """Return the loss of a member's step on some rows if a shared pass has computed its gradients, or can."""
        while member in self._due:
            chunks = member.split(samples)
            sharers = self._sharers(member, chunks)
            if len(sharers) < 2:
                self._due.remove(member)
                break
            try:
                self._losses |= self._pass(sharers, accelerator, chunks, max(1, sum(s.counted for s in samples)))
                self._due = [m for m in self._due if m not in sharers]
            except Exception as error:
                self._recover(sharers, error)
            if torch.cuda.is_available() and member in self._due:
                torch.cuda.empty_cache()
        return self._losses.pop(member, None)

    def _sharers(self, member: Member, chunks: Sequence[Sequence[Sample]]) -> list[Member]:
        """Return who shares the next pass: as many as there is room for, in passes of similar size."""
        key = (member.objective.fast_paths, member.halvings)
        able = [m for m in self._due if (m.objective.fast_paths, m.halvings) == key]
        padded = not member.objective.fast_paths.packing
        sizes = (len(c) * max(len(s.ids) for s in c) if padded else sum(len(s.ids) for s in c) for c in chunks)
        most = max(sizes)
        passes = math.ceil(len(able) / max(1, self.tokens // most))
        sharers = able[: math.ceil(len(able) / passes)]
        if self._weighs and most > SMALL and len(sharers) > 1 and (gain := self._gain(sharers)) < WORTH_IT:
            for each in {member, *sharers} - self._told:
                each.warn(f"one pass for {len(sharers)} adapters would be {gain:.2f} times as fast; they take turns.")
            self._told |= {member, *sharers}
            return []
        return sharers

    def _gain(self, sharers: Sequence[Member]) -> float:
        """Return how many times as fast a shared pass is by its arithmetic; the layers below have no backward pass."""
        below, layers = self._below(sharers), len(sharers[0].injection.anatomy.layers)
        once, each = 2 * below, 4 * (layers - below)
        return len(sharers) * (once + each) / (once + len(sharers) * each)

    def _pass(
        self, sharers: Sequence[Member], accelerator: Accelerator, chunks: Sequence[Sequence[Sample]], counted: int
    ) -> dict[Member, float]:
        """Add the gradients of a step to the parameters of several adapters, and return their losses."""
        total = torch.zeros(len(sharers), device=accelerator.device)
        below = self._below(sharers)
        with self._sliced(sharers):
            for chunk in chunks:
                with sharers[0].objective.losses(self.prepared, chunk, len(sharers), below=below) as each:
                    losses = each.view(len(sharers), len(each) // len(sharers)).sum(1) / counted
                    accelerator.backward(losses.sum())
                    total += losses.detach()
        return dict(zip(sharers, total.tolist(), strict=True))

    @contextmanager
    def _sliced(self, sharers: Sequence[Member]) -> Iterator[None]:
        """Give each of these adapters a slice of what runs through the model."""
        self.activate(*(member.injection for member in sharers))
        for member in sharers:
            for key in member.injection.adapters:
                member.injection.chain(key).slices = self._slices
        self._slices[:] = [member.injection.name for member in sharers]
        try:
            yield
        finally:
            self._slices.clear()

    def _recover(self, sharers: Sequence[Member], error: Exception) -> None:
        """After a shared pass has failed, make the next one smaller, or let these members share none."""
        short = isinstance(error, torch.OutOfMemoryError)
        self.tokens //= 2 if short else 1
        for member in sharers:
            member.clear()
            if short:
                member.warn(f"out of memory in a pass shared by {len(sharers)}; now with at most {self.tokens} tokens.")
            else:
                member.separate(f"a shared pass failed ({type(error).__name__}: {error})")
                self._due.remove(member)

    def _try(self, able: Sequence[Member]) -> None:
        """Run three short rows through all who may share a pass; whose losses differ from those alone may not."""
        rows = probe_rows(able[0].samples)
        with trial_run(self.model, *(member.injection for member in able)):
            for paths in dict.fromkeys(member.objective.fast_paths for member in able):
                sharers = [member for member in able if member.objective.fast_paths == paths]
                alone = []
                for member in sharers:
                    self.activate(member.injection)
                    with member.objective.losses(self.model, rows) as losses:
                        alone.append(losses)
                noise = rounding_noise(self.model, rows)
                faults = self._faults(sharers, rows, alone, noise)
                if any(faults) and self._below(sharers):
                    self._once = False
                    for member in sharers:
                        member.warn(f"the layers below its sites run for every adapter: once, they compute {faults[0]}")
                    faults = self._faults(sharers, rows, alone, noise)
                for member, fault in zip(sharers, faults, strict=True):
                    if fault:
                        member.separate(f"a shared pass computes {fault}")

    def _faults(
        self, sharers: Sequence[Member], rows: list[Sample], alone: list[torch.Tensor], noise: float | None
    ) -> list[str]:
        """Return how the losses of each in a shared pass differ from those alone, or ""."""
        losses, count = sharers[0].objective.losses, len(sharers)
        try:
            with self._sliced(sharers), losses(self.model, rows, count, below=self._below(sharers)) as each:
                return [mismatch(*pair, noise) for pair in zip(alone, each.chunk(count), strict=True)]
        except FAILURES as error:
            return [f"nothing ({type(error).__name__})"] * count

    def _below(self, sharers: Sequence[Member]) -> int:
        """Return the number of layers that run once for all of these adapters."""
        return layers_below(*(member.injection for member in sharers)) if self._once else 0


def _obstacle(model: nn.Module, injection: Injection, plan: TrainSpec) -> str:
    """Return why an adapter, now alone in the model, can share no pass with others, or ""."""
    kinds, dropout = injection.adapters.values(), find_dropout(model)
    obstacles = {
        "it acts on the whole model": any(adapter.scope == "model" for adapter in kinds),
        "it replaces parameters of the base": any(adapter.trains_base for adapter in kinds),
        "it looks at earlier tokens": any(adapter.looks_back for adapter in kinds),
        "it reads the call of the model": any(adapter.needs_context for adapter in kinds),
        "it has a loss of its own": any(adapter.penalty is not None for adapter in kinds),
        "the base adds a router loss over all rows of a pass": adds_router_loss(model),
        "it sits at experts, which get the tokens of all rows mixed": any(s.routed for s in injection.sites.values()),
        "it acts on whole batches only": any(not adapter.sliceable for adapter in kinds),
        "it runs every batch several times": any(m.modifier.forwards > 1 for m in modified(injection.adapters)),
        "fp16 scales the loss of every adapter separately": plan.precision == "fp16",
        f"{dropout} draws its dropout for other tokens than in a run alone": bool(dropout),
    }
    return next((reason for reason, holds in obstacles.items() if holds), "")
