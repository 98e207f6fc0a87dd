"""Routers of mixtures: how much of each member a token gets, and a penalty on using the members unequally."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.sites import Site


def routed(x: torch.Tensor, router: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the weights w of the members, p = softmax(R x), and 1 where a token chooses a member, (..., K) each.

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


class Balanced(Adapter):
    """An adapter whose router training keeps from using its members unequally.

    Attributes:
        balance: weight of the penalty, from the config.
        unequal: `imbalance` of the last pass in training, until it has been asked for.
    """

    needs_context = True
    sliceable = False

    def __init__(self, config: Any, site: Site, base: nn.Module) -> None:
        """Keep the weight of the penalty."""
        super().__init__(config, site, base)
        self.balance = float(config.balance)
        self.unequal: torch.Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Of the result of a pass, which has a gradient, there can be no copy.
        return {**self.__dict__, "unequal": None}

    def note(self, p: torch.Tensor, chosen: torch.Tensor) -> None:
        """Keep what the penalty of a pass in training needs, from the results of `routed`."""
        if self.training:
            # When activations are recomputed too, which must do the same as the pass itself, but is no pass.
            found = imbalance(p, chosen, self.context.counts)
            self.unequal = self.unequal if self.context.recomputing else found

    def penalty(self) -> torch.Tensor:
        """Return the penalty of the last pass in training, once: a scalar, in nats per label."""
        found, self.unequal = self.unequal, None
        return next(self.parameters()).new_zeros(()) if found is None else self.balance * found
