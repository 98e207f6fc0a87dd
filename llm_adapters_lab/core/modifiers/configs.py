"""Configs of the modifiers of an adapter's matrices: masks, disjoint parts and low bits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llm_adapters_lab.config import Part


class SparseConfig(Part):
    """Which weights are pruned."""

    score: Literal["random", "magnitude", "snip", "grasp", "synflow"] = Field(
        default="snip", description="score by which weights are kept"
    )
    sparsity: float = Field(default=0.4, ge=0, lt=1, description="fraction of the weights that is removed")
    scope: Literal["global", "tensor"] = Field(
        default="global", description="whether sparsity holds over all matrices together or in each"
    )
    warmup: int = Field(default=0, ge=0, le=100000, description="dense training steps before weights are chosen")


class SplitConfig(Part):
    """How matrices are split into parts."""

    parts: int = Field(default=4, ge=1, le=256, description="number N of disjoint parts")
    of: Literal["last", "all"] = Field(
        default="last", description="split only the last matrix of each adapter (the up-projection), or all"
    )
    kl: float = Field(default=1.0, ge=0, le=1000, description="weight κ of the divergence between two forward passes")


class QuantizeConfig(Part):
    """Precision of an adapter's matrices."""

    bits: Literal[1, 2, 4, 8] = Field(default=1, description="bits b per weight")
