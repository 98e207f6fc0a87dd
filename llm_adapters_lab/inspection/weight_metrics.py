"""Metrics of weights: norm, spectrum, rank and overlap of the ΔW that an adapter amounts to. No model runs here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.merging import changed_tensors
from llm_adapters_lab.errors import CannotMerge, NoView


@dataclass(frozen=True)
class Norm:
    """How much an adapter changes at one site.

    Attributes:
        change: ||Δθ||_F over all tensors of the module that it changes (ΔW alone for most methods).
        relative: the same divided by ||θ||_F of those tensors; infinite where the base holds only zeros.
    """

    change: float
    relative: float


def changes(injection: Injection, key: str) -> dict[str, torch.Tensor]:
    """Return Δθ = θ' - θ of each tensor that merging would change in the module at a site.

    Args:
        injection: the adapters; others at the same place do not count.
        key: of the site.

    Returns:
        By name ("weight" as (d_out, d_in), "bias"), fp32; for DoRA, KronA, IA3 and the like as well as for LoRA.

    Raises:
        NoView: the method does not change weights.
    """
    host = injection.host(key)
    if injection.adapters[key].merged is None:
        raise NoView(
            f"{injection.config.type!r} changes activations, not weights: it has no ΔW. See what it does to them by "
            "probes.layer_similarity, probes.bottleneck_units, probes.both or a Recorder."
        )
    try:
        # In fp64: a small ΔW would drown in the fp32 rounding of W'.
        own = {name: value.double() for name, value in weights.own_tensors(host).items()}
        changed = changed_tensors(injection, key, own)
    except CannotMerge as error:
        raise NoView(f"{injection.config.type!r} has no ΔW at {key}. {error}") from None
    return {name: (value.detach().double() - own[name]).float() for name, value in changed.items()}


def weight_change(injection: Injection, key: str) -> torch.Tensor:
    """Return ΔW (d_out, d_in) of the projection at a site.

    Raises:
        NoView: the method does not change weights, or no matrix there (but a bias, or the scale of a norm).
    """
    found = changes(injection, key)
    if "weight" not in found or found["weight"].ndim != 2:
        names = ", ".join(f"{name} {tuple(value.shape)}" for name, value in found.items()) or "nothing"
        raise NoView(f"{injection.config.type!r} changes {names} at {key}, which is no matrix: it has no spectrum.")
    return found["weight"]


def norms(injection: Injection) -> dict[str, Norm]:
    """Return ||Δθ||_F and ||Δθ||_F / ||θ||_F at each site.

    Raises:
        NoView: the method does not change weights.
    """
    _refuse_whole_model(injection)
    result = {}
    for key in injection.adapters:
        found, own = changes(injection, key), weights.own_tensors(injection.host(key))
        size = sum(float(value.square().sum()) for value in found.values()) ** 0.5
        base = sum(float(own[name].square().sum()) for name in found) ** 0.5
        result[key] = Norm(size, size / base if base else float("inf") if size else 0.0)
    return result


def spectra(injection: Injection) -> dict[str, torch.Tensor]:
    """Return the singular values of ΔW at each site that has one; see `spectrum`.

    Raises:
        NoView: no site has a ΔW.
    """
    _refuse_whole_model(injection)
    found, reason = {}, None
    for key in injection.adapters:
        try:
            found[key] = spectrum(weight_change(injection, key))
        except NoView as error:
            reason = error
    if not found:
        raise reason or NoView("There is no adapter to look at.")
    return found


def spectrum(matrix: torch.Tensor) -> torch.Tensor:
    """Return the singular values σ_1 >= σ_2 >= ... of a matrix (d_out, d_in), (min(d_out, d_in),), to 1e-7 σ_1.

    Raises:
        NoView: it is no matrix, or holds inf or nan.
    """
    _check_matrix(matrix)
    # Square roots of the eigenvalues of the smaller Gram matrix: in fp64 as exact as an SVD in fp32, and twice as fast.
    wide = matrix.detach().double()
    wide = wide if wide.shape[0] <= wide.shape[1] else wide.T
    squares: torch.Tensor = torch.linalg.eigvalsh(wide @ wide.T)
    return squares.clamp(min=0).sqrt().flip(0).float()


def stable_rank(values: torch.Tensor) -> float:
    """Return ||ΔW||_F² / ||ΔW||_2² = Σ σ_i² / σ_1²; 0 for a zero matrix.

    Args:
        values: singular values, as returned by `spectrum`; anything but a vector is refused.

    Source: Rudelson and Vershynin 2007, "Sampling from large matrices", section 1 (their numerical rank).
    """
    squares = _singular_values(values).square()
    return float(squares.sum() / squares.max()) if squares.any() else 0.0


def effective_rank(values: torch.Tensor) -> float:
    """Return exp(-Σ p_i ln p_i) with p_i = σ_i / Σ σ; 0 for a zero matrix.

    Args:
        values: singular values, as returned by `spectrum`; anything but a vector is refused.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", definition 1.
    """
    values = _singular_values(values)
    return float(torch.special.entr(values / values.sum()).sum().exp()) if values.any() else 0.0


def overlap(
    a: torch.Tensor, b: torch.Tensor, rank: int | None = None, side: Literal["in", "out"] = "in"
) -> torch.Tensor:
    """Return how far the strongest directions of two changes of one weight span the same subspace.

    φ(i, j) = ||U_a[:i] U_b[:j]ᵀ||_F² / min(i, j) with U the singular vectors as rows: 1 where one subspace contains the
    other, 0 where they are orthogonal; about max(i, j) / d for two random subspaces of width d.

    Args:
        a: ΔW (d_out, d_in).
        b: another of the same shape.
        rank: number of directions r of each; default: as many as both have.
        side: compare directions that are read ("in", right singular vectors) or written ("out", left ones).

    Returns:
        φ(i, j) for i, j = 1..r, (r, r); the last entry compares the whole subspaces.

    Raises:
        NoView: one is no finite matrix, is zero, or has fewer than `rank` directions; or the shapes differ.

    Source: Hu et al. 2021, arXiv:2106.09685, equation 4 (their U_A^i of the r × d matrix A / our directions of ΔW).
    """
    if a.shape != b.shape:
        raise NoView(f"Changes of shape {tuple(a.shape)} and {tuple(b.shape)} act on different weights.")
    first, second = _directions(a, side), _directions(b, side)
    most = min(len(first), len(second))
    rank = rank or most
    if not 0 < rank <= most:
        raise NoView(f"{rank or 'No'} directions to compare: the two changes have {len(first)} and {len(second)}.")
    squares = (first[:rank] @ second[:rank].T).square().cumsum(0).cumsum(1)
    count = torch.arange(1, rank + 1, device=squares.device)
    return squares / torch.minimum(count[:, None], count)


def layer_of(injection: Injection, key: str) -> int | None:
    """Return the decoder layer of a site, None for one outside all layers."""
    path = f"{injection.sites[key].path}." if key in injection.sites else ""
    return next((i for i, layer in enumerate(injection.anatomy.layers) if path.startswith(f"{layer}.")), None)


def by_layer(injection: Injection) -> Iterator[tuple[int, list[str]]]:
    """Yield each decoder layer that has adapters with the keys of its sites, in order."""
    found: dict[int, list[str]] = {}
    for key in injection.sites:
        if (layer := layer_of(injection, key)) is not None:
            found.setdefault(layer, []).append(key)
    yield from sorted(found.items())


def _check_matrix(matrix: torch.Tensor) -> None:
    if matrix.ndim != 2 or not bool(matrix.isfinite().all()):
        raise NoView(f"A tensor {tuple(matrix.shape)}, or one with inf or nan, has no spectrum: give a finite matrix.")


def _singular_values(values: torch.Tensor) -> torch.Tensor:
    if values.ndim != 1:
        raise NoView(f"A rank is taken of singular values, not of a tensor {tuple(values.shape)}: give its `spectrum`.")
    return values.double()


def _refuse_whole_model(injection: Injection) -> None:
    if not injection.sites:
        raise NoView(f"{injection.config.type!r} acts on the whole model: it sits at no site and has no ΔW.")


def _directions(matrix: torch.Tensor, side: Literal["in", "out"]) -> torch.Tensor:
    left: torch.Tensor
    right: torch.Tensor
    _check_matrix(matrix)
    left, values, right = torch.linalg.svd(matrix.detach().float(), full_matrices=False)
    # The tolerance of numpy.linalg.matrix_rank: smaller values are rounding.
    least = values.max() * max(matrix.shape) * torch.finfo(values.dtype).eps
    count = int((values > least).sum())
    return right[:count] if side == "in" else left.T[:count]
