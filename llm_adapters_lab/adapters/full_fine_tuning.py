"""Full fine-tuning: every parameter of the base is trained; what adapters are measured against.

    y = f(x; θ')   in place of   y = f(x; θ)

for every module f with parameters θ of its own. θ' starts as an fp32 copy of θ, so the start is the base, and the base
itself stays untouched for as long as θ' is not merged. It needs the memory of a second model in fp32, its gradients and
its optimiser state: 16 bytes a parameter beside the base.

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

    @classmethod
    def sites(cls, anatomy: Anatomy, model: nn.Module, at: str) -> tuple[Site, ...]:
        """Return every module that has parameters of its own."""
        return cls.places(model)
