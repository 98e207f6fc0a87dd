"""Prefix tuning: learned keys and values prepended in every attention layer.

    y = Attn(x W_Q, [P_K ; x W_K], [P_V ; x W_V])

with P_K: (t, n_kv, d_k) and P_V: (t, n_kv, d_v) for each layer, t virtual tokens and n_kv key/value heads (fewer than
query heads in grouped-query models). They are parameters or, with `mlp` > 0, computed by a network of that width:
[P_K ; P_V] of all layers = tanh(Q W_1 + b_1) W_2 + b_2 with Q: (t, w), w the width of a layer's keys. As the prefix is
attended to, training never starts at the base.

Parameters: n = t n_kv (d_k + d_v) summed over the layers; with the MLP of width m: t w + m (w + 1) + (m + 1) n / t.

Source: Li and Liang 2021, arXiv:2101.00190, equation 3 (their P_idx / our t virtual tokens), section 4.3 for the MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from llm_adapters_lab.adapters.shared.virtual_tokens import VirtualCache, flatten_cache, unflatten_cache, uniform_size
from llm_adapters_lab.core.adapter import World
from llm_adapters_lab.core.adapter_config import ModelAdapterConfig
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class PrefixConfig(ModelAdapterConfig):
    """Config of prefix tuning."""

    type: Literal["prefix"] = Field(default="prefix", description="name of the adapter")
    virtual_tokens: int = Field(default=10, ge=1, le=4096, description="number t of virtual tokens")
    init_std: float = Field(default=0.02, gt=0, le=10, description="standard deviation of the initial keys and values")
    mlp: int = Field(default=0, ge=0, le=65536, description="width m of the network that computes them; 0: none")


@register_adapter("prefix", config=PrefixConfig, at="", source="arXiv:2101.00190", colour="#009E73")
class Prefix(VirtualCache):
    """Keys and values of virtual tokens for all layers."""

    peft_type = "PREFIX_TUNING"
    example = {"virtual_tokens": 5}

    def __init__(self, config: PrefixConfig, world: World) -> None:
        """Create P_K and P_V of all layers, or the network that computes them, in the shapes of the model's cache."""
        super().__init__(config, world)
        shapes = world.anatomy.cache_shapes(world.model)
        self.virtual_tokens, self.slots, self.shapes = config.virtual_tokens, list(shapes), list(shapes.values())
        sizes = [heads * width for heads, *widths in self.shapes for width in widths]
        self.layers = nn.ModuleList()
        if config.mlp:
            self.tokens = nn.Parameter(torch.randn(config.virtual_tokens, sizes[0]))
            self.mlp = nn.Sequential(nn.Linear(sizes[0], config.mlp), nn.Tanh(), nn.Linear(config.mlp, sum(sizes)))
            return
        for heads, d_k, d_v in self.shapes:
            start = [config.init_std * torch.randn(heads, config.virtual_tokens, width) for width in (d_k, d_v)]
            self.layers.append(nn.ParameterDict(zip(("key", "value"), start, strict=True)))

    @classmethod
    def parameter_count(cls, config: PrefixConfig, sites: Sequence[Site], world: World) -> int:
        """Return n, with the MLP of width m: t w + m (w + 1) + (m + 1) n / t."""
        shapes, t, m = [*world.anatomy.cache_shapes(world.model).values()], config.virtual_tokens, config.mlp
        each, w = sum(heads * (d_k + d_v) for heads, d_k, d_v in shapes), shapes[0][0] * shapes[0][1]
        return t * w + m * (w + 1) + (m + 1) * each if m else t * each

    def keys_and_values(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return P_K (n_kv, t, d_k) and P_V (n_kv, t, d_v) of each layer."""
        if layers := list[Any](self.layers):  # read by name: `parameters()` would not apply modifiers
            return [(layer["key"], layer["value"]) for layer in layers]
        return unflatten_cache(self.mlp(self.tokens), self.shapes)

    def to_peft(self, config: PrefixConfig) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's config, and keys and values (t, all); folders of peft have no MLP."""
        (heads, width), layers = uniform_size(self.shapes, self.slots), len(self.shapes)
        sizes = {"num_layers": layers, "token_dim": heads * width, "num_attention_heads": heads}
        return {"num_virtual_tokens": self.virtual_tokens, **sizes}, {
            "prompt_embeddings": flatten_cache(self.keys_and_values())
        }

    @classmethod
    def from_peft(cls, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Convert a peft config; the folder has keys and values and no MLP."""
        for name in ("prefix_projection", "encoder_hidden_size", "init_weights"):
            fields.pop(name, None)
        return {"virtual_tokens": fields.pop("num_virtual_tokens")}

    def load_peft(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load keys and values."""
        for layer, pair in zip(self.layers, unflatten_cache(tensors["prompt_embeddings"], self.shapes), strict=True):
            layer.load_state_dict(dict(zip(("key", "value"), pair, strict=True)))
