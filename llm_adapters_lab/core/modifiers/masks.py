"""Sparse adapters: a mask, chosen once, keeps part of an adapter's weights at zero.

    W' = M ∘ W,   M in {0, 1},   exactly round((1 - s) N) ones

with the sparsity s, the fraction that is *removed* (in the released code `sparsity` is the fraction kept). The weights
with the highest scores are kept; ties are broken by position, so that the number is exact:

    random     a random number
    magnitude  |w|
    snip       |w ∂L/∂w|, the first-order change of the loss L if w is removed
    grasp      w (H g) with g = ∂L/∂w, H its Jacobian: keeps the weights that the gradient norm depends on
    synflow    |w ∂R/∂w| with R the sum of the adapter's outputs for inputs of ones and weights |w|; needs no data

L is the loss of one training batch; H g is a difference of two gradients, (g(w + ε g) - g(w)) / ε. If the output
projection of an adapter starts at zero, all SNIP scores are zero: set `warmup`, the number of dense training steps
before the mask is chosen, or use another score. Removed weights act as zero, whatever momentum and weight decay do to
the stored values. "Large-Sparse" adapters, wider and sparser with the same count, are the preset `large-sparse`.

Source: He et al. 2022, arXiv:2210.04284, section 3; SNIP: Lee et al. 2019, arXiv:1810.02340, equation 6; GraSP: Wang et
al. 2020, arXiv:2002.07376, equation 8; SynFlow: Tanaka et al. 2020, arXiv:2006.05467, equation 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from llm_adapters_lab.core.modifiers.base import Adapted, Modified, Modifier
from llm_adapters_lab.core.modifiers.configs import SparseConfig
from llm_adapters_lab.errors import TrainingFailed

STEP = 1e-3
"""Length of the GraSP step ε g, relative to the norm of the weights."""
T = TypeVar("T")


class Mask(Modifier):
    """Multiplies a matrix by a mask.

    Attributes:
        kept: the mask; all ones until it is chosen.
        chosen: 1 once the mask is chosen.
        dropped: number of weights that it removes, known in advance.
    """

    kept: torch.Tensor
    chosen: torch.Tensor

    def __init__(self, shape: torch.Size, config: SparseConfig) -> None:
        """Create a mask of ones."""
        super().__init__()
        self.config, self.dropped = config, 0
        self.register_buffer("kept", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("chosen", torch.zeros((), dtype=torch.bool))

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """Return M ∘ W."""
        return w * self.kept

    @classmethod
    def due(cls, group: Sequence[Modified], step: int) -> bool:
        """Return whether the masks must be chosen now."""
        first = group[0].modifier
        assert isinstance(first, Mask)
        return not bool(first.chosen) and step >= first.config.warmup

    @classmethod
    def before_step(cls, group: Sequence[Modified], owner: Adapted, gradients: Callable[[], object]) -> None:
        """Choose the masks.

        Raises:
            TrainingFailed: the scores are all zero, or not finite.
        """
        weights, made = [w for _, w, _ in group], [mask for _, _, mask in group if isinstance(mask, Mask)]
        kind = made[0].config.score
        before = [p.grad for p in owner.parameters()]
        if kind in ("snip", "grasp"):
            slopes = _gradients(owner, weights, gradients)
            scores = [(w * g).abs() for w, g in zip(weights, slopes, strict=True)]
            if kind == "grasp":
                scores = _grasp(owner, weights, slopes, gradients)
        elif kind == "synflow":
            scores = _synflow(owner, weights)
        elif kind == "magnitude":
            scores = [w.detach().abs() for w in weights]
        else:
            scores = [torch.rand(w.shape, device=w.device) for w in weights]
        for p, grad in zip(owner.parameters(), before, strict=True):
            p.grad = grad
        _check(scores, made[0].config)
        _choose(made, scores)


def masks(matrices: list[torch.Tensor], config: SparseConfig) -> list[Modifier]:
    """Return a mask for each matrix; random masks without `warmup` are chosen immediately."""
    made = [Mask(w.shape, config) for w in matrices]
    for group in _groups(made, config):
        size = sum(mask.kept.numel() for mask in group)
        group[0].dropped = size - round((1 - config.sparsity) * size)  # of several, only the sum matters
    if config.score == "random" and not config.warmup:
        _choose(made, [torch.rand(w.shape) for w in matrices])
    return list(made)


def _groups(items: list[T], config: SparseConfig) -> list[list[T]]:
    """Return the items of matrices that compete with each other."""
    return [[item] for item in items] if config.scope == "tensor" else [items]


@torch.no_grad()
def _choose(made: list[Mask], scores: list[torch.Tensor]) -> None:
    for group in _groups(list(zip(made, scores, strict=True)), made[0].config):
        flat = torch.cat([score.flatten() for _, score in group])
        kept = torch.ones_like(flat, dtype=torch.bool)
        kept[flat.argsort(stable=True)[: sum(mask.dropped for mask, _ in group)]] = False
        parts = torch.split(kept, [score.numel() for _, score in group])
        for (mask, _), part in zip(group, parts, strict=True):
            mask.kept.copy_(part.view_as(mask.kept))
            mask.chosen.fill_(True)


def _check(scores: list[torch.Tensor], config: SparseConfig) -> None:
    cure = "Set adapter.sparse.warmup to some steps, or choose score: random."
    if any(not bool(s.isfinite().all()) for s in scores):
        raise TrainingFailed(f"Some {config.score} scores are not finite. Lower train.learning_rate. {cure}")
    if any(not any(bool(s.any()) for s in group) for group in _groups(scores, config)):
        of = "a matrix" if config.scope == "tensor" else "the adapter"
        raise TrainingFailed(
            f"All {config.score} scores of {of} are zero, as they are while its output projection is zero, so no "
            f"weights can be chosen. {cure}"
        )


def _gradients(owner: Adapted, weights: Sequence[torch.Tensor], gradients: Callable[[], object]) -> list[torch.Tensor]:
    for p in owner.parameters():
        p.grad = None
    gradients()
    return [torch.zeros_like(w) if w.grad is None else w.grad.detach().clone() for w in weights]


@contextmanager
def _restored(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Restore the values of tensors on exit."""
    before = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for t, old in zip(tensors, before, strict=True):
                t.copy_(old)


