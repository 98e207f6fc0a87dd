"""DoRA: LoRA for the direction of a weight, and a learned magnitude per output feature.

    y = m / ||W + s B A|| * (W + s B A) x + b,   s = alpha / r

with x: (..., d_in), A: (r, d_in), B: (d_out, r), m: (d_out,), and ||.|| the norm of each row (output feature), through
which no gradient flows. B starts at zero and m at ||W||, so training starts at the base. It merges exactly.

Parameters: r (d_in + d_out) + d_out for each site, plus 1 with a learned scale.

Source: Liu et al. 2024, arXiv:2402.09353, equation 5 (their column norm of W (d, k) / our row norm of W (d_out, d_in)),
section 4.3 for the detached norm. Dropout acts on the input of A alone, as in LoRA.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import dropout, linear

from llm_adapters_lab.adapters.lora import LoRA, LoRAConfig
from llm_adapters_lab.adapters.shared.low_rank import Remembered, base_weight, from_peft
from llm_adapters_lab.core import weights
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class DoRAConfig(LoRAConfig):
    """Config of DoRA."""

    has_factors = False
    type: Literal["dora"] = Field(default="dora", description="name of the adapter")  # type: ignore[assignment]
    init: Literal["kaiming", "gaussian"] = Field(default="kaiming", description="initialisation of A")


@register_adapter("dora", config=DoRAConfig, at="q,v", source="arXiv:2402.09353", colour="#56B4E9")
class DoRA(LoRA):
    """Low-rank update of the direction of a projection, with learned magnitudes."""

    embeds = False  # the norms would take all rows of an embedding
    reads_weight = True
    own_per_expert = {"magnitude": "d_out"}

    def __init__(self, config: DoRAConfig, site: Site, base: nn.Module) -> None:
        """Create A, B, and the magnitudes m (d_out,) from the row norms of W."""
        super().__init__(config, site, base)
        self.site, self.base = site, (base,)  # in a tuple, torch does not register the module as a child
        self.norm, self.factors = Remembered(), Remembered()
        self.magnitude = nn.Parameter(self._direction().norm(dim=1))

    @staticmethod
    def per_site(config: LoRAConfig, site: Site) -> int:
        """Return r (d_in + d_out) + d_out."""
        return LoRA.per_site(config, site) + site.d_out

    def _direction(self, weight: torch.Tensor | None = None) -> torch.Tensor:
        weight = base_weight(self.site, self.base[0]) if weight is None else weight
        return weight + self.scale * (self.B @ self.A).detach()

    def _gain(self, norm: torch.Tensor) -> torch.Tensor:
        # A feature whose weights are all zero has no direction and does not change.
        return torch.where(norm == 0, torch.ones_like(norm), self.magnitude / norm.clamp(min=1e-30))

    def _factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return g - 1 (d_out,) and g s B (d_out, r) with g = m / ||W + s B A||."""
        gain = self._gain(self.norm.get(lambda: self._direction().norm(dim=1), *self.base, self.A, self.B, self.scale))
        return (gain - 1).to(self.B.dtype), ((gain * self.scale)[:, None] * self.B).to(self.B.dtype)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + (g - 1) (y - b) + g s B A x with g = m / ||W + s B A||."""
        if torch.is_grad_enabled():
            more, up = self._factors()
        else:  # nothing changes between two calls
            more, up = self.factors.get(self._factors, *self.base, self.A, self.B, self.magnitude, self.scale)
        if self.dropout and self.training:
            x = dropout(x, self.dropout)
        bare = y if (bias := weights.bias(*self.base)) is None else y - bias
        return torch.addcmul(y, bare, more) + linear(linear(x, self.A), up)

    def merged(self, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return m / ||W + s B A|| * (W + s B A)."""
        direction = self._direction(own["weight"])
        return {"weight": self._gain(direction.norm(dim=1))[:, None] * direction}

    def to_peft(self, config: LoRAConfig) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's config and tensors."""
        fields, tensors = super().to_peft(config)
        return fields | {"use_dora": True}, tensors | {"lora_magnitude_vector": self.magnitude}

    @classmethod
    def from_peft(cls, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Convert a peft config with `use_dora`."""
        return from_peft(fields) if fields.pop("use_dora", False) else None

    def load_peft(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load A, B and m."""
        super().load_peft(tensors)
        self.load_state_dict({"magnitude": tensors["lora_magnitude_vector"]}, strict=False)
