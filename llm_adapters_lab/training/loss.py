"""The training loss of a micro-batch, computed plainly or by fast paths that skip what has no influence on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.call_context import CONTEXT_ATTRIBUTE, GROUP, CallContext
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.modifiers.base import groups
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.tasks.tokens import IGNORED, Sample, documents
from llm_adapters_lab.training.batches import collate, collate_extras, send
from llm_adapters_lab.training.chunked_head import ChunkedHead, head_input
from llm_adapters_lab.training.last_layer import last_parts, run_at
from llm_adapters_lab.training.lower_layers import LowerStates, copied_above
from llm_adapters_lab.training.packing import Packed, pack, packed_attention
from llm_adapters_lab.training.recompute import Recomputation


@dataclass(frozen=True)
class FastPaths:
    """What is skipped; each changes losses and gradients by rounding only.

    Attributes:
        label_head: run the output head and the cross-entropy only where a label is counted.
        packing: lay rows end to end, so that no padding is computed.
        share_prefix: compute a common beginning of the rows of a micro-batch once; needs packing.
        head_chunk: number of labels whose logits are there at a time, see `chunked_head`; 0: all. Needs label_head.
        label_layer: run the last layer only where a label is counted, see `last_layer`.
        recompute: do not keep what is cheap to compute again, see `recompute`.
    """

    label_head: bool = False
    packing: bool = False
    share_prefix: bool = False
    head_chunk: int = 0
    label_layer: bool = False
    recompute: bool = False


def token_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the summed negative log-likelihood of the counted labels, in nats, computed plainly.

    Args:
        model: a causal language model.
        batch: as returned by `batches.collate`.
    """
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    labels = batch["labels"][:, 1:]
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


