"""BitFit: trains only biases.

    y = W x + b + c

with the change c: (d_out,) of the bias b, which starts at zero, so training starts at the base. Projections without a
bias get one, but cannot be merged. Biases of norms are not trained: within a layer, the bias of the following
projection can have the same effect.

Parameters: d_out for each site.

Source: Ben Zaken et al. 2022, arXiv:2106.10199, section 3.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class BitFitConfig(AdapterConfig):
    """Config of BitFit."""

    type: Literal["bitfit"] = Field(default="bitfit", description="name of the adapter")


@register_adapter("bitfit", config=BitFitConfig, at="attn+mlp", source="arXiv:2106.10199", colour="#1070E8")
class BitFit(Adapter):
    """Change of one projection's bias."""

    family = "Selective"

    def __init__(self, config: BitFitConfig, site: Site, base: nn.Module) -> None:
        """Create c (d_out,)."""
        super().__init__(config, site, base)
        self.bias = nn.Parameter(torch.zeros(site.d_out))

    @staticmethod
    def per_site(config: BitFitConfig, site: Site) -> int:
        """Return d_out."""
        return site.d_out

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + c."""
        return y + self.bias

    def merged(self, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return b + c."""
        return {"bias": own.get("bias", 0) + self.bias}
