"""Norm tuning: nothing is trained but the scales and shifts of the norms.

    y = g * (x - mean) / std + b   (layer norm),   y = g * x / rms   (RMS norm)

with g and b: (d,) in place of the base's own (of w, in models that write g as 1 + w). Every norm takes part,
the last one of the model too. The start is the base; the trained values merge by taking their place.

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

    @classmethod
    def sites(cls, anatomy: Anatomy, model: nn.Module, at: str) -> tuple[Site, ...]:
        """Return every norm of the model."""
        return cls.places(model, lambda module: re.search("norm", type(module).__name__, re.IGNORECASE) is not None)
