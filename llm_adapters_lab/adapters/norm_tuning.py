"""Norm tuning: trains only the scales and shifts of the norms.

    y = g * (x - mean) / std + b   (layer norm),   y = g * x / rms   (RMS norm)

with g and b: (d,) instead of the base's own (w in models that write g as 1 + w), for all norms, including the final
one. Training starts at the base. Merging replaces the base's values by the trained ones.

Parameters: all parameters of all norms.

Source: Zhao et al. 2023, arXiv:2312.11420, section 3.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field
from torch import nn

from llm_adapters_lab.core.adapter import ParameterAdapter
from llm_adapters_lab.core.adapter_config import ModelAdapterConfig
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class NormTuningConfig(ModelAdapterConfig):
    """Config of norm tuning."""

    type: Literal["norm-tuning"] = Field(default="norm-tuning", description="name of the adapter")


@register_adapter("norm-tuning", config=NormTuningConfig, at="", source="arXiv:2312.11420", colour="#704070")
class NormTuning(ParameterAdapter):
    """The parameters of one norm."""

    family = "Selective"

    @classmethod
    def sites(cls, anatomy: Anatomy, model: nn.Module, at: str) -> tuple[Site, ...]:
        """Return all norms of the model."""
        return cls.parameter_sites(
            model, lambda module: re.search("norm", type(module).__name__, re.IGNORECASE) is not None
        )
