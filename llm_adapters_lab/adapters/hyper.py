"""HyperFormer, Hyper-adapters: one network generates the bottlenecks of all groups.

    I = LN(W_2 relu(W_1 [e_group; e_layer; e_place])),   W_down = H_d I / √c,   W_up = H_u I / √c
    y' = y + f(z W_down) W_up

with embeddings e of the group of a row, such as its task, of the layer and of the place in it, I: (c,), W_down: (b, d)
and W_up: (d, b), z the output of the site or its input (`reads`). With `share: sites` all sites have one
network (HyperFormer++), without it each has its own (HyperFormer). With `pairs`, the group "de-en" has an embedding of
its source and one of its target (Hyper-adapters, whose rescaling by √ is the default; a code of any size c then starts
alike). H_u starts at zero, so training starts at the base. Their layer norms inside adapters are left out. A call
without groups has the mean of the group embeddings.

Parameters: the embeddings, W_1 and W_2 with biases, and c b (d_in + d_out) for each shape of a site; see `count`.

Source: Karimi Mahabadi et al. 2021, arXiv:2106.04489, sections 2.2 to 2.4 (their I_τ / ours I); Baziotis et al. 2022,
arXiv:2205.10835, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from llm_adapters_lab.adapters.parallel import ParallelConfig
from llm_adapters_lab.adapters.series import SeriesConfig
from llm_adapters_lab.adapters.shared.bottleneck import NONLINEARITY
from llm_adapters_lab.adapters.shared.groups import Grouped, GroupedConfig
from llm_adapters_lab.adapters.shared.hypernetwork import PLAIN, Hypernetwork, branch, tables
from llm_adapters_lab.core.adapter import World
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class HyperConfig(GroupedConfig):
    """Config of generated bottlenecks."""

    type: Literal["hyper"] = Field(default="hyper", description="name of the adapter")
    reads: Literal["output", "input"] = Field(default="output", description="end of the site that is read")
    bottleneck: int = Field(default=8, ge=1, le=4096, description="bottleneck size b of what is generated")
    nonlinearity: Literal["tanh", "relu", "gelu", "silu", "linear"] = Field(default="relu", description="f")
    bias: bool = Field(default=False, description="generate biases too")
    embedding: int = Field(default=32, ge=1, le=4096, description="size of each embedding")
    hidden: int = Field(default=64, ge=1, le=65536, description="width of the network")
    code: int = Field(default=32, ge=1, le=4096, description="size c of what the heads read")
    share: Literal["sites", "none"] = Field(default="sites", description="one network for all sites, or one for each")
    pairs: bool = Field(default=False, description="groups are pairs, such as de-en, with an embedding for each end")
    rescale: bool = Field(default=True, description="divide generated matrices by √c")


@register_adapter("hyper", config=HyperConfig, at="attn+mlp", source="arXiv:2106.04489", colour="#7B3294")
class Hyper(Grouped):
    """Bottleneck whose matrices a network generates for the group of each row."""

    family, level = "Bottleneck", "sublayer"
    example = {"bottleneck": 4, "embedding": 4, "hidden": 8, "code": 4}
    network: Hypernetwork

    def __init__(self, config: HyperConfig, site: Site, base: nn.Module) -> None:
        """Remember the site; its network comes with `build`."""
        super().__init__(config, site, base)
        self.site, self.series, self.f = site, config.reads == "output", NONLINEARITY[config.nonlinearity]()

    @classmethod
    def join(cls, config: HyperConfig, adapters: Mapping[str, Hyper]) -> None:
        """Give all adapters one network, or each its own."""
        every = list(adapters.values())
        for part in [every] if config.share == "sites" else [[adapter] for adapter in every]:
            network = Hypernetwork(config, [adapter.site for adapter in part])
            for adapter in part:
                adapter.network = network

    @classmethod
    def parameter_count(cls, config: HyperConfig, sites: Sequence[Site], world: World) -> int:
        """Return the size of the network, or of all networks."""
        parts = [sites] if config.share == "sites" else [[site] for site in sites]
        return sum(Hypernetwork.count(config, part) for part in parts)

    @staticmethod
    def by_group(config: HyperConfig) -> dict[str, tuple[str, ...]]:
        """Return the tables of group embeddings."""
        return {f"network.tables.{name}": rows for name, rows in tables(config.groups, config.pairs).items()}

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y + f(z W_down) W_up with the matrices of each row's group."""
        groups, where = self.present()
        return y + branch(y if self.series else x, self.network(groups, self.site), where, self.f)

    def baked(self, config: HyperConfig, group: str) -> tuple[SeriesConfig | ParallelConfig, dict[str, torch.Tensor]]:
        """Return a plain bottleneck with the matrices of a group."""
        fields = {name: getattr(config, name) for name in ("at", "bottleneck", "nonlinearity", "bias")}
        plain = SeriesConfig(**fields) if self.series else ParallelConfig(**fields)
        made = self.network(self.number(group), self.site)
        return plain, {f"bottleneck.{PLAIN[kind]}": value[0] for kind, value in made.items()}
