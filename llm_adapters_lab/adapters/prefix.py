"""Prefix tuning: learned keys and values in front of those of every attention layer.

    y = Attn(x W_Q, [P_K ; x W_K], [P_V ; x W_V])

with P_K: (t, n_kv, d_k) and P_V: (t, n_kv, d_v) for each layer, t virtual tokens and n_kv key/value heads (fewer than
query heads in grouped-query models). Real tokens keep their order after the prefix: the first one is at position t.
The prefix takes a share of the softmax from the start, so no initialisation makes the start equal to the base.

Parameters: t n_kv (d_k + d_v) for each layer.

Source: Li and Liang 2021, arXiv:2101.00190, equation 3 (their P_idx / our t virtual tokens), without the MLP.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import DynamicCache

from llm_adapters_lab.adapter import ModelAdapter, ModelAdapterConfig, register
from llm_adapters_lab.anatomy import Anatomy
from llm_adapters_lab.errors import CannotInject


class PrefixConfig(ModelAdapterConfig):
    """Config of prefix tuning."""

    type: Literal["prefix"] = Field(default="prefix", description="name of the adapter")
    virtual_tokens: int = Field(default=10, ge=1, le=4096, description="virtual tokens t in front of every layer")
    init_std: float = Field(default=0.02, gt=0, le=10, description="standard deviation of the first keys and values")


@register("prefix", config=PrefixConfig, at="", source="arXiv:2101.00190")
class Prefix(ModelAdapter):
    """Keys and values of virtual tokens for all layers."""

    identity = False

    def __init__(self, config: PrefixConfig, anatomy: Anatomy, model: nn.Module) -> None:
        """Make P_K and P_V of every layer from the shape of the model's own cache."""
        super().__init__(config, anatomy, model)
        t, shapes = config.virtual_tokens, anatomy.cache_shapes(model)
        self.virtual_tokens = t
        self.layers = nn.ModuleList()
        for heads, d_k, d_v in shapes:
            start = {"key": torch.randn(heads, t, d_k), "value": torch.randn(heads, t, d_v)}
            self.layers.append(nn.ParameterDict({name: config.init_std * draw for name, draw in start.items()}))

    def prepare(self, decoder: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Fill an empty cache with the prefix; give mask and positions room for it.

        Raises:
            CannotInject: gradient checkpointing is on, which drops the cache and with it the prefix.
        """
        if decoder.training and getattr(decoder, "gradient_checkpointing", False):
            raise CannotInject(
                "Gradient checkpointing drops the key/value cache that carries the prefix, so the prefix would not "
                "be trained. Turn train.gradient_checkpointing off, or choose another adapter."
            )
        inputs = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        rows, tokens = inputs.shape[:2]
        length = self.virtual_tokens
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        past = 0 if cache is None else cache.get_seq_length()
        seen = max(past - length, 0) if mask is None else mask.shape[1] - tokens
        if past == 0 or seen == 0:
            # Nothing real is cached: a first call, or generation without cache that hands back what it was given.
            cache = DynamicCache() if cache is None or past else cache
            dtype = next(p.dtype for p in decoder.parameters() if p.is_floating_point())
            for index, layer in enumerate(self.layers):
                key, value = (p.to(inputs.device, dtype).expand(rows, -1, -1, -1) for p in layer.parameters())
                cache.update(key, value, index)
        mask = torch.ones(rows, seen + tokens, dtype=torch.long, device=inputs.device) if mask is None else mask
        # Positions follow the mask, so that padding on the left moves no token.
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens:] + length
        mask = torch.cat([mask.new_ones(rows, length), mask], dim=-1)
        return {**kwargs, "past_key_values": cache, "attention_mask": mask, "position_ids": positions}
