"""Few-bit adapters: an adapter's weights take 2^b values for each matrix, in training as on disk.

    W_q = mean + std · code[nearest(Z)],   Z = (W - mean) / std

The code holds the medians of 2^b equally likely cells of a normal distribution; for b = 1 that is ±0.6745. Training
keeps the plain W behind it: a gradient with respect to W_q goes to W as it is (straight-through). Saved are b bits for
each weight, and mean and std of each matrix as fp32: N b / 8 + 8 bytes. What is loaded equals what was saved to the
bit. A matrix of equal numbers, such as an exit that starts at zero, stays as it is.

Source: Jie et al. 2023, arXiv:2307.16867, section 3 (their central moments and cell medians).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import Any

import torch

from llm_adapters_lab.core.modifiers.base import Modifier, Tensors
from llm_adapters_lab.core.modifiers.configs import QuantizeConfig
from llm_adapters_lab.errors import StateMismatch

BITS, MOMENTS = ".bits", ".moments"
"""Endings of the two tensors that are saved in place of one matrix: uint8 (bytes,) and fp32 (2,), mean and std."""


def code(bits: int) -> torch.Tensor:
    """Return the values that stand for 0 … 2^b - 1, in order, (2^b,)."""
    cells = 2**bits
    return torch.tensor([NormalDist().inv_cdf((i + 0.5) / cells) for i in range(cells)])


class Quantiser(Modifier):
    """Rounds a matrix to the values of its code.

    Attributes:
        moments: mean and std of what was loaded, which is used as it stands; None while the matrix is trained.
    """

    moments: torch.Tensor | None = None

    def __init__(self, bits: int) -> None:
        """Take the code for so many bits."""
        super().__init__()
        self.bits = bits

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """Return W_q."""
        rounded: torch.Tensor = w if self.moments is not None else _Rounded.apply(w, self)  # type: ignore[no-untyped-call]
        return rounded

    def before_training(self) -> None:
        """Round the matrix afresh from now on, instead of using what was loaded as it stands."""
        self.moments = None

    def numbers(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which value each weight takes (uint8, as W), and mean and std."""
        moments = self.moments
        if moments is None:
            moments = torch.stack([w.float().mean(), w.float().std(correction=0)])
        values = code(self.bits).to(w.device)
        z = (w.float() - moments[0]) / moments[1].clamp(min=torch.finfo(torch.float32).tiny)
        return torch.bucketize(z, (values[1:] + values[:-1]) / 2).to(torch.uint8), moments

    def values(self, numbers: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
        """Return the weights for what `numbers` has given."""
        return code(self.bits).to(moments.device)[numbers.long()] * moments[1] + moments[0]

    def to_state(self, name: str, w: torch.Tensor) -> Tensors:
        """Return b bits for each weight, and mean and std."""
        numbers, moments = self.numbers(w)
        return {name + BITS: _pack(numbers, self.bits), name + MOMENTS: moments.float()}

    def from_state(self, name: str, w: torch.Tensor, state: Tensors) -> Callable[[], None] | None:
        """Unpack the bits.

        Raises:
            StateMismatch: they are not as many as the matrix needs.
        """
        bits, moments = state.pop(name + BITS, None), state.pop(name + MOMENTS, None)
        if bits is None or moments is None:
            return None  # reported as missing under the name of the matrix
        size = -(-w.numel() * self.bits // 8)
        fits = bits.dtype == torch.uint8 and bits.shape == (size,) and moments.shape == (2,)
        if not fits or not bool(moments.isfinite().all()):
            raise StateMismatch(f"{name} must be {size} bytes and two finite numbers; given were {tuple(bits.shape)}.")
        moments = moments.to(w.device)
        numbers = _unpack(bits, self.bits, w.numel()).view(w.shape).to(w.device)
        state[name] = self.values(numbers, moments)
        return partial(setattr, self, "moments", moments)


class _Rounded(torch.autograd.Function):
    """Rounding with the gradient of doing nothing; W + (W_q - W) would not be W_q to the bit."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor, quantiser: Quantiser) -> torch.Tensor:
        return quantiser.values(*quantiser.numbers(w)).to(w.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


def quantisers(matrices: list[torch.Tensor], config: QuantizeConfig) -> list[Modifier]:
    """Return the modifier of each matrix."""
    return [Quantiser(config.bits) for _ in matrices]


def _pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    each, flat = 8 // bits, numbers.flatten().cpu()
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % each)]).view(-1, each)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return (flat << shifts).sum(-1, dtype=torch.uint8)


def _unpack(whole: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    numbers: torch.Tensor = ((whole[:, None] >> shifts) & (2**bits - 1)).flatten()[:count]
    return numbers
