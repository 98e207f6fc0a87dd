"""Sparse adapters: a mask, chosen once, keeps part of an adapter's weights at zero.

    W' = M ∘ W,   M in {0, 1},   exactly round((1 - s) N) ones

with s the sparsity, the share that is *removed* (in the released code `sparsity` is the share kept). What is kept has
the highest score; equal scores go by position, so that the number is exact:

    random     a random number
    magnitude  |w|
    snip       |w ∂L/∂w|, what removing w would change the loss L by, to first order
    grasp      w (H g) with g = ∂L/∂w, H its Jacobian: keeps what the norm of the gradient rests on
    synflow    |w ∂R/∂w| with R the sum of what the adapter makes of ones, every weight taken as |w|; needs no data

L is the loss of one training batch; H g is a difference of two gradients, (g(w + ε g) - g(w)) / ε. An adapter whose
exit starts at zero has SNIP scores of zero throughout: choose `warmup`, so many steps trained densely before the mask
is chosen, or another score. Removed weights act as zero whatever momentum and weight decay do to the numbers behind
them. Wider and sparser at the same count ("Large-Sparse") is a matter of two fields; see the preset `large-sparse`.

Source: He et al. 2022, arXiv:2210.04284, section 3; SNIP: Lee et al. 2019, arXiv:1810.02340, equation 6; GraSP: Wang et
al. 2020, arXiv:2002.07376, equation 8; SynFlow: Tanaka et al. 2020, arXiv:2006.05467, equation 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from llm_adapters_lab.core.modifiers.base import Adapted, Modified, Modifier
from llm_adapters_lab.core.modifiers.configs import SparseConfig
from llm_adapters_lab.errors import TrainingFailed

STEP = 1e-3
"""Length of the step ε g that GraSP takes, relative to the norm of the weights."""


class Mask(Modifier):
    """Multiplies a matrix by a mask.

    Attributes:
        kept: the mask; all ones until it has been chosen.
        chosen: one once it has.
        dropped: how many weights it removes, known from the start.
    """

    kept: torch.Tensor
    chosen: torch.Tensor

    def __init__(self, shape: torch.Size, config: SparseConfig) -> None:
        """Make a mask of ones."""
        super().__init__()
        self.plan, self.dropped = config, 0
        self.register_buffer("kept", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("chosen", torch.zeros((), dtype=torch.bool))

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """Return M ∘ W."""
        return w * self.kept

    @classmethod
    def due(cls, group: Sequence[Modified], step: int) -> bool:
        """Return whether the masks are to be chosen now."""
        first = group[0].modifier
        assert isinstance(first, Mask)
        return not bool(first.chosen) and step >= first.plan.warmup

    @classmethod
    def before_step(cls, group: Sequence[Modified], owner: Adapted, gradients: Callable[[], object]) -> None:
        """Choose the masks.

        Raises:
            TrainingFailed: the scores give nothing to choose by.
        """
        weights, made = [w for _, w, _ in group], [mask for _, _, mask in group if isinstance(mask, Mask)]
        kind = made[0].plan.score
        before = [p.grad for p in owner.parameters()]
        if kind in ("snip", "grasp"):
            slopes = _slopes(owner, weights, gradients)
            scores = [(w * g).abs() for w, g in zip(weights, slopes, strict=True)]
            if kind == "grasp":
                scores = _grasp(owner, weights, slopes, gradients)
        elif kind == "synflow":
            scores = _synflow(owner, weights)
        else:
            scores = [
                w.detach().abs() if kind == "magnitude" else torch.rand(w.shape, device=w.device) for w in weights
            ]
        for p, grad in zip(owner.parameters(), before, strict=True):
            p.grad = grad
        _refuse(scores, made, kind)
        _choose(made, scores)


def masks(matrices: list[torch.Tensor], config: SparseConfig) -> list[Modifier]:
    """Return a mask for each matrix; a random one is chosen at once."""
    made = [Mask(w.shape, config) for w in matrices]
    for mask, group in zip(made, _shares([w.numel() for w in matrices], config), strict=True):
        mask.dropped = group
    if config.score == "random" and not config.warmup:
        _choose(made, [torch.rand(w.shape) for w in matrices])
    return list(made)


def _shares(sizes: Sequence[int], config: SparseConfig) -> list[int]:
    """Return how many weights are removed from each matrix; for a global choice only the sum counts."""
    if config.scope == "tensor":
        return [size - round((1 - config.sparsity) * size) for size in sizes]
    total = sum(sizes)
    removed = total - round((1 - config.sparsity) * total)
    return [removed if i == 0 else 0 for i in range(len(sizes))]


@torch.no_grad()
def _choose(made: list[Mask], scores: list[torch.Tensor]) -> None:
    config = made[0].plan
    groups = [[i] for i in range(len(made))] if config.scope == "tensor" else [list(range(len(made)))]
    for group in groups:
        flat = torch.cat([scores[i].flatten() for i in group])
        kept = torch.ones_like(flat, dtype=torch.bool)
        kept[flat.argsort(stable=True)[: sum(made[i].dropped for i in group)]] = False
        sizes = [scores[i].numel() for i in group]
        for i, part in zip(group, torch.split(kept, sizes), strict=True):
            made[i].kept.copy_(part.view_as(made[i].kept))
            made[i].chosen.fill_(True)


def _refuse(scores: list[torch.Tensor], made: list[Mask], kind: str) -> None:
    cure = "Set adapter.sparse.warmup to some steps, or choose score: random."
    config = made[0].plan
    groups = [[s] for s in scores] if config.scope == "tensor" else [scores]
    if any(not bool(s.isfinite().all()) for s in scores):
        raise TrainingFailed(f"Some {kind} scores are not finite. Lower train.learning_rate. {cure}")
    for group in groups:
        if not any(bool(s.any()) for s in group):
            raise TrainingFailed(
                f"Every {kind} score of {'a matrix' if config.scope == 'tensor' else 'the adapter'} is zero, as they "
                f"are while its exit is zero, so there is nothing to choose by. {cure}"
            )


def _slopes(owner: Adapted, weights: Sequence[torch.Tensor], gradients: Callable[[], object]) -> list[torch.Tensor]:
    for p in owner.parameters():
        p.grad = None
    gradients()
    return [torch.zeros_like(w) if w.grad is None else w.grad.detach().clone() for w in weights]


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
    start = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w, g in zip(weights, slopes, strict=True):
            w.add_(g, alpha=step)
    try:
        there = _slopes(owner, weights, gradients)
    finally:
        with torch.no_grad():
            for w, old in zip(weights, start, strict=True):
                w.copy_(old)
    return [w.detach() * (b - a) / step for w, a, b in zip(weights, slopes, there, strict=True)]


def _synflow(owner: Adapted, weights: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    start = [p.detach().clone() for p in owner.parameters()]
    sites = [(owner.sites[key], adapter) for key, adapter in owner.adapters.items() if key in owner.sites]
    try:
        with torch.no_grad():
            for p in owner.parameters():
                p.abs_()
        device = weights[0].device
        with torch.enable_grad():
            flow = torch.zeros((), device=device)
            for site, adapter in sites:
                x, y = (torch.ones(1, 1, width, device=device) for width in (site.d_in, site.d_out))
                flow = flow + adapter(x, y).sum()
            flows = torch.autograd.grad(flow, list(weights), allow_unused=True) if sites else [None] * len(weights)
        pairs = zip(weights, flows, strict=True)
        return [torch.zeros_like(w) if g is None else (w.detach() * g).abs() for w, g in pairs]
    finally:
        with torch.no_grad():
            for p, old in zip(owner.parameters(), start, strict=True):
                p.copy_(old)
