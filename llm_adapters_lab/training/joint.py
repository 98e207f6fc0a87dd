"""JointTrainer: the gradients of several adapters, made in one pass over the base that they share.

All of them are in the model, the rows of the step run through it once for each, side by side, and every adapter acts on
its own slice. The adapters have no number in common, so that one backward pass of the sum of their losses gives each
the gradients of its own. An adapter for which that does not hold is trained in turn: the only one in the model.
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
from llm_adapters_lab.training.fast_paths import dropout, off, probes, rounding, trial
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import Gradients

TOKENS = {"cpu": 2048, "cuda": 8192}
"""Most tokens of a shared pass, padding included, unless somebody says otherwise: on a CPU more were seen to be no
faster; for a GPU it is a guess."""


class Member(Gradients):
    """The gradients of one adapter, which others may make along with theirs."""

    def __init__(
        self,
        together: JointTrainer,
        model: nn.Module,
        injection: Injection,
        samples: Sequence[Sample],
        plan: TrainSpec,
        pad_id: int,
    ) -> None:
        """Choose the shortcuts, with no other adapter in the model; see `Gradients`."""
        super().__init__(model, injection, samples, plan, pad_id)
        self.together, self.samples = together, samples
        self.why_not = _why_not(model, injection, plan)
        self.begun = False
        together.members.append(self)

    @contextmanager
    def ready(self, accelerator: Accelerator) -> Iterator[Any]:
        """Give the model, which the first one readies for all."""
        if self.together.prepared is None:
            self.together.prepared = self.together.closing.enter_context(super().ready(accelerator))
        self.begun = True
        yield self.together.prepared

    def step(
        self, accelerator: Accelerator, prepared: Any, samples: Sequence[Sample], following: Sequence[Sample] = ()
    ) -> float:
        """Return the loss of a step whose gradients are there, made together with others or now; see `Gradients`."""
        loss = self.together.loss(self, accelerator, samples, max(1, sum(s.counted for s in samples)))
        if loss is not None:
            return loss
        self.together.only(self.injection)
        return super().step(accelerator, prepared, samples, following)

    def validation_loss(self, accelerator: Accelerator, prepared: Any, samples: Sequence[Sample]) -> float:
        """Return the loss on held-out rows with this adapter alone in the model; see `Gradients`."""
        self.together.only(self.injection)
        return super().validation_loss(accelerator, prepared, samples)

    def give_up(self, reason: str) -> None:
        """Take turns from now on."""
        self.why_not = reason
        self.tell(f"{reason}; trained in turn, alone in the model.")

    def tell(self, reason: str) -> None:
        """Take note of what has not gone as a study should."""
        self._news.append(FellBack("study", reason))


class JointTrainer:
    """Adapters that are trained over one base, one step of each after the other.

    Attributes:
        model: the base.
        members: in the order in which they take their steps.
        tokens: most tokens of a shared pass.
        prepared: the model as it is called in training; None before and after.
        closing: what is to be undone after the training.
    """

    def __init__(self, model: nn.Module, tokens: int | None = None) -> None:
        """Begin without members."""
        self.model, self.prepared, self.closing = model, None, ExitStack()
        self.tokens = tokens or TOKENS["cuda" if torch.cuda.is_available() else "cpu"]
        self.members: list[Member] = []
        self._due: list[Member] = []
        self._losses: dict[Member, float] = {}
        self._slices: list[str] = []

    def only(self, *wanted: Injection) -> None:
        """Have these adapters in the model and no others."""
        inside = injections(self.model)
        for injection in wanted:
            if injection.name not in inside:
                injection.put_in()
        for name, injection in inside.items():
            if all(name != other.name for other in wanted):
                injection.take_out()

    def begin(self) -> None:
        """Find out who can share a pass with whom, before the model is readied."""
        able = [member for member in self.members if not member.why_not]
        for member in self.members:
            if member.why_not:
                member.give_up(member.why_not)
        if len(able) > 1:
            self._try(able)

    def end(self) -> None:
        """Make the model what it was before the training."""
        self.prepared = None
        self.closing.close()

    def round(self, names: Sequence[str], step: int) -> None:
        """Let a step begin.

        Args:
            names: of the adapters that take it.
            step: how many they have done.
        """
        self._losses = {}
        # Before its first step here an adapter may still have to be brought to where it was saved.
        able = [m for m in self.members if m.injection.name in names and m.begun and not m.why_not]
        self._due = [m for m in able if not due(m.injection, step)]

    def loss(self, member: Member, accelerator: Accelerator, samples: Sequence[Sample], counted: int) -> float | None:
        """Return the loss of a step of a member whose gradients have been made with others; None if they have not.

        Args:
            member: the next one to take the step.
            accelerator: of its training.
            samples: the rows.
            counted: labels in them.
        """
        while member in self._due:
            chunks = member.split(samples)
            sharers = self._sharers(member, chunks)
            if len(sharers) < 2:
                self._due.remove(member)
                break
            try:
                self._losses |= self._pass(sharers, accelerator, chunks, counted)
                self._due = [m for m in self._due if m not in sharers]
            except Exception as error:
                self._retreat(sharers, error)
            if torch.cuda.is_available() and member in self._due:
                torch.cuda.empty_cache()
        return self._losses.pop(member, None)

    def _sharers(self, member: Member, chunks: Sequence[Sequence[Sample]]) -> list[Member]:
        """Return who shares the next pass: as many as there is room for, and passes of like size."""
        key = (member.objective.shortcuts, member.halvings)
        able = [m for m in self._due if (m.objective.shortcuts, m.halvings) == key]
        padded = not member.objective.shortcuts.packing
        sizes = (len(c) * max(len(s.ids) for s in c) if padded else sum(len(s.ids) for s in c) for c in chunks)
        passes = math.ceil(len(able) / max(1, self.tokens // max(sizes)))
        return able[: math.ceil(len(able) / passes)]

    def _pass(
        self, sharers: Sequence[Member], accelerator: Accelerator, chunks: Sequence[Sequence[Sample]], counted: int
    ) -> dict[Member, float]:
        """Add the gradients of a step to the parameters of several adapters, and return their losses."""
        total = torch.zeros(len(sharers), device=accelerator.device)
        with self._sliced(sharers):
            for chunk in chunks:
                with sharers[0].objective.losses(self.prepared, chunk, len(sharers)) as each:
                    losses = each.view(len(sharers), len(each) // len(sharers)).sum(1) / counted
                    accelerator.backward(losses.sum())
                    total += losses.detach()
        return dict(zip(sharers, total.tolist(), strict=True))

    @contextmanager
    def _sliced(self, sharers: Sequence[Member]) -> Iterator[None]:
        """Give each of these adapters a slice of what runs through the model."""
        self.only(*(member.injection for member in sharers))
        for member in sharers:
            for key in member.injection.adapters:
                member.injection.chain(key).slices = self._slices
        self._slices[:] = [member.injection.name for member in sharers]
        try:
            yield
        finally:
            self._slices.clear()

    def _retreat(self, sharers: Sequence[Member], error: Exception) -> None:
        """After a shared pass has failed let fewer share the next, or none."""
        for member in sharers:
            member.forget()
        if isinstance(error, torch.OutOfMemoryError):
            self.tokens //= 2
            for member in sharers:
                member.tell(f"out of memory with a pass shared by {len(sharers)}; now of {self.tokens} tokens at most.")
            return
        for member in sharers:
            member.give_up(f"a pass shared with others failed ({type(error).__name__}: {error})")
        self._due = [m for m in self._due if m not in sharers]

    def _try(self, able: Sequence[Member]) -> None:
        """Run three short rows through all that may share a pass; who has other losses there than alone takes turns."""
        rows = probes(able[0].samples)
        with trial(self.model, *(member.injection for member in able)):
            for cuts in {member.objective.shortcuts: None for member in able}:
                sharers = [member for member in able if member.objective.shortcuts == cuts]
                own = []
                for member in sharers:
                    self.only(member.injection)
                    with member.objective.losses(self.model, rows) as alone:
                        own.append(alone)
                noise = rounding(self.model, rows)
                try:
                    with self._sliced(sharers), sharers[0].objective.losses(self.model, rows, len(sharers)) as each:
                        found = [off(*pair, noise) for pair in zip(own, each.chunk(len(sharers)), strict=True)]
                except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
                    found = [f"nothing ({type(error).__name__})"] * len(sharers)
                for member, apart in zip(sharers, found, strict=True):
                    if apart:
                        member.give_up(f"a pass shared with others computes {apart}")


def _why_not(model: nn.Module, injection: Injection, plan: TrainSpec) -> str:
    """Say why an adapter, alone in the model now, can share no pass with others, or nothing if it may."""
    for adapter in injection.adapters.values():
        if adapter.scope == "model":
            return "it acts on the whole model"
        if adapter.trains_base:
            return "it stands in for parameters of the base"
        if adapter.looks_back:
            return "it looks at earlier tokens"
        if adapter.penalty is not None:
            return "it has a loss of its own"
        if not adapter.sliceable:
            return "it acts on whole batches only"
    if any(modifier.forwards > 1 for _, _, modifier in modified(injection.adapters)):
        return "its modifier runs every batch several times"
    if plan.precision == "fp16":
        return "fp16 scales the loss of every adapter by itself"
    if name := dropout(model):
        return f"{name} drops out, and would for other tokens than in a run alone"
    return ""
