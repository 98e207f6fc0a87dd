"""The bottleneck of series and parallel adapters: s f(x W_down) W_up."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import dropout

from llm_adapters_lab.core.adapter import Units
from llm_adapters_lab.core.adapter_config import AdapterConfig

NONLINEARITY = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "linear": nn.Identity}


class BottleneckConfig(AdapterConfig):
    """Fields of every bottleneck adapter."""

    bottleneck: int = Field(default=256, ge=1, le=65536, description="bottleneck size b")
    nonlinearity: Literal["tanh", "relu", "gelu", "silu", "linear"] = Field(
        default="tanh", description="non-linearity f"
    )
    bias: bool = Field(default=False, description="add biases to both projections")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout after f")
    scaling: float | Literal["learned", "channel"] = Field(
        default=1.0, description="scale s: a number, learned (a scalar, from 1) or channel (one per feature, from 1)"
    )
    init: Literal["zero", "normal"] = Field(
        default="zero",
        description="zero: W_up is zero, so training starts at the base; normal: both N(0, init_std²)",
    )
    init_std: float = Field(default=0.02, gt=0, le=1, description="standard deviation of the start with init: normal")


class Bottleneck(nn.Module):
    """Two projections with a non-linearity in between, without residual connection.

    Parameters: b (d_in + d_out), plus b + d_out with biases, plus 1 with a learned scale or d_out with one per channel.
    """

    def __init__(self, config: BottleneckConfig, d_in: int, d_out: int) -> None:
        """Create W_down (b, d_in) and W_up (d_out, b)."""
        super().__init__()
        self.down = nn.Linear(d_in, config.bottleneck, bias=config.bias)
        self.up = nn.Linear(config.bottleneck, d_out, bias=config.bias)
        self.nonlinearity = NONLINEARITY[config.nonlinearity]()
        self.dropout = config.dropout
        self.scale: float | nn.Parameter
        if isinstance(config.scaling, str):
            self.scale = nn.Parameter(torch.ones(() if config.scaling == "learned" else d_out))
        else:
            self.scale = float(config.scaling)
        if config.init == "normal":
            nn.init.normal_(self.down.weight, std=config.init_std)
            nn.init.normal_(self.up.weight, std=config.init_std)
        else:
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.up):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return s f(x W_down) W_up: (..., d_in) -> (..., d_out)."""
        hidden = self.nonlinearity(self.down(x))
        if self.dropout and self.training:
            hidden = dropout(hidden, self.dropout)
        branch: torch.Tensor = self.up(hidden)
        # Not multiplying by one saves a copy of the branch.
        return branch if isinstance(self.scale, float) and self.scale == 1.0 else branch * self.scale


def bottleneck_units(config: BottleneckConfig) -> Units:
    """Return the hidden units of a `Bottleneck` that an adapter holds as `bottleneck`."""
    axes = {"bottleneck.down.weight": 0, "bottleneck.up.weight": 1} | (
        {"bottleneck.down.bias": 0} if config.bias else {}
    )
    symmetry: dict[str, Literal["sign", "linear"]] = {"tanh": "sign", "linear": "linear"}
    return Units(axes, symmetry.get(config.nonlinearity, "order"))


def bottleneck_size(config: BottleneckConfig, d_in: int, d_out: int) -> int:
    """Return the number of parameters of a `Bottleneck`."""
    scale = {"learned": 1, "channel": d_out}.get(str(config.scaling), 0)
    return config.bottleneck * (d_in + d_out) + config.bias * (config.bottleneck + d_out) + scale
