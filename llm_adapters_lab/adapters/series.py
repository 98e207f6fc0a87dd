"""Series bottleneck: a small residual network after a sublayer.

    h' = h + s f(h W_down) W_up

with h: (..., d), W_down: (b, d) and W_up: (d, b) stored as (out, in). With `at: mlp`, h is the output of the MLP before
the residual connection, with `attn` the output of attention, with `mlp.in` the input of the MLP (the "post-attention"
position of the original code). W_up starts at zero, so training starts at the base.

Parameters: 2 b d for each site, plus b + d with biases, plus 1 with a learned scale.

Source: Houlsby et al. 2019, arXiv:1902.00751; placement as in Hu et al. 2023, arXiv:2304.01933, section 2
(their H_o ← H_o + f(H_o W_down) W_up / our h).
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


class SeriesConfig(BottleneckConfig):
    """Config of the series bottleneck."""

    type: Literal["series"] = Field(default="series", description="name of the adapter")


@register_adapter("series", config=SeriesConfig, at="mlp", source="arXiv:1902.00751", colour="#CC79A7")
class Series(Adapter):
    """Bottleneck that reads and changes the output of a sublayer."""

    family = "Bottleneck"
    level = "sublayer"
    example = {"bottleneck": 8}
    units = staticmethod(bottleneck_units)

    def __init__(self, config: SeriesConfig, site: Site, base: nn.Module) -> None:
        """Create a bottleneck d_out -> b -> d_out."""
        super().__init__(config, site, base)
        self.bottleneck = Bottleneck(config, site.d_out, site.d_out)

    @staticmethod
    def per_site(config: SeriesConfig, site: Site) -> int:
        """Return the size of a bottleneck d_out -> b -> d_out."""
        return bottleneck_size(config, site.d_out, site.d_out)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + s f(y W_down) W_up."""
        changed: torch.Tensor = y + self.bottleneck(y)
        return changed
