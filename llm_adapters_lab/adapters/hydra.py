"""Hydra: a low-rank branch in parallel with a projection, and one after it.

    z = W x + b,   y = z + s (B_p A_p x + B_s A_s z)

with x: (..., d_in), A_p: (r_p, d_in), B_p: (d_out, r_p), A_s: (r_s, d_out), B_s: (d_out, r_s). The parallel branch
learns new features, the sequential branch transforms those of W. Both B start at zero, so training starts at the base.
The update is linear in x: W' = W + s (B_p A_p + B_s A_s W) and b' = b + s B_s A_s b merge exactly. Without the
sequential branch it is LoRA.

Parameters: r_p (d_in + d_out) + 2 r_s d_out for each site.

Source: Kim et al. 2023, arXiv:2309.06922, equations 4 to 6 (their A_par, B_par, A_seq, B_seq / our A_p, B_p, A_s, B_s).
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


class HydraConfig(AdapterConfig):
    """Config of Hydra."""

    type: Literal["hydra"] = Field(default="hydra", description="name of the adapter")
    rank: int = Field(default=4, ge=1, le=4096, description="rank r_p of the parallel branch")
    sequential_rank: int = Field(default=4, ge=1, le=4096, description="rank r_s of the sequential branch")
    scaling: float = Field(default=1.0, gt=0, description="scale s of both branches")


@register_adapter("hydra", config=HydraConfig, at="down", source="arXiv:2309.06922", colour="#9C6B30")
class Hydra(Adapter):
    """Parallel and sequential low-rank update of one projection."""

    family = "Low-rank"
    example = {"rank": 2, "sequential_rank": 3}

    def __init__(self, config: HydraConfig, site: Site, base: nn.Module) -> None:
        """Create A_p (r_p, d_in), B_p (d_out, r_p), A_s (r_s, d_out) and B_s (d_out, r_s)."""
        super().__init__(config, site, base)
        self.scaling = config.scaling
        self.A_parallel = nn.Parameter(torch.empty(config.rank, site.d_in))
        self.B_parallel = nn.Parameter(torch.zeros(site.d_out, config.rank))
        self.A_sequential = nn.Parameter(torch.empty(config.sequential_rank, site.d_out))
        self.B_sequential = nn.Parameter(torch.zeros(site.d_out, config.sequential_rank))
        for a in (self.A_parallel, self.A_sequential):
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))

    @staticmethod
    def per_site(config: HydraConfig, site: Site) -> int:
        """Return r_p (d_in + d_out) + 2 r_s d_out."""
        return config.rank * (site.d_in + site.d_out) + 2 * config.sequential_rank * site.d_out

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + s (B_p A_p x + B_s A_s y)."""
        beside = linear(linear(x, self.A_parallel), self.B_parallel)
        behind = linear(linear(y, self.A_sequential), self.B_sequential)
        return y + self.scaling * (beside + behind)

    def merged(self, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return W + s (B_p A_p + B_s A_s W) and b + s B_s A_s b."""
        parallel = self.B_parallel @ self.A_parallel
        sequential = self.B_sequential @ self.A_sequential
        changed = {name: value + self.scaling * sequential.to(value.dtype) @ value for name, value in own.items()}
        return changed | {"weight": changed["weight"] + self.scaling * parallel}
