"""Metrics of recorded activations: what an adapter does to the residual stream. Tensors in, tensors out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llm_adapters_lab.errors import NoView

NEAR_ZERO, SATURATED = 0.01, 0.99


@dataclass(frozen=True)
class Contribution:
    """What an adapter writes relative to the residual stream; both (layers, tokens).

    Attributes:
        ratio: ||c|| / ||h||.
        along: <c, h_L> / ||h_L||², its share of the last stream: 0 where it is orthogonal to it, negative where it
            works against it. The shares of everything that writes to the stream sum to 1.
    """

    ratio: torch.Tensor
    along: torch.Tensor


@dataclass(frozen=True)
class Activity:
    """How the units of a bottleneck behave over tokens; each (units,).

    Attributes:
        norm: root mean square of the activation.
        near_zero: share of tokens with |f| < 0.01.
        saturated: share of tokens with |f| > 0.99; None for an unbounded non-linearity.
    """

    norm: torch.Tensor
    near_zero: torch.Tensor
    saturated: torch.Tensor | None


def contribution(written: torch.Tensor, stream: torch.Tensor) -> Contribution:
    """Measure what an adapter adds to the residual stream.

    Args:
        written: c, what it added in each layer, (layers, tokens, d).
        stream: h, the residual stream after each layer, (layers, tokens, d); the last one is h_L.

    Raises:
        NoView: the shapes differ, as for methods that write to no site of the residual stream.
    """
    if written.shape != stream.shape or written.ndim != 3:
        raise NoView(
            f"Contributions {tuple(written.shape)} and stream {tuple(stream.shape)} must both be (layers, tokens, d). "
            "Only what is written at the width of the residual stream has a share in it."
        )
    written, stream = written.float(), stream.float()
    last = stream[-1]
    along = (written * last).sum(-1) / last.square().sum(-1)
    return Contribution(written.norm(dim=-1) / stream.norm(dim=-1), along)


def activity(hidden: torch.Tensor, nonlinearity: str = "tanh") -> Activity:
    """Measure the units of a bottleneck.

    Args:
        hidden: f(x W_down) of each token, (..., units).
        nonlinearity: f. tanh saturates at ±1; the others are taken as unbounded.
    """
    flat = hidden.float().flatten(0, -2).abs()
    saturated = (flat > SATURATED).float().mean(0) if nonlinearity == "tanh" else None
    return Activity(flat.square().mean(0).sqrt(), (flat < NEAR_ZERO).float().mean(0), saturated)


def cosine(base: torch.Tensor, adapted: torch.Tensor) -> torch.Tensor:
    """Return <h, h'> / (||h|| ||h'||) per layer and token: (layers, tokens, d) twice -> (layers, tokens)."""
    return torch.cosine_similarity(base.float(), adapted.float(), dim=-1)


def cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return linear CKA, the similarity of two representations of the same n tokens up to rotation and scale.

    ||Yᵀ X||_F² / (||Xᵀ X||_F ||Yᵀ Y||_F) with the columns of X and Y centred; 1 for equal ones. Biased towards 1 where
    n is small relative to the widths; NaN where a representation is constant.

    Args:
        x: (n, d).
        y: (n, d'), rows in the same order.

    Source: Kornblith et al. 2019, arXiv:1905.00414, equations 3 and 4.
    """
    # The same with Gram matrices (n, n), as n is small here.
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    first, second = x @ x.T, y @ y.T
    return float((first * second).sum() / (first.norm() * second.norm()))


def virtual_attention(pattern: torch.Tensor, t: int) -> torch.Tensor:
    """Return the share of attention that goes to t prepended virtual tokens, (..., heads, queries).

    Args:
        pattern: attention weights, (..., heads, queries, keys); each row sums to 1.
        t: number of virtual tokens, the first keys.

    Raises:
        NoView: there are not more than t keys.
    """
    if not 0 < t < pattern.shape[-1]:
        raise NoView(f"{t} virtual tokens among {pattern.shape[-1]} keys: this pattern has no virtual tokens in front.")
    return pattern[..., :t].sum(-1)
