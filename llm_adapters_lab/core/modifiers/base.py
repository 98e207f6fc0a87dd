"""The base class of modifiers: a parametrisation of one matrix, with hooks for training, loss and saving."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.utils import parametrize

Tensors = dict[str, torch.Tensor]
Predictions = tuple[torch.Tensor, torch.Tensor]
"""Logits (labels, vocabulary) of one forward pass, and the labels (labels,)."""


class Adapted(Protocol):
    """What modifiers use of an `Injection`."""

    @property
    def adapters(self) -> Mapping[str, nn.Module]:
        """The adapters by site key."""

    @property
    def sites(self) -> Mapping[str, Any]:
        """The sites by key."""

    def parameters(self) -> list[nn.Parameter]:
        """The trainable tensors."""


class Modifier(nn.Module):
    """Changes one matrix of an adapter wherever it is used.

    Subclasses override `forward`; all other hooks are optional. The hooks that are class methods are called once with
    all modified matrices of a part of an injection, whose modifiers are of one class.

    Attributes:
        group: name of the part of the adapter that the matrix is in.
        dropped: number of trainable elements that are permanently zero.
        forwards: number of forward passes per batch that `loss` needs; 1 stands for the usual loss.
    """

    group: str = ""
    dropped: int = 0
    forwards: int = 1

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """Return the matrix that the adapter uses, of the shape of w.

        Args:
            w: the trained matrix, of any shape.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def right_inverse(self, w: torch.Tensor) -> torch.Tensor:
        """Return the trained matrix for an assigned one."""
        return w

    def before_training(self) -> None:
        """Prepare for training, or for further training."""

    @classmethod
    def due(cls, group: Sequence[Modified], step: int) -> bool:
        """Return whether `before_step` must be called after `step` steps."""
        return False

    @classmethod
    def before_step(cls, group: Sequence[Modified], owner: Adapted, gradients: Callable[[], object]) -> None:
        """Act before a step for which `due` is true.

        Args:
            group: all modified matrices of a part of the injection.
            owner: the injection.
            gradients: adds the gradients of the next batch's loss to those of the adapter's parameters.
        """

    @classmethod
    def loss(cls, group: Sequence[Modified], predictions: Sequence[Predictions]) -> torch.Tensor:
        """Return the loss of `forwards` passes over one batch: a scalar, in nats, summed over labels."""
        raise NotImplementedError(f"{cls.__name__} has no loss of its own")

    def to_state(self, name: str, w: torch.Tensor) -> Tensors:
        """Return the tensors by name that are saved instead of the matrix."""
        return {name: w}

    def from_state(self, name: str, w: torch.Tensor, state: Tensors) -> Callable[[], None] | None:
        """Replace the tensors of `to_state` by the matrix, in `state`.

        Returns:
            A function to call once the matrix has been loaded, or None.

        Raises:
            StateMismatch: the saved tensors do not fit the matrix.
        """
        return None


class Modified(NamedTuple):
    """A modified matrix: its name in `Injection.state_dict`, the trained matrix, and its modifier."""

    name: str
    w: nn.Parameter
    modifier: Modifier


def modified(adapters: Mapping[str, nn.Module]) -> list[Modified]:
    """Return the modified matrices of adapters; those that adapters share occur once."""
    found: dict[nn.Parameter, Modified] = {}
    for key, adapter in adapters.items():
        for path, module in adapter.named_modules():
            if isinstance(module, parametrize.ParametrizationList):
                original, modifier = module.original, module[0]
                assert isinstance(original, nn.Parameter) and isinstance(modifier, Modifier)
                found.setdefault(original, Modified(f"{key}/{path}.original", original, modifier))
    return list(found.values())


@contextmanager
def in_full(adapter: nn.Module) -> Iterator[None]:
    """Read matrices as in evaluation, to merge or export them: a part drawn by a training pass is not the whole."""
    training = [part for part in adapter.modules() if isinstance(part, Modifier) and part.training]
    for part in training:
        part.eval()
    try:
        yield
    finally:
        for part in training:
            part.train()


def before_training(owner: Adapted) -> None:
    """Prepare the modifiers of an injection for training, or for further training."""
    for _, _, modifier in modified(owner.adapters):
        modifier.before_training()


def groups(adapters: Mapping[str, nn.Module]) -> list[list[Modified]]:
    """Return the modified matrices of each part of an adapter that has any."""
    found: dict[str, list[Modified]] = {}
    for each in modified(adapters):
        found.setdefault(each.modifier.group, []).append(each)
    return list(found.values())


def due(owner: Adapted, step: int) -> bool:
    """Return whether `before_step` has something to do after `step` steps."""
    return any(type(group[0].modifier).due(group, step) for group in groups(owner.adapters))


def before_step(owner: Adapted, step: int, gradients: Callable[[], object]) -> bool:
    """Call `Modifier.before_step` where it is due, and return whether it was."""
    wanted = [group for group in groups(owner.adapters) if type(group[0].modifier).due(group, step)]
    for group in wanted:
        type(group[0].modifier).before_step(group, owner, gradients)
    return bool(wanted)
