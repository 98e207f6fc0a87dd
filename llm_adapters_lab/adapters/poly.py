"""Polytropon, MHR: an inventory of low-rank skills, mixed for every task by a learned router.

    y_s += (α / r) B_ts Σ_i A_ti x_i,  A_ts = Σ_k w_tsk A_sk,  B_ts = Σ_k w_tsk B_sk,  w_tsk = σ(Z_tsk) / Σ_k σ(Z_tsk)

with K skills, x and y in S blocks, A: (S, K, r, d_in / S), B: (S, K, d_out / S, r), and a row of the router Z:
(T, S, K) for each of T groups. One block is Polytropon, several are multi-head routing (MHR). Factors are averaged, not
products. B is zero at first, so training starts at the base. A call without groups has the mean of w.

Parameters: r K (d_in + d_out) + T S K for each site, whatever S is in the first term.

Source: Ponti et al. 2022, arXiv:2202.13914, equations 3 to 5 (their Φ / ours A, B); MHR: Caccia et al. 2022,
arXiv:2211.03831, section 3 (their h heads / our S blocks). As in their code for T0, the router is not sampled.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.adapters.shared import skills
from llm_adapters_lab.adapters.shared.groups import Grouped, GroupedConfig, two_layers
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotInject


class PolyConfig(GroupedConfig):
    """Config of Polytropon and MHR."""

    type: Literal["poly"] = Field(default="poly", description="name of the adapter")
    rank: int = Field(default=4, ge=1, le=4096, description="rank r of each skill")
    alpha: float = Field(default=16.0, gt=0, description="numerator of the scale α / r")
    skills: int = Field(default=8, ge=1, le=1024, description="number of skills K")
    blocks: int = Field(default=1, ge=1, le=1024, description="number of blocks S; 1: Polytropon, more: MHR")
    router_rate: float = Field(default=30.0, gt=0, le=1e4, description="learning rate of Z, as a multiple")


@register_adapter("poly", config=PolyConfig, at="q,v", source="arXiv:2202.13914", colour="#8C6D31")
class Poly(Grouped):
    """Low-rank update from an inventory of skills."""

    family, peft_type = "Low-rank", "POLY"
    from_peft, to_peft = staticmethod(skills.from_peft), skills.to_peft
    example = {"rank": 2, "skills": 3, "blocks": 2}

    def __init__(self, config: PolyConfig, site: Site, base: nn.Module) -> None:
        """Create A (S, K, r, d_in / S), whose spread is that of LoRA, B (S, K, d_out / S, r) and Z (T, S, K)."""
        super().__init__(config, site, base)
        s, k, r = config.blocks, config.skills, config.rank
        if site.d_in % s or site.d_out % s:
            raise CannotInject(f"blocks = {s} does not divide the widths {site.d_in} and {site.d_out} of {site.path}.")
        self.scale, self.faster = config.alpha / r, config.router_rate
        self.A = nn.Parameter(torch.empty(s, k, r, site.d_in // s).uniform_(-1, 1) / math.sqrt(site.d_in))
        self.B = nn.Parameter(torch.zeros(s, k, site.d_out // s, r))
        self.Z = nn.Parameter(torch.empty(max(1, len(self.groups)), s, k).uniform_(-1e-3, 1e-3))

    @staticmethod
    def per_site(config: PolyConfig, site: Site) -> int:
        """Return r K (d_in + d_out) + T S K."""
        factors = config.rank * (site.d_in + site.d_out) if config.train == "all" else 0
        return config.skills * (factors + max(1, len(config.groups)) * config.blocks)

    def rates(self) -> dict[str, float]:
        """Return the factor of the router."""
        return {"Z": self.faster}

    @staticmethod
    def by_group(config: PolyConfig) -> dict[str, tuple[str, ...]]:
        """Return the rows of the router."""
        return {"Z": config.groups or ("",)}

    def skill_weights(self) -> torch.Tensor:
        """Return w, (T, S, K)."""
        return skills.mixtures(self.Z, range(len(self.Z)))

    def factors(self, groups: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (G, r, d_in) and B (G, d_out, r) of groups, or those of the mean mixture, with G = 1."""
        w = skills.mixtures(self.Z, groups)
        a, b = torch.einsum("gsk,skri->grsi", w, self.A), torch.einsum("gsk,skor->gsor", w, self.B)
        return a.flatten(2), b.flatten(1, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + (α / r) B_t A_t x with the factors of each row's group t."""
        groups, where = self.present()
        return y + self.scale * two_layers(x, *self.factors(groups), where)

    def baked(self, config: PolyConfig, group: str) -> tuple[LoRAConfig, dict[str, torch.Tensor]]:
        """Return a LoRA with the factors of a group."""
        (a,), (b,) = self.factors(self.number(group))
        return LoRAConfig(rank=config.rank, alpha=config.alpha, at=config.at), {"A": a, "B": b}

    def load_peft(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load A, B and Z."""
        a, b, z = (tensors[name] for name in skills.PEFT)
        self.load_state_dict({"A": a.mT, "B": b.mT, "Z": z.view(self.Z.shape)})
