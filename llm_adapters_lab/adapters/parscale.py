"""ParScale: every row runs in parallel streams, each with a prefix of its own, whose outputs are weighted.

    h = Σ_p w_p h_p,   w = (1 - ε) softmax(W_2 silu(W_1 [h_1; …; h_P] + b_1) + b_2) + ε / P

for each token, with h_p: (d) the final hidden state of stream p of P, after the last norm. Stream p has keys and values
of t virtual tokens in every attention layer, as in prefix tuning: (P, n_kv, t, d_k) and (P, n_kv, t, d_v), with n_kv
key/value heads. W_1: (d, P d), W_2: (P, d). The head runs once, on h. The streams are rows, so that activations and
cache are P times as large. With P = 1, there is nothing to weight: it is prefix tuning. Training never starts at the
base. The first real token is at position t; in the authors' code it is at 0, which differs only in learned positions.

Parameters: n = P t n_kv (d_k + d_v) summed over the layers, plus P d² + d + P d + P for the weights if P > 1.

Source: Chen et al. 2025, arXiv:2505.10475, their input transformation and output aggregation; ε as in their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import silu

from llm_adapters_lab.adapters.shared.streams import Streams
from llm_adapters_lab.adapters.shared.virtual_tokens import output_width
from llm_adapters_lab.core.adapter import World
from llm_adapters_lab.core.adapter_config import ModelAdapterConfig
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class ParScaleConfig(ModelAdapterConfig):
    """Config of ParScale."""

    type: Literal["parscale"] = Field(default="parscale", description="name of the adapter")
    streams: int = Field(default=4, ge=1, le=64, description="number P of parallel streams")
    virtual_tokens: int = Field(default=48, ge=1, le=4096, description="number t of virtual tokens of each stream")
    init_std: float = Field(default=0.02, gt=0, le=10, description="standard deviation of the initial keys and values")
    smoothing: float = Field(default=0.01, ge=0, lt=1, description="share ε of equal weights; none is below ε / P")
    weights_rate: float = Field(default=0.02, gt=0, le=1e4, description="learning rate of W_1 and W_2, as a multiple")


@register_adapter("parscale", config=ParScaleConfig, at="", source="arXiv:2505.10475", colour="#E7298A")
class ParScale(Streams):
    """Keys and values of all streams, and the network that weights their outputs."""

    example = {"streams": 3, "virtual_tokens": 5}

    def __init__(self, config: ParScaleConfig, world: World) -> None:
        """Create the keys and values, different in every stream, and W_1 and W_2."""
        super().__init__(config, world)
        shapes = world.anatomy.cache_shapes(world.model)
        self.streams, self.virtual_tokens, self.slots = config.streams, config.virtual_tokens, list(shapes)
        self.smoothing, self.slower, self.layers = config.smoothing, config.weights_rate, nn.ModuleList()
        for heads, *widths in shapes.values():
            size = (config.streams, heads, config.virtual_tokens)
            start = [config.init_std * torch.randn(*size, width) for width in widths]
            self.layers.append(nn.ParameterDict(zip(("key", "value"), start, strict=True)))
        d = output_width(world.model)
        if config.streams > 1:
            self.W1, self.W2 = nn.Linear(config.streams * d, d), nn.Linear(d, config.streams)

    @classmethod
    def parameter_count(cls, config: ParScaleConfig, sites: Sequence[Site], world: World) -> int:
        """Return n + P d² + d + P d + P, or n if P = 1."""
        p, d = config.streams, output_width(world.model)
        shapes = world.anatomy.cache_shapes(world.model).values()
        n = p * config.virtual_tokens * sum(heads * (d_k + d_v) for heads, d_k, d_v in shapes)
        return n + (p * d * d + d + p * d + p if p > 1 else 0)

    def rates(self) -> dict[str, float]:
        """Return the factor of the network that weights the streams; keys and values need large steps."""
        return {name: self.slower for name, _ in self.named_parameters() if name.startswith("W")}

    def keys_and_values(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return keys (P, n_kv, t, d_k) and values (P, n_kv, t, d_v) of each layer."""
        return [(layer["key"], layer["value"]) for layer in list[Any](self.layers)]

    def token_weights(self, x: torch.Tensor) -> torch.Tensor:
        """Return w, (..., P), for x (..., P d), the outputs of the streams side by side."""
        if self.streams == 1:
            return torch.ones_like(x[..., :1])
        shares: torch.Tensor = self.W2(silu(self.W1(x))).softmax(-1)
        return (1 - self.smoothing) * shares + self.smoothing / self.streams

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return h (..., d) for x (..., P d), the outputs of the streams side by side; y (..., d) is their mean."""
        each = x.view(*x.shape[:-1], self.streams, -1)
        return (self.token_weights(x)[..., None] * each).sum(-2)
