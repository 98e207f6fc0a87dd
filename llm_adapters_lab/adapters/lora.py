"""LoRA: a low-rank update beside a frozen projection.

    y = W x + s B A x,   s = alpha / r

with x: (..., d_in), A: (r, d_in), B: (d_out, r). A is Kaiming-uniform and B zero, so training starts at the base.
The update is linear in x, hence W' = W + s B A merges exactly.

Parameters: r (d_in + d_out) for each site, one more with a learned scale.

Source: Hu et al. 2021, arXiv:2106.09685, equation 3 (their W_0, ΔW / ours W, s B A; their α / our alpha).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import dropout, linear

from llm_adapters_lab.adapter import Adapter, AdapterConfig, register
from llm_adapters_lab.anatomy import Site


class LoRAConfig(AdapterConfig):
    """Config of LoRA."""

    type: Literal["lora"] = Field(default="lora", description="name of the adapter")
    rank: int = Field(default=8, ge=1, le=4096, description="rank r of the update")
    alpha: float = Field(default=16.0, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the input of A, training only")
    init: Literal["kaiming", "normal"] = Field(
        default="kaiming", description="kaiming: B is zero, the start is the base; normal: both N(0, 0.02)"
    )
    scale: Literal["alpha", "learned"] = Field(
        default="alpha", description="alpha: the constant alpha / rank; learned: a scalar that starts there"
    )


@register("lora", config=LoRAConfig, at="q,v", source="arXiv:2106.09685")
class LoRA(Adapter):
    """Low-rank update of one projection."""

    def __init__(self, config: LoRAConfig, site: Site, base: nn.Module) -> None:
        """Make A (r, d_in) and B (d_out, r)."""
        super().__init__(config, site, base)
        self.A = nn.Parameter(torch.empty(config.rank, site.d_in))
        self.B = nn.Parameter(torch.zeros(site.d_out, config.rank))
        self.dropout = config.dropout
        self.scale: float | nn.Parameter = config.alpha / config.rank
        if config.scale == "learned":
            self.scale = nn.Parameter(torch.tensor(self.scale))
        if config.init == "normal":
            nn.init.normal_(self.A, std=0.02)
            nn.init.normal_(self.B, std=0.02)
        else:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + s B A x."""
        if self.dropout and self.training:
            x = dropout(x, self.dropout)
        return y + linear(linear(x, self.A), self.B) * self.scale

    def merged_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return W + s B A."""
        return weight + self.scale * (self.B @ self.A)