class Objective:
    """The loss of a micro-batch.

    Its methods are context managers, within which backward passes run. They take the model as it is called (`prepared`,
    possibly wrapped for several processes) and the rows.

    Attributes:
        model: a causal language model.
        fast_paths: those in use.
        pad_id: token id of padding.
        injection: the adapter that is trained; its modifiers and its penalty have a say in the loss.
        measures: names of what is measured beside the loss.
        measured: those values, summed over the `units` of the last pass.
        lower: what the layers below the adapter make of the rows, if that is kept; see `lower_layers`.
        hits: if it is a list, whether each counted label is the likeliest token, (labels,) of every pass; row by row.
    """

    measures: tuple[str, ...] = ()
    measured: Sequence[torch.Tensor] = ()
    hits: list[torch.Tensor] | None = None
    lower: LowerStates | None = None

    def __init__(
        self, model: nn.Module, fast_paths: FastPaths, pad_id: int = 0, injection: Injection | None = None
    ) -> None:
        """Store the attributes."""
        self.model, self.fast_paths, self.pad_id, self.injection = model, fast_paths, pad_id, injection
        found = groups(injection.adapters) if injection else []
        self._group = next((group for group in found if group[0].modifier.forwards > 1), [])
        anatomy = injection.anatomy if injection else Anatomy.of(model)
        self._decoder: Any = model.get_submodule(anatomy.decoder)
        self._layers = [model.get_submodule(path) for path in anatomy.layers]
        self._last = [*map(model.get_submodule, last_parts(anatomy))] if fast_paths.label_layer else []
        self._recomputation = Recomputation(model, anatomy) if fast_paths.recompute else None
        self._prefetched: dict[tuple[int, ...], Future[Any]] = {}

    def units(self, samples: Sequence[Sample]) -> int:
        """Return the number of terms that the loss of rows is the sum of, by which a step divides it."""
        return sum(sample.counted for sample in samples)

    def draw(self, accelerator: Accelerator, seed: int, step: int, samples: list[Sample]) -> list[Sample]:
        """Return the rows that a step (counted from 0) learns from, given those of its batch."""
        return samples

    def prefetch(self, chunks: Sequence[Sequence[Sample]]) -> None:
        """Lay out the rows of the coming passes in the background and send them to the device."""
        self._prefetched = {tuple(map(id, chunk)): _background().submit(self._layout, chunk) for chunk in chunks}

    @contextmanager
    def loss(self, prepared: Any, samples: Sequence[Sample]) -> Iterator[torch.Tensor]:
        """Yield the loss, summed over the `units` of the rows: the negative log-likelihood of the labels, in nats.

        In training, every unit adds the adapter's penalty and the router loss that a mixture of experts asks for, so
        that the mean loss has each once.
        """
        with ExitStack() as passes:
            training = self.model.training
            routers = passes.enter_context(_router_losses(self.model)) if training else []
            loss = self._sum(passes, prepared, samples)
            extra = [torch.stack(routers).mean()] if routers else []
            if training and self.injection and (penalty := self.injection.penalty()) is not None:
                extra.append(penalty)
            for each in extra:
                loss = loss + each.to(loss) * self.units(samples)
            yield loss

    def _sum(self, passes: ExitStack, prepared: Any, samples: Sequence[Sample]) -> torch.Tensor:
        """Return the loss without penalties; what it needs until the backward pass stays open in `passes`."""
        if self._group and self.model.training:
            modifier = self._group[0].modifier
            found = [passes.enter_context(self.predictions(prepared, samples)) for _ in range(modifier.forwards)]
            return type(modifier).loss(self._group, found)
        if self.fast_paths == FastPaths() and self.hits is None:
            batch, extras = self._take_layout(samples)
            passes.enter_context(call_inputs(self._decoder, extras))
            return token_loss(prepared, batch)
        return passes.enter_context(self.losses(prepared, samples)).sum()

    @contextmanager
    def losses(
        self, prepared: Any, samples: Sequence[Sample], copies: int = 1, temperature: float = 1.0, below: int = 0
    ) -> Iterator[torch.Tensor]:
        """Yield the loss of every counted label at a temperature, row by row, (labels,).

        Several `copies` of the rows run in one pass, one after the other, for adapters that act on slices; the first
        `below` layers, which have no adapter, run once for all of them.
        """

        def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            if self.hits is not None:
                self.hits.append(logits.argmax(-1) == labels)
            return cross_entropy(logits if temperature == 1 else logits / temperature, labels, reduction="none")

        size = self.fast_paths.head_chunk
        head = ChunkedHead(self.model, self._decoder, copies) if size else None
        with self.predictions(prepared, samples, copies, head, below) as (logits, labels):
            yield head.losses(labels, size, loss) if head and len(labels) > size else loss(logits, labels)

    @contextmanager
    def predictions(
        self,
        prepared: Any,
        samples: Sequence[Sample],
        copies: int = 1,
        head: ChunkedHead | None = None,
        below: int = 0,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the logits that predict the counted labels, (labels, vocabulary), and the labels.

        If there are more labels than a chunk has, their logits are left to `head`, if given.
        """
        paths = self.fast_paths
        once = below if copies > 1 else 0
        states = self.lower.read(documents(samples)) if self.lower and copies == 1 else None
        with ExitStack() as layout:
            if paths.packing:
                single, extras = self._take_layout(samples)
                packed = single.repeat(copies)
                first = single if once else packed
                inputs = {"input_ids": first.ids, "position_ids": first.positions}
                reads, labels, read, shape = packed.reads, packed.labels, packed.read, packed.ids.shape
                config = getattr(self._decoder, "config", self.model.config)
                attend_to = layout.enter_context(packed_attention(config, first))
                if once:  # the layers above attend within all copies
                    layout.enter_context(self._layers[once].register_forward_pre_hook(lambda *_: attend_to(packed)))
                layout.enter_context(call_inputs(self._decoder, extras, packed))
            else:
                batch, extras = self._take_layout(samples if once else [*samples] * copies)
                inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
                shape = batch["input_ids"].shape
                reads, labels = _counted(documents(samples if once else [*samples] * copies), batch["labels"])
                if once:
                    reads = torch.cat([reads + i * shape.numel() for i in range(copies)])
                    labels, shape = labels.repeat(copies), torch.Size((copies * shape[0], shape[1]))
                read = reads
                layout.enter_context(call_inputs(self._decoder, extras))
            if self.lower and states is not None:
                if paths.packing:
                    lengths = torch.tensor([len(row.ids) for row in documents(samples)], device=packed.ids.device)
                    places = (lengths.cumsum(0) - lengths)[packed.token_rows] + packed.positions[0]
                else:
                    mask = batch["attention_mask"].flatten()
                    places = mask.cumsum(0) * mask - 1
                layout.enter_context(self.lower.used(states, places, shape))
            if once:
                layout.enter_context(copied_above(self._layers[once:], copies, inputs["input_ids"].shape))
            if head and len(labels) > paths.head_chunk:
                at_labels = head.left(reads)
            else:
                at_labels = head_input(self.model, lambda x: x.flatten(0, 1).index_select(0, reads)[None])
            for part in self._last:
                if not hasattr(part, "sublayer_adapters"):  # which know the input of the sublayer, of all tokens
                    layout.enter_context(run_at(part, read, shape))
            with ExitStack() as forward:
                forward.enter_context(at_labels if paths.label_head else nullcontext())
                if self._recomputation and torch.is_grad_enabled():
                    forward.enter_context(self._recomputation.forward_pass())
                logits = prepared(**inputs, use_cache=False).logits.flatten(0, 1)
            yield (logits if paths.label_head else logits[reads]).float(), labels

    def _layout(self, samples: Sequence[Sample]) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return the rows, packed or padded as the fast paths say, and their extra inputs."""
        device, paths, samples = weights.device(self.model), self.fast_paths, documents(samples)
        extras = row_inputs(self._decoder, samples, device)
        if paths.packing:
            return pack(samples, share=paths.share_prefix, device=device), extras
        return collate(samples, self.pad_id, device), extras

    def _take_layout(self, samples: Sequence[Sample]) -> tuple[Any, dict[str, torch.Tensor]]:
        prefetched = self._prefetched.pop(tuple(map(id, samples)), None)
        return prefetched.result() if prefetched else self._layout(samples)


def adds_router_loss(model: Any) -> bool:
    """Return whether a mixture of experts adds the loss of its routers to its own (`output_router_logits`)."""
    return any(getattr(config, "output_router_logits", False) for config in _configs(model))


@contextmanager
def _router_losses(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collect the router loss of every pass with the weight that the base gives it, in nats per label; a scalar each.

    Raises:
        BadSpec: the base asks for it without a weight.
    """
    found: list[torch.Tensor] = []
    if not adds_router_loss(model):
        yield found
        return
    places = [(home, name) for home in (model, *_configs(model)) for name in ("router_aux_loss_coef", "aux_loss_coef")]
    given = [value for home, name in places if isinstance(value := getattr(home, name, None), int | float)]

    def keep(model: nn.Module, args: Any, output: Any) -> None:
        if isinstance(loss := getattr(output, "aux_loss", None), torch.Tensor):
            if not given:
                raise BadSpec(
                    f"The config.json of {type(model).__name__} asks for a router loss (output_router_logits) without "
                    "router_aux_loss_coef, its weight. Set the weight, or output_router_logits to false."
                )
            found.append(given[0] * loss)

    with model.register_forward_hook(keep):
        yield found


def _configs(model: Any) -> list[Any]:
    config: Any = getattr(model, "config", None)
    return [config, config.get_text_config(decoder=True)] if hasattr(config, "get_text_config") else [config]


@cache
def _background() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "rows")


def row_inputs(
    decoder: nn.Module, samples: Sequence[Sample], device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """Return the extra inputs of rows by name, (rows, ...) each, and the numbers of their groups if adapters know any.

    Raises:
        BadSpec: some rows lack an input that others have, or are of a group that no adapter knows.
    """
    extras = collate_extras(samples, device)
    context: CallContext | None = getattr(decoder, CONTEXT_ATTRIBUTE, None)
    if context is not None and context.groups and any(sample.group for sample in samples):
        extras[GROUP] = send(context.numbers([sample.group for sample in samples]), device)
    return extras


@contextmanager
def call_inputs(decoder: nn.Module, extras: dict[str, torch.Tensor], packed: Packed | None = None) -> Iterator[None]:
    """Give extra inputs (rows, ...), and the rows of each packed token, to adapters that read the call of a decoder.

    Other adapters ignore them. Backward passes, which may recompute, belong within the `with`.
    """
    context: CallContext | None = getattr(decoder, CONTEXT_ATTRIBUTE, None)
    with ExitStack() as inputs:
        if context is not None:
            inputs.enter_context(context.given(**extras))
            if packed is not None:
                inputs.enter_context(context.packed(len(packed.rows), packed.token_rows, packed.counts))
        yield


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
