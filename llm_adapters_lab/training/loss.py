"""The loss of a training, computed the plain way or with shortcuts that leave out what cannot matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.modifiers.base import modified
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training.batches import collate, send
from llm_adapters_lab.training.packing import pack, running


@dataclass(frozen=True)
class Shortcuts:
    """What is left out; each changes losses and gradients by rounding only.

    Attributes:
        label_head: output head and cross-entropy run only where a label is counted.
        packing: rows are laid end to end, so that no padding is computed.
        share_prefix: what the rows of a micro-batch begin with alike is computed once; needs packing.
    """

    label_head: bool = False
    packing: bool = False
    share_prefix: bool = False


def token_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the summed negative log-likelihood of the counted labels, in nats, the plain way.

    Args:
        model: a causal language model.
        batch: of `batches.collate`.
    """
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    labels = batch["labels"][:, 1:]
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


class Objective:
    """The loss of a micro-batch.

    Attributes:
        model: a causal language model.
        shortcuts: those it takes.
        pad_id: token id of padding.
    """

    def __init__(
        self, model: nn.Module, shortcuts: Shortcuts, pad_id: int = 0, injection: Injection | None = None
    ) -> None:
        """Hold what the loss is made of.

        Args:
            model: a causal language model.
            shortcuts: the fast paths to take.
            pad_id: token id of padding.
            injection: the adapter that is trained, for losses of its own.
        """
        self.model, self.shortcuts, self.pad_id, self.injection = model, shortcuts, pad_id, injection
        group = modified(injection.adapters) if injection else []
        self._group = group if group and group[0].modifier.forwards > 1 else []
        self._config: Any = model.get_submodule(Anatomy.of(model).decoder).config
        self._coming: dict[tuple[int, ...], Future[Any]] = {}

    def expect(self, chunks: Sequence[Sequence[Sample]]) -> None:
        """Lay rows out in the background, on their way to the device, for the passes that come next."""
        pool = _background()
        self._coming = {tuple(map(id, chunk)): pool.submit(self._lay, chunk) for chunk in chunks}

    def _lay(self, samples: Sequence[Sample]) -> Any:
        if self.shortcuts.packing:
            return pack(samples, share=self.shortcuts.share_prefix, device=self._device)
        return collate(samples, self.pad_id, self._device)

    def _laid(self, samples: Sequence[Sample]) -> Any:
        coming = self._coming.pop(tuple(map(id, samples)), None)
        return coming.result() if coming else self._lay(samples)

    @contextmanager
    def loss(self, prepared: Any, samples: Sequence[Sample]) -> Iterator[torch.Tensor]:
        """Give the summed negative log-likelihood of the counted labels, in nats; go backward within the `with`.

        Args:
            prepared: the model as it is called, perhaps wrapped for several processes.
            samples: the rows.
        """
        if self._group and self.model.training:
            modifier = self._group[0].modifier
            with ExitStack() as passes:
                found = [passes.enter_context(self.predictions(prepared, samples)) for _ in range(modifier.forwards)]
                yield self._penalised(type(modifier).loss(self._group, found), samples)
        elif self.shortcuts == Shortcuts():
            yield self._penalised(token_loss(prepared, self._laid(samples)), samples)
        else:
            with self.losses(prepared, samples) as each:
                yield self._penalised(each.sum(), samples)

    def _penalised(self, loss: torch.Tensor, samples: Sequence[Sample]) -> torch.Tensor:
        """Add the adapters' own losses, which count once for each label, so that the mean loss has them once."""
        penalty = self.injection.penalty() if self.injection and self.model.training else None
        return loss if penalty is None else loss + penalty.to(loss) * sum(sample.counted for sample in samples)

    @contextmanager
    def losses(self, prepared: Any, samples: Sequence[Sample], times: int = 1) -> Iterator[torch.Tensor]:
        """Give the loss of every counted label, row by row.

        Args:
            prepared: the model as it is called, perhaps wrapped for several processes.
            samples: the rows.
            times: run them so many times over in one pass, a slice for each of so many adapters.
        """
        with self.predictions(prepared, samples, times) as (logits, labels):
            yield cross_entropy(logits, labels, reduction="none")

    @contextmanager
    def predictions(
        self, prepared: Any, samples: Sequence[Sample], times: int = 1
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Give the logits that every counted label is predicted with, (labels, vocabulary), and the labels."""
        cuts = self.shortcuts
        layout: AbstractContextManager[None] = nullcontext()
        if cuts.packing:
            packed = self._laid(samples).times(times)
            inputs = {"input_ids": packed.ids, "position_ids": packed.positions}
            reads, labels, layout = packed.reads, packed.labels, running(self._config, packed)
        else:
            batch = self._laid(samples := [*samples] * times)
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            reads, labels = _counted(samples, batch["labels"])
        with layout:
            with _reading(self.model, reads) if cuts.label_head else nullcontext():
                logits = prepared(**inputs, use_cache=False).logits.flatten(0, 1)
            chosen = logits if cuts.label_head else logits[reads]
            yield chosen.float(), labels

    @property
    def _device(self) -> torch.device:
        return weights.device(self.model)


@cache
def _background() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "rows")


def _counted(samples: Sequence[Sample], labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where in the flattened rows each counted label is predicted, and those labels."""
    longest = labels.shape[1]
    places = [
        row * longest + column
        for row, sample in enumerate(samples)
        for column, label in enumerate(sample.labels[1:])
        if label != IGNORED
    ]
    reads = send(torch.tensor(places, dtype=torch.long), labels.device)
    return reads, labels.flatten()[reads + 1]


@contextmanager
def _reading(model: Any, reads: torch.Tensor) -> Iterator[None]:
    """Let the output head of a model see only the tokens numbered `reads`, of all rows together."""

    def choose(head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0].flatten(0, 1).index_select(0, reads)[None], *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()
