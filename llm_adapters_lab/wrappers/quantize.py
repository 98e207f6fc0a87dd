"""Few-bit adapters: an adapter's weights take 2^b values for each matrix, in training as on disk.

    W_q = mean + std · code[nearest(Z)],   Z = (W - mean) / std

The code holds the medians of 2^b equally likely cells of a normal distribution; for b = 1 that is ±0.6745. Training
keeps the plain W behind it: a gradient with respect to W_q goes to W as it is (straight-through). Saved are b bits for
each weight, and mean and std of each matrix as fp32: N b / 8 + 8 bytes. What is loaded equals what was saved to the
bit. A matrix of equal numbers, such as an exit that starts at zero, stays as it is.

Source: Jie et al. 2023, arXiv:2307.16867, section 3 (their central moments and cell medians).
"""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from llm_adapters_lab.errors import StateMismatch

if TYPE_CHECKING:
    from llm_adapters_lab.inject import Injection

Tensors = dict[str, torch.Tensor]
BITS, MOMENTS = ".bits", ".moments"
"""Endings of the two tensors that are saved in place of one matrix: uint8 (bytes,) and fp32 (2,), mean and std."""


class QuantizeConfig(BaseModel):
    """How coarse an adapter's weights are."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bits: Literal[1, 2, 4, 8] = Field(default=1, description="bits b for each weight")


def code(bits: int) -> torch.Tensor:
    """Return the values that stand for 0 … 2^b - 1, in order, (2^b,)."""
    cells = 2**bits
    return torch.tensor([NormalDist().inv_cdf((i + 0.5) / cells) for i in range(cells)])


class Quantiser(nn.Module):
    """Wrapper that rounds a matrix to the values of its code.

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

    def right_inverse(self, w: torch.Tensor) -> torch.Tensor:
        """Return W."""
        return w

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


class _Rounded(torch.autograd.Function):
    """Rounding with the gradient of doing nothing; W + (W_q - W) would not be W_q to the bit."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor, quantiser: Quantiser) -> torch.Tensor:
        return quantiser.values(*quantiser.numbers(w)).to(w.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


def quantisers(matrices: list[torch.Tensor], config: QuantizeConfig) -> list[nn.Module]:
    """Return the wrapper of each matrix."""
    return [Quantiser(config.bits) for _ in matrices]


def train_on(injection: Injection) -> None:
    """Let what was loaded be trained further: its weights are rounded anew from now on."""
    for _, _, quantiser in _of(injection):
        quantiser.moments = None


@torch.no_grad()
def packed(injection: Injection) -> Tensors:
    """Return the tensors to save: those of `Injection.state_dict`, the quantised ones packed."""
    state = injection.state_dict()
    for name, w, quantiser in _of(injection):
        numbers, moments = quantiser.numbers(w)
        del state[name]
        state |= {name + BITS: _pack(numbers, quantiser.bits), name + MOMENTS: moments.float()}
    return state


@torch.no_grad()
def load(injection: Injection, state: Tensors) -> None:
    """Load what `packed` gave; all of it or none.

    Raises:
        StateMismatch: names, shapes or sizes differ; the message lists how.
    """
    state, found = dict(state), []
    for name, w, quantiser in _of(injection):
        bits, moments = state.pop(name + BITS, None), state.pop(name + MOMENTS, None)
        if bits is None or moments is None:
            continue  # missed below, by its own name
        size = -(-w.numel() * quantiser.bits // 8)
        fits = bits.dtype == torch.uint8 and bits.shape == (size,) and moments.shape == (2,)
        if not fits or not bool(moments.isfinite().all()):
            raise StateMismatch(f"{name} must be {size} bytes and two finite numbers; given were {tuple(bits.shape)}.")
        moments = moments.to(w.device)
        numbers = _unpack(bits, quantiser.bits, w.numel()).view(w.shape).to(w.device)
        state[name] = quantiser.values(numbers, moments)
        found.append((quantiser, moments))
    injection.load_state_dict(state)
    for quantiser, moments in found:
        quantiser.moments = moments


def _of(injection: Injection) -> list[tuple[str, nn.Parameter, Quantiser]]:
    from llm_adapters_lab.wrappers import wrapped

    return [(name, w, wrapper) for name, w, wrapper in wrapped(injection) if isinstance(wrapper, Quantiser)]


def _pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    each, flat = 8 // bits, numbers.flatten().cpu()
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % each)]).view(-1, each)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return (flat << shifts).sum(-1, dtype=torch.uint8)


def _unpack(whole: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    numbers: torch.Tensor = ((whole[:, None] >> shifts) & (2**bits - 1)).flatten()[:count]
    return numbers
