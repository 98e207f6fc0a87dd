"""Fusion: learned weights for what several trained adapters change, token by token.

    y' = y + V Σ_i w_i z_i,   z_i = a_i(x, y) - y

with members a_i, x: (..., d_in), y and z_i: (..., d_out), and weights w: (..., N) that are positive and sum to 1:

    mean       w_i = 1 / N                        V = I; nothing is trained, unless the members are
    vector     w = softmax(c)                     V = I; c: (N)
    token      w = softmax(R x + b)               V = I; R: (N, d_in), zero at the start, as is b: (N)
    attention  w_i = softmax_i(<Q x, K z_i>)      V = I + D; Q: (d_out, d_in), K, D: (d_out, d_out), D zero at the start

Saved members are frozen, and the training starts at their mean. With `freeze: false` they learn too.

Parameters: for each site 0, N, N (d_in + 1) or d_out (d_in + 2 d_out); plus those of members that are not frozen.

Source: attention: Pfeiffer et al. 2021, arXiv:2005.00247, section 3.2; weights from members in parallel: Ngai et al.
2023, arXiv:2310.13015. The names mean, vector and token are the lab's.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn.functional import linear

from llm_adapters_lab.adapters.shared.members import Members, MembersConfig
from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import BadSpec


class FusionConfig(MembersConfig):
    """Config of fusion."""

    type: Literal["fusion"] = Field(default="fusion", description="name of the adapter")
    how: Literal["mean", "vector", "token", "attention"] = Field(
        default="token", description="weights of the members: equal, one vector, from each token, or by attention"
    )

    @model_validator(mode="after")
    def _learns(self) -> FusionConfig:
        if self.how == "mean" and self.freeze:
            raise BadSpec(
                "how: mean has nothing to learn while the members are frozen. Choose another, or freeze: false."
            )
        return self


@register_adapter("fusion", config=FusionConfig, at="", source="arXiv:2310.13015", colour="#B03A6B")
class Fusion(Members):
    """Weighted sum of what the members change at one site."""

    family = "Several together"
    example = {
        "how": "token",
        "freeze": False,
        "of": [{"type": "lora", "rank": 4}, {"type": "krona", "factor": 8, "at": "q,v"}],
    }

    def __init__(self, config: FusionConfig, site: Site, base: nn.Module, members: list[Adapter]) -> None:
        """Create c (N), R (N, d_in) and b (N), or Q (d_out, d_in), K and D (d_out, d_out)."""
        super().__init__(config, site, base, members)
        self.how, count, d_in, d_out = config.how, len(members), site.d_in, site.d_out
        if self.how == "vector":
            self.c = nn.Parameter(torch.zeros(count))
        elif self.how == "token":
            self.R, self.b = nn.Parameter(torch.zeros(count, d_in)), nn.Parameter(torch.zeros(count))
        elif self.how == "attention":
            self.Q, self.K = (nn.Parameter(0.02 * torch.randn(d_out, width)) for width in (d_in, d_out))
            self.D = nn.Parameter(torch.zeros(d_out, d_out))  # decay pulls V towards the identity

    @staticmethod
    def per_site(config: FusionConfig, site: Site) -> int:
        """Return 0, N, N (d_in + 1) or d_out (d_in + 2 d_out)."""
        count, attention = len(config.of), site.d_out * (site.d_in + 2 * site.d_out)
        return {"mean": 0, "vector": count, "token": count * (site.d_in + 1), "attention": attention}[config.how]

    def weights(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Return the weights of the members, (..., N), for x (..., d_in) and z (..., N, d_out)."""
        if self.how == "token":
            return linear(x, self.R, self.b).softmax(-1)
        if self.how == "attention":
            return (linear(z, self.K) * linear(x, self.Q)[..., None, :]).sum(-1).softmax(-1)
        return (self.c if self.how == "vector" else x.new_zeros(z.shape[-2])).softmax(-1).expand(z.shape[:-1])

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + V Σ w_i z_i."""
        z = self.changes(x, y)
        change = (self.weights(x, z)[..., None] * z).sum(-2)
        return y + (change + linear(change, self.D) if self.how == "attention" else change)
