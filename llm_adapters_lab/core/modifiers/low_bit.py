"""Low-bit adapters: the weights of each matrix take one of 2^b values, in training and on disk.

    W_q = mean + std · codebook[nearest(Z)],   Z = (W - mean) / std

The codebook holds the medians of 2^b equally likely cells of a normal distribution; for b = 1 that is ±0.6745. Training
updates the unquantised W: the gradient with respect to W_q is passed to W unchanged (straight-through). Saved are b
bits per weight, and mean and std of each matrix in fp32: N b / 8 + 8 bytes. The loaded matrix equals the saved one bit
for bit. A constant matrix, such as an output projection that starts at zero, does not change.

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
"""Suffixes of the two tensors that are saved instead of a matrix: uint8 (bytes,), and mean and std, fp32 (2,)."""


def codebook(bits: int) -> torch.Tensor:
    """Return the values of the codes 0 … 2^b - 1, (2^b,), in ascending order."""
    cells = 2**bits
    return torch.tensor([NormalDist().inv_cdf((i + 0.5) / cells) for i in range(cells)])


class Quantiser(Modifier):
    """Rounds a matrix to the values of a codebook.

    Attributes:
        moments: mean and std of a loaded matrix, which is not rounded again; None during training.
    """

    moments: torch.Tensor | None = None

    def __init__(self, bits: int) -> None:
        """Create a quantiser with 2^bits values."""
        super().__init__()
        self.bits = bits

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """Return W_q."""
        rounded: torch.Tensor = w if self.moments is not None else _Rounded.apply(w, self)  # type: ignore[no-untyped-call]
        return rounded

    def before_training(self) -> None:
        """Round the matrix in every forward pass from now on, also if it was loaded."""
        self.moments = None

    def quantize(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the code of each weight (uint8, in the shape of W), and mean and std (2,)."""
        moments = self.moments
        if moments is None:
            moments = torch.stack([w.float().mean(), w.float().std(correction=0)])
        values = codebook(self.bits).to(w.device)
        z = (w.float() - moments[0]) / moments[1].clamp(min=torch.finfo(torch.float32).tiny)
        return torch.bucketize(z, (values[1:] + values[:-1]) / 2).to(torch.uint8), moments

    def dequantize(self, codes: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
        """Return the weights (in the shape of `codes`) for the results of `quantize`."""
        return codebook(self.bits).to(moments.device)[codes.long()] * moments[1] + moments[0]

    def to_state(self, name: str, w: torch.Tensor) -> Tensors:
        """Return the packed codes, and mean and std."""
        codes, moments = self.quantize(w)
        return {name + BITS: _pack(codes, self.bits), name + MOMENTS: moments.float()}

    def from_state(self, name: str, w: torch.Tensor, state: Tensors) -> Callable[[], None] | None:
        """Replace the packed codes by the matrix.

        Raises:
            StateMismatch: the tensors do not have the shapes and dtypes for this matrix.
        """
        bits, moments = state.pop(name + BITS, None), state.pop(name + MOMENTS, None)
        if bits is None or moments is None:
            return None  # `load_state_dict` will report the matrix as missing
        size = -(-w.numel() * self.bits // 8)
        fits = bits.dtype == torch.uint8 and bits.shape == (size,) and moments.shape == (2,)
        if not fits or not bool(moments.isfinite().all()):
            raise StateMismatch(f"{name} must be {size} bytes and two finite numbers; given were {tuple(bits.shape)}.")
        moments = moments.to(w.device)
        codes = _unpack(bits, self.bits, w.numel()).view(w.shape).to(w.device)
        state[name] = self.dequantize(codes, moments)
        return partial(setattr, self, "moments", moments)


class _Rounded(torch.autograd.Function):
    """Rounding with the gradient of the identity; W + (W_q - W).detach() would not equal W_q bit for bit."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor, quantiser: Quantiser) -> torch.Tensor:
        return quantiser.dequantize(*quantiser.quantize(w)).to(w.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


def quantisers(matrices: list[torch.Tensor], config: QuantizeConfig) -> list[Modifier]:
    """Return a quantiser for each matrix."""
    return [Quantiser(config.bits) for _ in matrices]


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    per_byte, flat = 8 // bits, codes.flatten().cpu()
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % per_byte)]).view(-1, per_byte)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return (flat << shifts).sum(-1, dtype=torch.uint8)


def _unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    codes: torch.Tensor = ((packed[:, None] >> shifts) & (2**bits - 1)).flatten()[:count]
    return codes
