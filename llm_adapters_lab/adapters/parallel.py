"""Parallel bottleneck: a small network in parallel with a sublayer.

    y' = y + s f(x W_down) W_up

with x: (..., d_in) and y: (..., d_out) the input and output of the sublayer, W_down: (b, d_in) and W_up: (d_out, b)
stored as (out, in). `at: mlp` and `attn` create one branch for the whole sublayer, as in the paper; placements of
projections (`up,down`) create one for each of them, as in the original code. W_up starts at zero, so training starts at
the base.

Parameters: b (d_in + d_out) for each site, plus b + d_out with biases, plus 1 with a learned scale.

Source: He et al. 2022, arXiv:2110.04366; Hu et al. 2023, arXiv:2304.01933, section 2
(their H_o ← H_o + f(H_i W_down) W_up / our x = H_i, y = H_o).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from llm_adapters_lab.adapters.shared.bottleneck import Bottleneck, BottleneckConfig, bottleneck_size, bottleneck_units
from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class ParallelConfig(BottleneckConfig):
    """Config of the parallel bottleneck."""

    type: Literal["parallel"] = Field(default="parallel", description="name of the adapter")


@register_adapter("parallel", config=ParallelConfig, at="mlp", source="arXiv:2110.04366", colour="#D55E00")
class Parallel(Adapter):
    """Bottleneck that reads the input of a sublayer and changes its output."""

    family = "Bottleneck"
    level = "sublayer"
    example = {"bottleneck": 8}
    units = staticmethod(bottleneck_units)

    def __init__(self, config: ParallelConfig, site: Site, base: nn.Module) -> None:
        """Create a bottleneck d_in -> b -> d_out."""
        super().__init__(config, site, base)
        self.bottleneck = Bottleneck(config, site.d_in, site.d_out)

    @staticmethod
    def per_site(config: ParallelConfig, site: Site) -> int:
        """Return the size of a bottleneck d_in -> b -> d_out."""
        return bottleneck_size(config, site.d_in, site.d_out)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + s f(x W_down) W_up."""
        changed: torch.Tensor = y + self.bottleneck(x)
        return changed
