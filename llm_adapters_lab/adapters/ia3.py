"""IA3: learned scaling factors for keys, values and MLP activations.

    y = l * (W x + b)   at an output,   y = W (l * x) + b   at an input (`down.in`)

with l: (d_out,) or (d_in,), which starts at one, so training starts at the base. Both merge exactly: W' = diag(l) W
with b' = l * b, or W' = W diag(l). In models with a fused qkv projection, the queries are scaled too.

Parameters: d_out for each output, d_in for each input.

Source: Liu et al. 2022, arXiv:2205.05638, section 3.3 (their l_k, l_v, l_ff / our l).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class IA3Config(AdapterConfig):
    """Config of IA3."""

    type: Literal["ia3"] = Field(default="ia3", description="name of the adapter")


@register_adapter("ia3", config=IA3Config, at="k,v,down.in", source="arXiv:2205.05638", colour="#E69F00")
class IA3(Adapter):
    """One factor per feature."""

    experts = True
    family, peft_type = "Scale and shift", "IA3"

    def __init__(self, config: IA3Config, site: Site, base: nn.Module) -> None:
        """Create the factors l (d_out,)."""
        super().__init__(config, site, base)
        self.factors = nn.Parameter(torch.ones(site.d_out))
        self.inside = site.side == "in"

    @staticmethod
    def per_site(config: IA3Config, site: Site) -> int:
        """Return d_out, which at an input site is the width of the input."""
        return site.d_out

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return l * y; at an input site, y is the input."""
        return y * self.factors

    def merged(self, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return diag(l) W and l * b."""
        return {name: self.factors.view(-1, *[1] * (value.ndim - 1)) * value for name, value in own.items()}

    def to_peft(self, config: IA3Config) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's config and factors: a row at an input, a column at an output."""
        return {"feedforward_modules": []}, {"ia3_l": self.factors[None] if self.inside else self.factors[:, None]}

    @classmethod
    def from_peft(cls, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Convert a peft config."""
        for name in ("init_ia3_weights", "fan_in_fan_out"):
            fields.pop(name, None)
        return {}

    def load_peft(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load the factors."""
        self.load_state_dict({"factors": tensors["ia3_l"].squeeze(0 if self.inside else 1)})
