"""Dense: an update of full rank for chosen projections, beside their frozen weights.

    y = W x + D x

with x: (..., d_in), D: (d_out, d_in). D starts at zero, so training starts at the base; W' = W + D merges exactly. It
holds what the heads of `train.regime` merge where their sum has no low rank; trained by itself, it is full fine-tuning
of the weights of these projections.

Parameters: d_in d_out for each site.

Source: the main weights of LTE, Huh et al. 2024, arXiv:2402.16828.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import linear

from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class DenseConfig(AdapterConfig):
    """Config of Dense."""

    full_rank = True

    type: Literal["dense"] = Field(default="dense", description="name of the adapter")


@register_adapter("dense", config=DenseConfig, at="attn+mlp", source="arXiv:2402.16828", colour="#7A6A00")
class Dense(Adapter):
    """Update of full rank of one projection."""

    experts = True
    family = "Full"

    def __init__(self, config: DenseConfig, site: Site, base: nn.Module) -> None:
        """Create D (d_out, d_in)."""
        super().__init__(config, site, base)
        self.D = nn.Parameter(torch.zeros(site.d_out, site.d_in))

    @staticmethod
    def per_site(config: DenseConfig, site: Site) -> int:
        """Return d_in d_out."""
        return site.d_in * site.d_out

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + D x."""
        return y + linear(x, self.D)

    def merged(self, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return W + D."""
        return {"weight": own["weight"] + self.D}
