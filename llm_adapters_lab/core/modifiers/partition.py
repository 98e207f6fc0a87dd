"""Split adapters: in training, every forward pass uses one of N disjoint parts of a matrix.

    training: W' = N (M_i ∘ W), i drawn for each matrix and forward pass;   evaluation: W' = W
    L = (CE(p_1) + CE(p_2)) / 2 + κ (KL(p_1‖p_2) + KL(p_2‖p_1)) / 2

with M_1 + … + M_N all ones, random, with sizes that differ by at most one, and p_1, p_2 the predictions of two forward
passes on one batch. The trained adapter is an ordinary one, with as many parameters and as fast. Parts are scaled as in
dropout, by N, so that their mean is W. (The released code does not scale the parts and divides their sum by N at the
end.) Weight decay acts on all of W in every step. N = 1 is the plain adapter.

Source: Zhang et al. 2023, arXiv:2312.02923, section 3 (their MoSA; `of: last` is their hierarchical variant).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from llm_adapters_lab.core.modifiers.base import Modified, Modifier, Predictions
from llm_adapters_lab.core.modifiers.configs import SplitConfig


class Parts(Modifier):
    """Uses one random part of a matrix in every training pass.

    Attributes:
        part: index of the part that each element belongs to, in the shape of the matrix.
    """

    part: torch.Tensor

    def __init__(self, shape: torch.Size, config: SplitConfig) -> None:
        """Assign the elements to parts at random."""
        super().__init__()
        self.count, self.kl = config.parts, config.kl
        self.forwards = 2 if self.count > 1 else 1  # one part is the plain adapter
        part = torch.randperm(shape.numel()).remainder(self.count).to(torch.uint8)
        self.register_buffer("part", part.view(shape))

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """Return N (M_i ∘ W) in training, W in evaluation."""
        if not self.training or self.count == 1:
            return w
        chosen = torch.randint(self.count, (), device=w.device)
        return w * (self.part == chosen) * self.count

    @classmethod
    def loss(cls, group: Sequence[Modified], predictions: Sequence[Predictions]) -> torch.Tensor:
        """Return the mean cross-entropy of two forward passes plus κ times their divergence."""
        own = group[0].modifier
        assert isinstance(own, Parts)
        (first, labels), (second, _) = predictions
        losses = [cross_entropy(logits, labels, reduction="sum") for logits in (first, second)]
        return sum(losses) / 2 + own.kl * divergence(first, second)


def parts(matrices: list[torch.Tensor], config: SplitConfig) -> list[Modifier]:
    """Return a modifier for each matrix."""
    return [Parts(w.shape, config) for w in matrices]


def divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return (KL(p‖q) + KL(q‖p)) / 2, summed over rows, in nats.

    Args:
        first: logits of p, (rows, vocabulary).
        second: logits of q, of the same shape.
    """
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum() / 2
