"""Activations that are cheap to compute again are not kept for the backward pass.

Of a layer, autograd keeps what its normalisations and activation functions return, the products of gated MLPs, and rows
gathered for attention, next to the tensors that these were computed from. Here it keeps a recipe instead, and runs the
same kernel on the same input again, so gradients are equal to the bit. The products of matrices, which take the time,
are never computed twice; this is what tells it from gradient checkpointing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core.anatomy import Anatomy

ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")
KEEP_OUTPUT = ("ReluBackward0", "TanhBackward0", "SigmoidBackward0")
"""Autograd keeps the output of these, so there is nothing to gain."""
Compute = Callable[[], torch.Tensor]
_running: ContextVar[Recomputation | None] = ContextVar("_running", default=None)
_looking: ContextVar[bool] = ContextVar("_looking", default=False)
"""Whether a recipe reads another, which will be read again by the product that both were made for."""


class _Recipe:
    """Computes a tensor again when it is first read, and keeps it until it has been read by all who need it."""

    def __init__(self, compute: Compute, device: str) -> None:
        self.compute, self.readers = compute, 0
        self.value: torch.Tensor | None = None
        self.casting = torch.autocast(
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), cache_enabled=False
        )

    def read(self) -> torch.Tensor:
        if (value := self.value) is None:
            with torch.no_grad(), self.casting:
                value = self.compute()
        self.readers -= not _looking.get()
        self.value = value if self.readers > 0 else None
        return value


@dataclass(frozen=True)
class _Part:
    """A view of what a recipe computes."""

    recipe: _Recipe
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


class Recomputation:
    """Finds, in the forward passes of a model, what is cheap to compute again."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        """Look for normalisations and activation functions, and the projections that read what they return."""
        decoder = model.get_submodule(anatomy.decoder)
        self._cheap = [module for module in decoder.modules() if _is_cheap(module)]
        modules = dict(model.named_modules())  # the matrices of experts are no modules
        self._projections = [modules[site.path] for site in anatomy.projections if site.path in modules]
        # By the address of a storage, which no other has while it lives.
        self._known: dict[int, tuple[Any, _Recipe]] = {}

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Keep recipes in the forward pass within `with`."""
        with ExitStack() as ended:
            for module in self._cheap:
                ended.enter_context(module.register_forward_hook(self._after, with_kwargs=True))
            for module in self._projections:
                ended.enter_context(module.register_forward_pre_hook(self._before))
            ended.callback(self._known.clear)
            ended.callback(_running.reset, _running.set(self))
            ended.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack))
            yield

    def add(self, value: torch.Tensor, compute: Compute) -> None:
        """Note how a tensor can be computed again, in the same memory order."""
        if value.requires_grad:
            storage = value.untyped_storage()
            key = storage._cdata
            gone = weakref.ref(storage, lambda _: self._known.pop(key, None))
            self._known[key] = gone, _Recipe(compute, value.device.type)

    def _after(self, module: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        if len(module._forward_hooks) > 1 or module._forward_pre_hooks or len(args) != 1 or kwargs:
            return  # an adapter is at work here
        if isinstance(out, torch.Tensor) and out.requires_grad and out.grad_fn.name() not in KEEP_OUTPUT:  # type: ignore[union-attr]
            x, version = args[0].detach(), args[0]._version

            def compute() -> torch.Tensor:
                if x._version != version:
                    raise RuntimeError(f"The input of {type(module).__name__} was changed in place after its call.")
                again: torch.Tensor = module.forward(x)
                return again

            self.add(out, compute)

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0] if args else None
        if not isinstance(x, torch.Tensor) or (made := x.grad_fn) is None or made.name() != "MulBackward0":
            return
        # Both factors are kept where both have a gradient.
        if len(made.next_functions) == 2 and all(node is not None for node, _ in made.next_functions):

            def compute() -> torch.Tensor:
                token = _looking.set(True)
                try:
                    again: torch.Tensor = made._saved_self * made._saved_other  # type: ignore[attr-defined]
                    return again
                finally:
                    _looking.reset(token)

            self.add(x, compute)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | _Part:
        _, recipe = self._known.get(tensor.untyped_storage()._cdata, (None, None))
        if recipe is None:
            return tensor
        recipe.readers += 1
        return _Part(recipe, tensor.size(), tensor.stride(), tensor.storage_offset())


def recomputable(value: torch.Tensor, compute: Compute) -> torch.Tensor:
    """Return a tensor, which the forward pass that is running may compute again instead of keeping it."""
    if (running := _running.get()) is not None:
        running.add(value, compute)
    return value


def _unpack(kept: torch.Tensor | _Part) -> torch.Tensor:
    if isinstance(kept, torch.Tensor):
        return kept
    return kept.recipe.read().as_strided(kept.size, kept.stride, kept.offset)


def _is_cheap(module: nn.Module) -> bool:
    if [*module.children()] or hasattr(module, "parameter_adapters"):
        return False
    name = type(module).__name__.lower()
    if type(module).__module__ in ACTIVATIONS or name.endswith(("gelu", "silu")):
        return not [*module.parameters()]
    return "norm" in name and not isinstance(module, nn.modules.batchnorm._NormBase)
