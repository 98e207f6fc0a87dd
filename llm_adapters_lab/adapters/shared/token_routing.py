"""Routers of mixtures: how much of each member a token gets, and how unequally the members are used."""

from __future__ import annotations

import torch
from torch.nn.functional import linear


def routed(x: torch.Tensor, router: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the weights w of the members, p = softmax(R x), and where a token chooses a member, (..., K) each.

    Args:
        x: (..., d_in).
        router: R, (K, d_in).
        top: how many members a token chooses. The others have a weight of zero, and those of the chosen ones are p
            divided by its sum over them. If 0, w is p, and the choice is the likeliest member alone.
    """
    p = linear(x, router).softmax(-1)
    chosen = torch.zeros_like(p).scatter(-1, p.topk(top or 1).indices, 1.0)
    kept = p * chosen
    return kept / kept.sum(-1, keepdim=True) if top else p, p, chosen


def imbalance(p: torch.Tensor, chosen: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """Return K Σ_k f_k P_k - 1, a scalar: 0 if all members are used alike, K - 1 if only one is.

    f_k is the share of the choices that fall on a member, P_k the mean of p_k.

    Args:
        p: from `routed`, (..., K).
        chosen: from `routed`, (..., K).
        counts: how often each token counts, as in `CallContext.counts`. It is ignored if it has not as many numbers as
            there are tokens, as with virtual tokens, which the call does not know.
    """
    p, chosen = p.flatten(0, -2), chosen.flatten(0, -2)
    known = counts is not None and counts.numel() == len(p)
    share = counts.flatten().to(p) if counts is not None and known else p.new_ones(len(p))
    f, mean = share @ chosen, share @ p
    return p.shape[-1] * (f @ mean) / (f.sum() * mean.sum()) - 1
