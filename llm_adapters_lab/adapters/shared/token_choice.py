"""Adapters that run an MLP for a share of the tokens: those with a score above a threshold, or the largest of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed, nn

from llm_adapters_lab.core.adapter import Adapter, Place, World
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.core.skipping import readers_of
from llm_adapters_lab.errors import CannotInject

RATE = 0.1
"""By how much the threshold moves towards the quantile of a pass in training, after the first passes."""

SAME = 1e-4
"""Scores that differ by no more are taken for equal."""


def quantile(scores: torch.Tensor, counts: torch.Tensor | None, share: float) -> torch.Tensor | None:
    """Return the number that a share of all scores lies above; None without scores.

    It is halfway to the next score, so that equal tokens, whose scores differ by rounding, are all on one side.

    Args:
        scores: (...).
        counts: how often each counts, as in `CallContext.counts`, whose last columns belong to the scores. It is
            ignored if it does not fit, as with virtual tokens, which the call does not know.
        share: from 0 to 1.
    """
    flat, often = scores.flatten(), weights_of(scores, counts)
    values, order = flat[often > 0].sort()
    if not len(values):
        return None
    below = often[often > 0][order].cumsum(0)
    found = values[int((below < (1 - share) * below[-1]).sum())]
    above = values[values > found + SAME]
    return (found + above[0]) / 2 if len(above) else found


def weights_of(scores: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """Return how often each of the scores (...) counts, laid end to end; see `quantile`."""
    if counts is not None and counts.ndim == 2:
        counts = counts[:, -(scores.numel() // len(counts)) :]
    fits = counts is not None and counts.numel() == scores.numel()
    return counts.flatten().to(scores) if counts is not None and fits else scores.new_ones(scores.numel())


def soft_topk(scores: torch.Tensor, k: torch.Tensor, steps: int = 20) -> torch.Tensor:
    """Return weights λ in [0, 1] whose sum over the last axis approaches k, large where the scores are.

    λ maximises <s, λ> + ε H(λ) under these two conditions, found by coordinate descent in the dual while ε falls from 4
    to 0.03, as in CoDA (Lei et al. 2023, arXiv:2304.04947) and, with a fixed ε, in CoLT5 (arXiv:2303.09752).

    Args:
        scores: (..., T); -inf for what cannot be chosen.
        k: (..., 1).
        steps: of the descent.
    """
    b, a, smooth = torch.zeros_like(scores), torch.zeros_like(scores[..., :1]), 4.0
    for step in range(steps):
        smooth = max(4.0 * 0.7**step, 0.03)
        a = smooth * (k.log() - torch.logsumexp((scores + b) / smooth, -1, keepdim=True))
        b = -torch.relu(scores + a)
    return ((scores + b + a) / smooth).exp()


def is_causal(model: nn.Module) -> bool:
    """Return whether the attention of a model sees earlier tokens only, or may do so."""
    found = [own for module in model.modules() if isinstance(own := getattr(module, "is_causal", None), bool)]
    return not found or any(found)


class TokenChoice(Adapter):
    """An adapter that runs an MLP for the tokens whose score is above a threshold, or among the k largest of a row.

    The threshold is the running quantile of the scores of all tokens but padding in training, and stays as it is
    afterwards: whether a token runs depends on its own x alone.

    Attributes:
        share: of the tokens that run; 1 runs all, without scores.
        topk: whether they are chosen among all tokens of a row.
        tau: the threshold, a buffer; `passes` is the number of passes that it was taken from.
        run, seen: number of tokens that ran, and of all, since the adapter was made; padding does not count.
    """

    needs_context = True
    sliceable = False
    tau: torch.Tensor
    passes: torch.Tensor

    def __init__(self, config: Any, site: Site, base: nn.Module) -> None:
        """Start with the threshold for scores that are normally distributed with a variance of 1."""
        super().__init__(config, site, base)
        self.share, self.temperature = float(config.share), float(config.temperature)
        self.run, self.seen = 0, 0
        self.topk = self.looks_back = config.route == "topk" and self.share < 1  # type: ignore[misc]
        if self.share == 1:
            self.token_gate = None  # type: ignore[assignment, method-assign]
        elif not self.topk:
            self.register_buffer("tau", torch.special.ndtri(torch.tensor(1 - self.share)))
            self.register_buffer("passes", torch.tensor(0))

    @classmethod
    def sites_of(cls, config: Any, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """Return the sites.

        Raises:
            CannotInject: tokens are to be chosen among those of a whole row, and the model is a decoder.
        """
        if config.route == "topk" and is_causal(model):
            raise CannotInject(
                "adapter.route = 'topk' chooses among all tokens of a row, so that a token's output would depend on "
                f"later ones, and {type(model).__name__} is a decoder. Set adapter.route to 'threshold'."
            )
        return super().sites_of(config, anatomy, model)

    @classmethod
    def build(cls, config: Any, places: Mapping[str, Place], world: World) -> dict[str, Adapter]:
        """Return the adapters, which know the projections that read the input of their MLP.

        Raises:
            CannotInject: a site is not a whole MLP.
        """
        readers = {key: readers_of(config.type, place.site, world.anatomy) for key, place in places.items()}
        adapters = super().build(config, places, world)
        for key, adapter in adapters.items():
            adapter.readers = readers[key]
        return adapters

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores (...) of tokens x (..., d_in)."""
        raise NotImplementedError(f"{type(self).__name__} has no scores")

    def tokens_run(self, x: torch.Tensor) -> torch.Tensor:
        """Return which of the tokens x (..., d_in) run, (...)."""
        if self.share == 1:
            return torch.ones(x.shape[:-1], dtype=torch.bool)
        return self.among_row(self.scores(x))[1] if self.topk else self.scores(x) > self.tau

    def among_row(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return λ of the tokens with scores (B, T), and which of them are among the k largest of their row.

        k is the share of the tokens of a row without padding, rounded up.

        Raises:
            CannotInject: the call has a part of its rows only, or does not tell them apart.
        """
        cache = self.context.cache  # with the tokens of this call, as attention comes first
        if scores.ndim != 2 or (cache is not None and cache.get_seq_length() > scores.shape[1]):
            raise CannotInject("adapter.route = 'topk' needs whole rows (B, T) in one call, without a cache.")
        if (mask := self.context.mask) is not None:
            scores = scores.masked_fill(mask == 0, -torch.inf)
        count = torch.isfinite(scores).sum(-1, keepdim=True)
        k = (self.share * count).ceil()
        place = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return soft_topk(scores, k.to(scores)), place < k

    def tokens_counted(self) -> tuple[int, int]:
        """Return how many tokens have run, and how many there were."""
        return self.run, self.seen

    @torch.no_grad()
    def follow(self, scores: torch.Tensor) -> None:
        """Move the threshold towards the quantile of the scores (...) of a pass in training.

        Raises:
            CannotInject: there are other processes, whose scores it does not see.
        """
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise CannotInject(
                "An adapter here runs the tokens above a quantile of all scores, which several processes cannot take "
                "together. Train in one process, or set adapter.share to 1."
            )
        if (found := quantile(scores, self.context.counts, self.share)) is not None:
            self.passes += 1
            self.tau.lerp_(found, max(RATE, 1 / int(self.passes)))

    def token_gate(self, x: torch.Tensor) -> torch.Tensor:
        """Return λ = σ((s - τ) / T) of the tokens x (..., d_in) that run, and 0 for others, (...).

        In training, the threshold follows the scores first; it is not moved again when activations are recomputed. With
        `route: topk`, λ is that of `soft_topk`.
        """
        scores, first = self.scores(x), not self.context.recomputing
        if self.topk:
            gate, run = self.among_row(scores)
            if first:
                self.count(run)
            return gate * run
        if self.training and first:
            self.follow(scores)
        run = scores > self.tau
        if first:
            self.count(run)
        return torch.sigmoid((scores - self.tau) / self.temperature) * run

    @torch.no_grad()
    def count(self, run: torch.Tensor) -> None:
        """Count the tokens of a pass, which run where `run` (...) is true."""
        often = weights_of(run.float(), self.context.counts)
        self.run, self.seen = self.run + int((often * run.flatten()).sum()), self.seen + int(often.sum())
