"""Convolutional adapter: a bottleneck with a causal convolution over the last tokens.

    z = GLU(V LN(x)),   c_t = Σ_j K_j ∘ z_{t-j} for j = 0 … k-1,   y' = y + s U silu(RMS(c))

with x: (..., n, d) the site's output (`form: series`) or input (`parallel`), V: (2 m, d), GLU(a, b) = a σ(b), K: (m, k)
one filter for each of the m channels, U: (d, m). U starts at zero, so training starts at the base. The convolution is
causal: token t depends on tokens t-k+1 … t, and padding counts as zeros. With k = 1, each token is processed
separately. In the paper, for speech, filters are not causal, and batch norm is used instead of RMS norm.

Parameters: for each site 3 m d + m k + 2 d + m: V, U, the filters, the norms' scales and shift.

Source: Cappellazzo et al. 2024, arXiv:2312.03694, section 3.3 (their Conformer adapter).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import conv1d, glu, silu

from llm_adapters_lab.adapters.shared.sequence import SequenceAdapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class ConvConfig(AdapterConfig):
    """Config of the convolutional adapter."""

    type: Literal["conv"] = Field(default="conv", description="name of the adapter")
    bottleneck: int = Field(default=64, ge=1, le=65536, description="number of channels m")
    kernel: int = Field(default=4, ge=1, le=64, description="length k of the filters, in tokens")
    form: Literal["parallel", "series"] = Field(default="parallel", description="read the site's input or output")
    scaling: float = Field(default=1.0, gt=0, description="scale s of the branch")


@register_adapter("conv", config=ConvConfig, at="mlp", source="arXiv:2312.03694", colour="#00876C")
class Conv(SequenceAdapter):
    """Gated bottleneck with a causal depthwise convolution."""

    family = "Bottleneck"
    level = "sublayer"
    example = {"bottleneck": 8}

    def __init__(self, config: ConvConfig, site: Site, base: nn.Module) -> None:
        """Create V (2 m, d), the filters K (m, 1, k) and U (d_out, m)."""
        super().__init__(config, site, base)
        self.series, self.scaling = config.form == "series", config.scaling
        width = site.d_out if self.series else site.d_in
        self.before, self.within = nn.LayerNorm(width), nn.RMSNorm(config.bottleneck, eps=1e-6)
        self.V = nn.Linear(width, 2 * config.bottleneck, bias=False)
        self.K = nn.Parameter(torch.empty(config.bottleneck, 1, config.kernel))
        self.U = nn.Linear(config.bottleneck, site.d_out, bias=False)
        nn.init.kaiming_uniform_(self.K, a=math.sqrt(5))
        nn.init.zeros_(self.U.weight)

    @staticmethod
    def per_site(config: ConvConfig, site: Site) -> int:
        """Return the sizes of V, U, the filters and the norms."""
        m, d = config.bottleneck, site.d_out if config.form == "series" else site.d_in
        return m * (2 * d + site.d_out) + m * config.kernel + 2 * d + m

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + s U silu(RMS(c))."""
        z = glu(self.V(self.before(y if self.series else x)), dim=-1)
        k = self.K.shape[-1]
        # conv1d does not flip the filter: its last entry is multiplied with the current token.
        wide = self.with_past(z, k - 1) if k > 1 else z
        c = conv1d(wide.transpose(-1, -2), self.K, groups=len(self.K)).transpose(-1, -2)
        changed: torch.Tensor = y + self.scaling * self.U(silu(self.within(c.reshape(z.shape))))
        return changed
