"""What every modifier of an adapter's matrices is: a parametrisation with hooks for training, loss and saving."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.utils import parametrize

Tensors = dict[str, torch.Tensor]
Predictions = tuple[torch.Tensor, torch.Tensor]
"""Logits (labels, vocabulary) of one forward pass, and the labels (labels,)."""


class Adapted(Protocol):
    """The part of an `Injection` that modifiers see."""

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

    A subclass overrides `forward`; the hooks do nothing unless overridden. Those that are class methods are called
    once with all modifiers of an injection, which are all of one class.

    Attributes:
        dropped: number of trainable numbers that it keeps at zero for good.
        forwards: number of forward passes that its loss needs for one batch; 1 is the usual loss.
    """

    dropped: int = 0
    forwards: int = 1

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """Return the matrix that the adapter uses.

        Args:
            w: the matrix that is trained, of any shape.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def right_inverse(self, w: torch.Tensor) -> torch.Tensor:
        """Return the trained matrix for an assigned one."""
        return w

    def before_training(self) -> None:
        """Get ready for (further) training."""

    @classmethod
    def due(cls, group: Sequence[Modified], step: int) -> bool:
        """Return whether `before_step` has something to do once `step` steps have been taken."""
        return False

    @classmethod
    def before_step(cls, group: Sequence[Modified], owner: Adapted, gradients: Callable[[], object]) -> None:
        """Act before a step for which `due` is true.

        Args:
            group: every modified matrix of the injection.
            owner: the injection.
            gradients: adds the gradients of the next batch's loss to the adapter's parameters.
        """

    @classmethod
    def loss(cls, group: Sequence[Modified], predictions: Sequence[Predictions]) -> torch.Tensor:
        """Return the loss (a scalar, nats summed over labels) of `forwards` passes over one batch."""
        raise NotImplementedError(f"{cls.__name__} has no loss of its own")

    def to_state(self, name: str, w: torch.Tensor) -> Tensors:
        """Return the tensors that are saved in place of the matrix, by name."""
        return {name: w}

    def from_state(self, name: str, w: torch.Tensor, state: Tensors) -> Callable[[], None] | None:
        """Replace what `to_state` returned, in `state`, by the matrix itself.

        Returns:
            What to do once the matrix has been loaded; None for nothing.

        Raises:
            StateMismatch: the saved tensors do not belong to this matrix.
        """
        return None


class Modified(NamedTuple):
    """One modified matrix: its name in `Injection.state_dict`, the trained matrix, its modifier."""

    name: str
    w: nn.Parameter
    modifier: Modifier


def modified(adapters: Mapping[str, nn.Module]) -> list[Modified]:
    """Return every modified matrix of some adapters, shared ones once."""

    def found() -> Iterator[Modified]:
        for key, adapter in adapters.items():
            for path, module in adapter.named_modules():
                if isinstance(module, parametrize.ParametrizationList):
                    original, modifier = module.original, module[0]
                    assert isinstance(original, nn.Parameter) and isinstance(modifier, Modifier)
                    yield Modified(f"{key}/{path}.original", original, modifier)

    return list({each.w: each for each in reversed(list(found()))}.values())[::-1]


def idle(adapters: Mapping[str, nn.Module]) -> int:
    """Return how many trainable numbers modifiers keep at zero for good."""
    return sum(modifier.dropped for _, _, modifier in modified(adapters))


def before_training(owner: Adapted) -> None:
    """Get every modifier of an injection ready for (further) training."""
    for _, _, modifier in modified(owner.adapters):
        modifier.before_training()


def due(owner: Adapted, step: int) -> bool:
    """Return whether modifiers have to act before the step that follows `step` steps."""
    group = modified(owner.adapters)
    return bool(group) and type(group[0].modifier).due(group, step)


def before_step(owner: Adapted, step: int, gradients: Callable[[], object]) -> bool:
    """Let modifiers act before a step if it is time; return whether it was. See `Modifier.before_step`."""
    if not due(owner, step):
        return False
    group = modified(owner.adapters)
    type(group[0].modifier).before_step(group, owner, gradients)
    return True


@torch.no_grad()
def to_state(owner: Adapted, state: Tensors) -> Tensors:
    """Return the tensors to save for those of `Injection.state_dict`."""
    state = dict(state)
    for name, w, modifier in modified(owner.adapters):
        state.pop(name)
        state |= modifier.to_state(name, w.detach())
    return state


@torch.no_grad()
def from_state(owner: Adapted, saved: Tensors) -> tuple[Tensors, list[Callable[[], None]]]:
    """Return the tensors for `Injection.load_state_dict`, and what to do once they are loaded.

    Raises:
        StateMismatch: names, shapes or sizes differ; the message lists how.
    """
    state, after = dict(saved), []
    for name, w, modifier in modified(owner.adapters):
        if then := modifier.from_state(name, w, state):
            after.append(then)
    return state, after
