"""Quantised weights in a loaded model: which scheme they have, whether gradients pass, and how to unpack them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.anatomy import modules
from llm_adapters_lab.core.quantized_formats import named
from llm_adapters_lab.errors import CannotInject, CannotMerge


def scheme(model: nn.Module) -> str:
    """Return how a model is quantised: "none", "int8", "nf4", "nf4-double" or the method's name, as "gptq"."""
    return named(model.config) if any(weights.packed(module) for module in model.modules()) else "none"


def check_gradients(model: nn.Module) -> None:
    """Refuse packed projections through which nothing can be trained, such as those that round their input too.

    Raises:
        CannotInject: one of them passes no gradient on.
    """
    kinds = {(type(m), type(getattr(m, "weight", None))): (path, m) for path, m in modules(model) if weights.packed(m)}
    for path, module in kinds.values():
        if not weights.passes_gradients(module, model.dtype):  # type: ignore[arg-type]
            raise CannotInject(
                f"{path} is quantised in a way ({scheme(model)}) that passes no gradient on, so that adapters would be "
                "trained wrongly. Take a checkpoint in which only weights are quantised, or an unquantised one."
            )


def dequantize(model: nn.Module, plain: dict[str, nn.Module]) -> None:
    """Put plain projections in the place of packed ones, so that the model is one that never was quantised.

    Args:
        model: changed in place.
        plain: a module for the path of every packed one.
    """
    for path, module in plain.items():
        model.set_submodule(path, module)
    model.__dict__.pop("hf_device_map", None)
    forget(model)


def forget(model: nn.Module) -> None:
    """Take from a model that has been unpacked what transformers keeps of how it was quantised, also for saving it."""
    model.hf_quantizer = None  # type: ignore[assignment]
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method", "is_quantized"):
        model.__dict__.pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    loaded: Any = model
    loaded._weight_conversions = [c for c in getattr(model, "_weight_conversions", None) or () if _reversible(c)]


def _reversible(conversion: Any) -> bool:
    """Whether what was done to weights in loading can be undone in saving; unpacking, for one, cannot."""
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def unpacked(model: nn.Module) -> dict[str, nn.Module]:
    """Return a plain projection, in the dtype of the model, for the path of every packed one.

    Raises:
        CannotMerge: one of them cannot be read; the message names it.
    """
    config: Any = copy.deepcopy(model.config)
    config.quantization_config = None
    with torch.device("meta"):
        plain = type(model)(config)
    found = {}
    for path, module in model.named_modules():
        if weights.packed(module):
            try:
                found[path] = weights.dense(module, plain.get_submodule(path), model.dtype)  # type: ignore[arg-type]
            except CannotMerge as error:
                raise CannotMerge(f"{path}: {error}") from None
    return found
