"""LoRA: a low-rank update of a frozen projection.

    y = W x + s B A x,   s = alpha / r   (rsLoRA: alpha / sqrt(r))

with x: (..., d_in), A: (r, d_in), B: (d_out, r). With `init: kaiming` or `gaussian`, B starts at zero. PiSSA starts at
the r leading singular vectors of W, OLoRA at the first r columns and rows of W = Q R; both train the change,
y = W x + s (B A - B_0 A_0) x. Training starts at the base; W' = W + s B A (- s B_0 A_0) merges exactly.

Parameters: r (d_in + d_out) for each site, plus 1 with a learned scale.

Source: Hu et al. 2021, arXiv:2106.09685, equation 3 (their W_0, ΔW / ours W, s B A); rsLoRA: Kalajdzievski 2023,
arXiv:2312.03732, theorem 3.2; PiSSA: Meng et al. 2024, arXiv:2404.02948, equations 2 to 4; OLoRA: arXiv:2406.01775.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import dropout

from llm_adapters_lab.adapters.shared import low_rank
from llm_adapters_lab.adapters.shared.low_rank import MOVED, HeadedConfig, initial_factors, product, read_peft, to_peft
from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class LoRAConfig(HeadedConfig):
    """Config of LoRA."""

    type: Literal["lora"] = Field(default="lora", description="name of the adapter")
    rank: int = Field(default=8, ge=1, le=4096, description="rank r of the update")
    alpha: float = Field(default=16.0, gt=0, description="numerator of the scale s")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the input of A")
    init: Literal["kaiming", "gaussian", "pissa", "olora"] = Field(
        default="kaiming", description="A: Kaiming-uniform, N(0, 1/r²), or (with B) from W: singular vectors, or QR"
    )
    scale: Literal["alpha", "rslora", "learned"] = Field(
        default="alpha", description="s: alpha / rank, alpha / sqrt(rank), or trained from alpha / rank"
    )


@register_adapter("lora", config=LoRAConfig, at="q,v", source="arXiv:2106.09685", colour="#0072B2")
class LoRA(Adapter):
    """Low-rank update of one projection."""

    embeds = experts = True
    family, peft_type = "Low-rank", "LORA"
    read_peft, units = staticmethod(read_peft), staticmethod(low_rank.units)
    example = {"rank": 4}
    A0: torch.Tensor
    B0: torch.Tensor

    def __init__(self, config: LoRAConfig, site: Site, base: nn.Module) -> None:
        """Create A (r, d_in) and B (d_out, r)."""
        super().__init__(config, site, base)
        self.dropout, self.moved = config.dropout, config.init in MOVED
        factor = config.alpha / (math.sqrt(config.rank) if config.scale == "rslora" else config.rank)
        self.scale: float | nn.Parameter = nn.Parameter(torch.tensor(factor)) if config.scale == "learned" else factor
        a, b = initial_factors(config.init, config.rank, factor, site, base)
        self.A, self.B = nn.Parameter(a), nn.Parameter(b)
        if self.moved:
            self.register_buffer("A0", a.clone())
            self.register_buffer("B0", b.clone())

    @staticmethod
    def per_site(config: LoRAConfig, site: Site) -> int:
        """Return r (d_in + d_out), plus 1 with a learned scale."""
        return config.rank * (site.d_in + site.d_out) + (config.scale == "learned")

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + s B A x, for PiSSA and OLoRA minus s B_0 A_0 x; for token ids x, rows of s B A instead."""
        if self.dropout and self.training and x.is_floating_point():
            x = dropout(x, self.dropout)
        change = product(x, self.A, self.B, self.scale)
        return y + (change - product(x, self.A0, self.B0, self.scale) if self.moved else change)

    def merged(self, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return W + s B A, for PiSSA and OLoRA minus s B_0 A_0."""
        change = self.B @ self.A - self.B0 @ self.A0 if self.moved else self.B @ self.A
        return {"weight": own["weight"] + self.scale * change}

    def to_peft(self, config: LoRAConfig) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's config and tensors; a learned scale is multiplied into B."""
        return to_peft(self, config)

    @classmethod
    def from_peft(cls, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Convert a peft config, unless it is one of DoRA."""
        return None if fields.pop("use_dora", False) else low_rank.from_peft(fields)

    def load_peft(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load A and B."""
        self.load_state_dict({name: tensors[f"lora_{name}.weight"] for name in "AB"}, strict=False)
