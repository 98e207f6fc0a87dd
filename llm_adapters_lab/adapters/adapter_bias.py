"""AdapterBias: one shift for all tokens, with a weight that depends on the token.

    y = W u + b + (w · u + c) v

with u: (..., d_in) the input of the MLP's output projection, w: (d_in,) and the scalar c, which give the weight of a
token, and the shift v: (d_out,). v starts at zero, so training starts at the base. The update is linear in u: W' = W +
v wᵀ and b' = b + c v merge exactly, the latter only if the projection has a bias; with `offset: false` there is no c,
and every projection can be merged. The paper also trains the norm after the MLP (inject `norm-tuning` as well) and can
share w across layers (here each layer has its own).

Parameters: d_in + d_out for each site, plus 1 with `offset`.

Source: Fu et al. 2022, arXiv:2205.00305, section 3 (their α, v / our w · u + c, v).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import linear

from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class AdapterBiasConfig(AdapterConfig):
    """Config of AdapterBias."""

    type: Literal["adapter-bias"] = Field(default="adapter-bias", description="name of the adapter")
    offset: bool = Field(default=True, description="add c to the weight; merging then needs a bias")


@register_adapter("adapter-bias", config=AdapterBiasConfig, at="down", source="arXiv:2205.00305", colour="#7A9A01")
class AdapterBias(Adapter):
    """Token-dependent shift of one projection's output."""

    family = "Scale and shift"

    def __init__(self, config: AdapterBiasConfig, site: Site, base: nn.Module) -> None:
        """Create w (1, d_in), c (1,) and v (d_out,)."""
        super().__init__(config, site, base)
        self.w = nn.Parameter(torch.empty(1, site.d_in))
        self.c = nn.Parameter(torch.zeros(1)) if config.offset else None
        self.v = nn.Parameter(torch.zeros(site.d_out))
        nn.init.kaiming_uniform_(self.w, a=math.sqrt(5))

    @staticmethod
    def per_site(config: AdapterBiasConfig, site: Site) -> int:
        """Return d_in + d_out, plus 1 with c."""
        return site.d_in + config.offset + site.d_out

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + (w · x + c) v."""
        return y + linear(x, self.w, self.c) * self.v

    def merged(self, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return W + v wᵀ and, with c, b + c v."""
        changed = {"weight": own["weight"] + self.v[:, None] * self.w}
        return changed if self.c is None else changed | {"bias": own.get("bias", 0) + self.c * self.v}
