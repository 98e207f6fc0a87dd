"""What is known of a base before its weights are read."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import nn

from llm_adapters_lab.core import quantized_formats
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.models import loading
from llm_adapters_lab.models.spec import Quantization


@lru_cache(maxsize=8)
def outline(base: str, trust_remote_code: bool = False) -> tuple[nn.Module, Anatomy]:
    """Return a model without weights and its anatomy; the last few are kept.

    Raises:
        ModelUnavailable: the configuration was not found.
        UnknownAnatomy: the model is not a decoder whose parts can be told apart.
    """
    model = loading.skeleton(base, trust_remote_code=trust_remote_code)
    return model, Anatomy.of(model)


def named(model: Any, quantization: Quantization) -> str:
    """Return the quantisation of a base: the one that a spec asks for, else the one its files have."""
    return quantization if quantization != "none" else quantized_formats.named(model.config)
