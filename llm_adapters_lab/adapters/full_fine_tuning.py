"""Full fine-tuning: trains all parameters of the base, as the reference for adapters.

    y = f(x; θ')   instead of   y = f(x; θ)

for every module f with parameters θ of its own. θ' starts as an fp32 copy of θ, so training starts at the base, and the
base does not change unless θ' is merged. In addition to the base it needs 16 bytes per parameter: an fp32 copy, its
gradients and its optimiser state.

Parameters: all of the base; those that modules share count once.

Source: the upper baseline of Houlsby et al. 2019, arXiv:1902.00751, section 3.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from llm_adapters_lab.core.adapter import ParameterAdapter
from llm_adapters_lab.core.adapter_config import ModelAdapterConfig
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.registry import register_adapter
from llm_adapters_lab.core.sites import Site


class FullFineTuningConfig(ModelAdapterConfig):
    """Config of full fine-tuning."""

    type: Literal["full-fine-tuning"] = Field(default="full-fine-tuning", description="name of the adapter")


@register_adapter("full-fine-tuning", config=FullFineTuningConfig, at="", source="arXiv:1902.00751", colour="#405840")
class FullFineTuning(ParameterAdapter):
    """The parameters of one module."""

    family = "Full"

    @classmethod
    def sites(cls, anatomy: Anatomy, model: nn.Module, at: str) -> tuple[Site, ...]:
        """Return all modules that have parameters of their own."""
        return cls.parameter_sites(model)
