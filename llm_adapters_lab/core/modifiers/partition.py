"""Split adapters: every training forward uses one of N disjoint parts of a matrix, every other forward all of it.

    training: W' = N (M_i ∘ W), i drawn anew for each matrix and forward;   else: W' = W
    L = (CE(p_1) + CE(p_2)) / 2 + κ (KL(p_1‖p_2) + KL(p_2‖p_1)) / 2

with M_1 + … + M_N all ones, random and equal in size to within one, and p_1, p_2 the predictions of two forwards on
one batch. After training there is one ordinary adapter, with its parameters and its speed. The rule for the scale is
that of dropout: a part counts N times, so that the mean over the parts is W. (The released code leaves parts as they
are and divides the sum by N at the end.) Weight decay acts on all of W in every step. With N = 1 it is the plain
adapter.

Source: Zhang et al. 2023, arXiv:2312.02923, section 3 (their MoSA; `of: last` is their hierarchical variant).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from llm_adapters_lab.core.modifiers.base import Modified, Modifier, Predictions
from llm_adapters_lab.core.modifiers.configs import SplitConfig


class Parts(Modifier):
    """Uses one part of a matrix at a time, in training.

    Attributes:
        part: number of the part that each element belongs to, of the matrix's shape.
    """

    part: torch.Tensor

    def __init__(self, shape: torch.Size, plan: SplitConfig) -> None:
        """Draw which number belongs to which part."""
        super().__init__()
        self.plan, self.count = plan, (count := plan.parts)
        self.forwards = 2 if count > 1 else 1  # one part is the plain adapter
        part = torch.randperm(shape.numel()).remainder(count).to(torch.uint8)
        self.register_buffer("part", part.view(shape))

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """Return N (M_i ∘ W) in training, else W."""
        if not self.training or self.count == 1:
            return w
        chosen = torch.randint(self.count, (), device=w.device)
        return w * (self.part == chosen) * self.count

    @classmethod
    def loss(cls, group: Sequence[Modified], predictions: Sequence[Predictions]) -> torch.Tensor:
        """Return the mean cross-entropy of two forward passes and κ times their divergence."""
        own = group[0].modifier
        assert isinstance(own, Parts)
        (first, labels), (second, _) = predictions
        fits = [cross_entropy(logits, labels, reduction="sum") for logits in (first, second)]
        return sum(fits) / 2 + own.plan.kl * divergence(first, second)


def parts(matrices: list[torch.Tensor], config: SplitConfig) -> list[Modifier]:
    """Return the modifier of each matrix."""
    return [Parts(w.shape, config) for w in matrices]


def divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return (KL(p‖q) + KL(q‖p)) / 2, summed over rows, in nats.

    Args:
        first: logits of p, (rows, vocabulary).
        second: logits of q, of the same shape.
    """
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum() / 2
