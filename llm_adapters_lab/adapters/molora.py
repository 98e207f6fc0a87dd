"""MoLoRA: a mixture of low-rank updates, weighted token by token by a router.

    y += (α / r) Σ_k w_k B_k A_k x,   w = softmax(R x)

with K members, x: (..., d_in), A: (K, r, d_in), B: (K, d_out, r), R: (K, d_in), w: (..., K). With `top: n`, only the
n largest w of a token are kept and divided by their sum. B is zero at first, so training starts at the base. The update
is not linear in x, so it cannot be merged. Training adds a penalty to the loss for every site,

    c (K Σ_k f_k P_k - 1),

over all tokens but padding: P is the mean of softmax(R x), and f_k the share of the choices that fall on member k. A
token chooses its n largest w, or only the largest if all are kept.

Parameters: K (r (d_in + d_out) + d_in) for each site.

Source: Zadouri et al. 2023, arXiv:2309.05444, section 2 (their E_i, s_i / our B_i A_i, w_i); penalty: Fedus et al.
2021, arXiv:2101.03961, equations 4 to 6, less the c that it has if all members are used alike.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn.functional import linear

from llm_adapters_lab.adapters.shared.token_routing import Balanced, routed
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import BadSpec


class MoLoRAConfig(AdapterConfig):
    """Config of MoLoRA."""

    type: Literal["molora"] = Field(default="molora", description="name of the adapter")
    rank: int = Field(default=4, ge=1, le=4096, description="rank r of each member")
    alpha: float = Field(default=16.0, gt=0, description="numerator of the scale α / r")
    members: int = Field(default=4, ge=1, le=1024, description="number of members K")
    top: int = Field(default=0, ge=0, le=1024, description="members that a token uses; 0: all")
    balance: float = Field(default=0.01, ge=0, description="weight c of the penalty on an unequal use of the members")
    router_rate: float = Field(default=0.1, gt=0, le=1e4, description="learning rate of R, as a multiple")

    @model_validator(mode="after")
    def _chooses(self) -> MoLoRAConfig:
        if self.top and not 2 <= self.top <= self.members:
            raise BadSpec(
                f"adapter.top = {self.top} must be 0 (all) or from 2 to adapter.members = {self.members}. A single "
                "member always has the weight 1, from which the router would learn nothing."
            )
        return self


@register_adapter("molora", config=MoLoRAConfig, at="q,v", source="arXiv:2309.05444", colour="#C44E52")
class MoLoRA(Balanced):
    """Mixture of low-rank updates of one projection."""

    family = "Low-rank"
    example = {"rank": 2, "members": 3}

    def __init__(self, config: MoLoRAConfig, site: Site, base: nn.Module) -> None:
        """Create A (K, r, d_in), whose spread is that of LoRA, B (K, d_out, r) and R (K, d_in)."""
        super().__init__(config, site, base)
        k, r, self.top = config.members, config.rank, config.top
        self.scale, self.faster = config.alpha / r, config.router_rate
        self.A = nn.Parameter(torch.empty(k, r, site.d_in).uniform_(-1, 1) / math.sqrt(site.d_in))
        self.B = nn.Parameter(torch.zeros(k, site.d_out, r))
        self.R = nn.Parameter(0.02 * torch.randn(k, site.d_in))

    @staticmethod
    def per_site(config: MoLoRAConfig, site: Site) -> int:
        """Return K (r (d_in + d_out) + d_in)."""
        return config.members * (config.rank * (site.d_in + site.d_out) + site.d_in)

    def rates(self) -> dict[str, float]:
        """Return the factor of the router."""
        return {"R": self.faster}

    def token_weights(self, x: torch.Tensor) -> torch.Tensor:
        """Return w, (..., K), for x (..., d_in): at least 0, and 1 in sum for each token."""
        return routed(x, self.R, self.top)[0]

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + (α / r) Σ_k w_k B_k A_k x."""
        w, p, chosen = routed(x, self.R, self.top)
        self.note(p, chosen)
        hidden = linear(x, self.A.flatten(0, 1)).view(*w.shape, -1) * w[..., None]
        return y + self.scale * linear(hidden.flatten(-2), self.B.movedim(0, 1).flatten(1))
