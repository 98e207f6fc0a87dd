"""CoDA: a parallel bottleneck for all tokens, and the MLP itself only for those that a router chooses.

    y' = [s > τ] λ y + f(x W_down) W_up,   s = w · x / ‖w‖,   λ = σ((s - τ) / T)

with x: (..., d_in) and y: (..., d_out) the input and output of the MLP, w: (d_in,), s and λ: (...), W_down: (b, d_in)
and W_up: (d_out, b) stored as (out, in). The frozen MLP computes the chosen tokens only. τ is the (1 - share) quantile
of s: in training it follows that of each pass, over all tokens but padding, and then it stays as it is, so that whether
a token runs depends on nothing but its own x. With `route: topk`, as in the paper, the k tokens of largest s of a row
run, and λ is a soft choice of k of its tokens; that needs the whole row, and is for models without a causal mask. With
`share: 1`, all tokens run, λ is 1 and there is no router: this is the parallel bottleneck.

Parameters: b (d_in + d_out) for each site, plus d_in if share < 1, plus those of options as in a parallel bottleneck.

Source: Lei et al. 2023, arXiv:2304.04947, section 3, for `topk`; the threshold takes its place in decoders.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from llm_adapters_lab.adapters.shared.bottleneck import Bottleneck, BottleneckConfig, bottleneck_size, bottleneck_units
from llm_adapters_lab.adapters.shared.token_choice import TokenChoice
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class CoDAConfig(BottleneckConfig):
    """Config of CoDA."""

    type: Literal["coda"] = Field(default="coda", description="name of the adapter")
    bottleneck: int = Field(default=32, ge=1, le=65536, description="bottleneck size b")
    share: float = Field(default=0.5, gt=0, le=1, description="share of the tokens that run through the MLP")
    route: Literal["threshold", "topk"] = Field(
        default="threshold", description="threshold: each token by itself; topk: among those of a row, not in decoders"
    )
    temperature: float = Field(default=0.3, gt=0, le=100, description="T of threshold; small: λ is near 1 for most")
    router_rate: float = Field(default=1.0, gt=0, le=1e4, description="learning rate of w, as a multiple")


@register_adapter("coda", config=CoDAConfig, at="mlp", source="arXiv:2304.04947", colour="#2E8BA8")
class CoDA(TokenChoice):
    """Bottleneck in parallel with an MLP that only some tokens run through."""

    family = "Bottleneck"
    level = "sublayer"
    identity = False
    example = {"bottleneck": 8, "share": 0.75}
    units = staticmethod(bottleneck_units)

    def __init__(self, config: CoDAConfig, site: Site, base: nn.Module) -> None:
        """Create a bottleneck d_in -> b -> d_out and w, whose norm is about 1."""
        super().__init__(config, site, base)
        self.bottleneck = Bottleneck(config, site.d_in, site.d_out)
        self.faster = {"w": config.router_rate} if self.share < 1 else {}
        if self.faster:
            self.w = nn.Parameter(torch.randn(site.d_in) / site.d_in**0.5)

    @staticmethod
    def per_site(config: CoDAConfig, site: Site) -> int:
        """Return the size of a bottleneck and of w."""
        return bottleneck_size(config, site.d_in, site.d_out) + (config.share < 1) * site.d_in

    def rates(self) -> dict[str, float]:
        """Return the factor of the router."""
        return self.faster

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Return w · x / ‖w‖."""
        # A sum is the same for a token alone and in a batch. If w could grow, scores would run away from τ.
        found: torch.Tensor = (x.to(self.w.dtype) * (self.w / self.w.norm())).sum(-1)
        return found

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + f(x W_down) W_up; of y, the gate has been taken."""
        changed: torch.Tensor = y + self.bottleneck(x)
        return changed
