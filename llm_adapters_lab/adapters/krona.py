"""KronA: a Kronecker product as the update of a frozen projection.

    y = W x + s (A ⊗ B) x

with x: (..., d_in), A: (a_out, a_in), B: (d_out / a_out, d_in / a_in). The sizes of A are the largest divisors of d_out
and d_in up to `factor`. The forward pass does not compute the product: with x as an (a_in, b_in) matrix X, (A ⊗ B) x is
A X Bᵀ. B starts at zero, so training starts at the base; W' = W + s (A ⊗ B) merges exactly. Unlike in LoRA, the update
can have full rank. If `factor` is the width of the weight, B is a scalar and A is all of ΔW.

Parameters: a_out a_in + b_out b_in for each site.

Source: Edalati et al. 2022, arXiv:2212.10650, equations 4 and 5 (their A_k, B_k / our A, B).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class KronAConfig(AdapterConfig):
    """Config of KronA."""

    type: Literal["krona"] = Field(default="krona", description="name of the adapter")
    factor: int = Field(default=32, ge=1, le=65536, description="maximum size of the first factor A")
    scaling: float = Field(default=1.0, gt=0, description="scale s of the update")


@register_adapter("krona", config=KronAConfig, at="q,v", source="arXiv:2212.10650", colour="#4028E8")
class KronA(Adapter):
    """Kronecker-factored update of one projection."""

    family = "Low-rank"
    example = {"factor": 8}

    def __init__(self, config: KronAConfig, site: Site, base: nn.Module) -> None:
        """Create A (a_out, a_in) and B (d_out / a_out, d_in / a_in)."""
        super().__init__(config, site, base)
        rows, columns = (_divisor(width, config.factor) for width in (site.d_out, site.d_in))
        self.A = nn.Parameter(torch.empty(rows, columns))
        self.B = nn.Parameter(torch.zeros(site.d_out // rows, site.d_in // columns))
        self.scaling = config.scaling
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    @staticmethod
    def per_site(config: KronAConfig, site: Site) -> int:
        """Return a_out a_in + b_out b_in."""
        a, b = (_divisor(width, config.factor) for width in (site.d_out, site.d_in))
        return a * b + site.d_out // a * (site.d_in // b)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + s (A ⊗ B) x."""
        folded = x.view(*x.shape[:-1], self.A.shape[1], self.B.shape[1])
        return y + self.scaling * (self.A @ (folded @ self.B.T)).flatten(-2)

    def merged(self, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return W + s (A ⊗ B)."""
        return {"weight": own["weight"] + self.scaling * torch.kron(self.A, self.B)}


def _divisor(width: int, most: int) -> int:
    return next(n for n in range(min(width, most), 0, -1) if width % n == 0)
