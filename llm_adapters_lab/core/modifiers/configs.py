"""Configs of the modifiers of an adapter's matrices: masks, disjoint parts and few bits."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SparseConfig(BaseModel):
    """What is masked, and how it is chosen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    score: Literal["random", "magnitude", "snip", "grasp", "synflow"] = Field(
        default="snip", description="what weights are kept by"
    )
    sparsity: float = Field(default=0.4, ge=0, lt=1, description="share of the weights that is removed")
    scope: Literal["global", "tensor"] = Field(
        default="global", description="the share holds over all matrices together, or in each"
    )
    warmup: int = Field(default=0, ge=0, le=100000, description="steps trained densely before weights are chosen")


class SplitConfig(BaseModel):
    """How matrices are split."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    parts: int = Field(default=4, ge=1, le=256, description="number N of disjoint parts")
    of: Literal["last", "all"] = Field(
        default="last", description="split only the last matrix of each adapter (the way up), or all of them"
    )
    kl: float = Field(default=1.0, ge=0, le=1000, description="weight κ of the divergence between two forwards")


class QuantizeConfig(BaseModel):
    """How coarse an adapter's weights are."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bits: Literal[1, 2, 4, 8] = Field(default=1, description="bits b for each weight")
