"""The peak memory of a training, found by running its largest micro-batch on fake tensors.

Fake tensors have shapes and no content. Every storage that one training step allocates and frees is counted, so the
estimate follows from what models, adapters and fast paths actually do. It covers what torch allocates; the interpreter
and the libraries (some 0.5 GB on a CPU) and the workspace of kernels come on top. A quantised base runs as a plain one
here: its packed weights are counted, and what it keeps and unpacks during a step is added.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.events import Estimated
from llm_adapters_lab.models import quantization
from llm_adapters_lab.models.blueprint import Blueprint, blueprint
from llm_adapters_lab.models.loading import pick_dtype
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.batches import micro_batches, row_order, step_count
from llm_adapters_lab.training.fast_paths import eligible
from llm_adapters_lab.training.loss import FastPaths, Objective
from llm_adapters_lab.training.regimes import Heads, HeadsObjective
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import set_gradient_checkpointing

WORTH_IT = 64 * 2**20
"""Bytes of weights from which a run starts with an estimate, which takes about as long as a step of a small model."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of a training, in bytes.

    Attributes:
        weights: of the base.
        adapter: its tensors, and a copy of their initial values, from which the update norms are measured.
        optimizer: the two moments of AdamW.
        step: activations and gradients of one micro-batch.
    """

    weights: int
    adapter: int
    optimizer: int
    step: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.adapter + self.optimizer + self.step


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context manager that counts the bytes of all storages that torch allocates.

    Attributes:
        now: bytes currently allocated.
        most: peak of `now`.
    """

    def __init__(self, known: Sequence[torch.Tensor] = ()) -> None:
        """Start from zero; the storages of `known` are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.most: int = 0
        self._sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it allocates."""
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0  # for instance, whether there is padding on the left
        if func is torch.ops.aten._pin_memory.default and isinstance(args[0], FakeTensor):
            return args[0]  # torch has no fake version of it, and it needs no memory of the GPU
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.most = max(self.now, self.most)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def estimate(spec: RunSpec, samples: Sequence[Sample], base: Blueprint | None = None) -> Memory | None:
    """Return the peak memory of a run's training.

    Args:
        spec: with an adapter.
        samples: its training rows.
        base: the blueprint of its base, if it has been read.

    Returns:
        The bytes; None for a model whose computation depends on numbers, such as a mixture of experts.

    Raises:
        LabError: base or adapter cannot be built.
    """
    assert spec.adapter is not None and spec.injected is not None
    plan = base or blueprint(*spec.base_parts)
    if any(site.routed for site in plan.anatomy.projections):  # which expert has how many tokens is not known
        return None
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", pick_dtype(spec.dtype)
    chunks = {packing: largest(samples, spec.train, spec.seed, padded=not packing) for packing in (True, False)}
    tokenizer, scheme = plan.tokenizer_if_any, plan.quantization(spec.quantization)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng():
            model = plan.build(device, dtype)
            own = [*model.parameters(), *model.buffers()]
            packed = quantization.projections(model) if scheme != "none" else []
            held = quantization.weight_bytes(model, scheme, dtype)
            if scheme == "int8":
                for module in packed:
                    module.register_forward_hook(_keep_input)
            injection = inject(model, spec.injected, tokenizer=tokenizer)
            shortcuts, _ = eligible(model, injection, samples, spec.train)
            heads = Heads(injection, spec.adapter, spec.train.regime) if spec.train.regime else None
            with heads.attached() if heads else nullcontext():
                step = _step(model.train(), chunks[shortcuts.packing], spec.train, shortcuts)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None
    adapter = sum(p.numel() * p.element_size() for p in injection.parameters())
    copies = 4 * injection.count()  # in fp32
    moments = 2 * adapter
    if heads:
        factors = sum(p.numel() * p.element_size() for p in heads.parameters())
        adapter, moments = adapter + 2 * factors, 2 * factors
    weights = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in own}.values())
    if packed:
        weights = held
        # The forward and the backward pass unpack one projection at a time.
        step += max(p.numel() for module in packed for p in module.parameters(recurse=False)) * dtype.itemsize
    return Memory(weights, adapter + copies, moments, step)


def _keep_input(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
    """Keep the input for the backward pass, as an int8 projection does."""
    if output.grad_fn is not None:
        kept: dict[str, Any] = output.grad_fn.metadata  # type: ignore[assignment]
        kept["input"] = args[0]


def estimated(memory: Memory) -> Estimated:
    """Return the event that reports an estimate."""
    return Estimated(**asdict(memory), total=memory.total)


def largest(samples: Sequence[Sample], plan: TrainSpec, seed: int, *, padded: bool) -> list[Sample]:
    """Return the micro-batch with the most tokens of a training."""
    chunks = (
        chunk
        for rows in row_order(len(samples), plan.batch, step_count(plan, len(samples)), seed)
        for chunk in micro_batches([samples[i] for i in rows], plan.micro_batch, plan.micro_tokens, padded=padded)
    )
    lengths = ((len(chunk) * max(len(s.ids) for s in chunk), sum(len(s.ids) for s in chunk), chunk) for chunk in chunks)
    return max(lengths, key=lambda found: found[0] if padded else found[1])[2]


def _step(model: nn.Module, chunk: Sequence[Sample], plan: TrainSpec, shortcuts: FastPaths) -> int:
    """Return the peak memory in bytes of a forward and a backward pass."""
    if plan.gradient_checkpointing:
        set_gradient_checkpointing(model, True)
    dtype = pick_dtype(plan.precision)
    device = next(model.parameters()).device.type
    cast = nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)
    objective = HeadsObjective(plan.regime.heads, model, shortcuts) if plan.regime else Objective(model, shortcuts)
    chunk = objective.assigned(chunk) if isinstance(objective, HeadsObjective) else chunk
    with (
        Peak([*model.parameters(), *model.buffers()]) as peak,
        cast,
        objective.loss(model, chunk) as loss,
    ):
        loss.backward()  # type: ignore[no-untyped-call]
    most: int = peak.most
    return most
