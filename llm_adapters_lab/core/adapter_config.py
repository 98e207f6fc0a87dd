"""The config fields that every adapter has."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from llm_adapters_lab.core.modifiers.configs import QuantizeConfig, SparseConfig, SplitConfig
from llm_adapters_lab.core.placement import parse


class AdapterConfig(BaseModel):
    """Fields that every adapter has. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    type: str = Field(description="name of the adapter")
    at: str = Field(default="", description="placement, e.g. q,v or attn+mlp or down@0-7; empty for the usual one")
    sparse: SparseConfig | None = Field(default=None, description="mask: {score, sparsity, scope, warmup}")
    split: SplitConfig | None = Field(default=None, description="parts by turns in training: {parts, of, kl}")
    quantize: QuantizeConfig | None = Field(default=None, description="few bits for each weight: {bits}")

    @field_validator("at")
    @classmethod
    def _understood(cls, at: str) -> str:
        if at:
            parse(at)
        return at


class ModelAdapterConfig(AdapterConfig):
    """Fields of every adapter of the model as a whole, which has no placement to choose."""

    at: Literal[""] = Field(default="", description="empty: this adapter is not placed, it acts on the whole model")