def _grasp(
    owner: Adapted,
    weights: Sequence[torch.Tensor],
    slopes: Sequence[torch.Tensor],
    gradients: Callable[[], object],
) -> list[torch.Tensor]:
    length, size = (torch.stack([t.detach().norm() for t in some]).norm() for some in (slopes, weights))
    step = float(STEP * size / length) if length > 0 else 0.0
    if step == 0:
        return [torch.zeros_like(w) for w in weights]
    with _restored(weights):
        with torch.no_grad():
            for w, g in zip(weights, slopes, strict=True):
                w.add_(g, alpha=step)
        moved = _gradients(owner, weights, gradients)
    return [w.detach() * (b - a) / step for w, a, b in zip(weights, slopes, moved, strict=True)]


def _synflow(owner: Adapted, weights: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    sites = [(owner.sites[key], adapter) for key, adapter in owner.adapters.items() if key in owner.sites]
    device = weights[0].device
    with _restored(owner.parameters()):
        with torch.no_grad():
            for p in owner.parameters():
                p.abs_()
        with torch.enable_grad():
            flow = torch.zeros((), device=device)
            for site, adapter in sites:
                x, y = (torch.ones(1, 1, width, device=device) for width in (site.d_in, site.d_out))
                flow = flow + adapter(x, y).sum()
            flows = torch.autograd.grad(flow, list(weights), allow_unused=True) if sites else [None] * len(weights)
        pairs = zip(weights, flows, strict=True)
        return [torch.zeros_like(w) if g is None else (w.detach() * g).abs() for w, g in pairs]
