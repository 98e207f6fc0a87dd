"""Bases in fewer bits: 8 or 4 of them for each weight of a projection, by bitsandbytes or as a checkpoint has them.

Only projections are quantised; embeddings, output head, norms and biases stay as they are, and so do adapters, which
train beside the packed weights. nf4: 4-bit normal floats with one scale for 64 weights; nf4-double: the scales are
quantised too; int8: one scale a row, and activations in 8 bits but for outlier features. Checkpoints of GPTQ, AWQ and
torchao stay packed; those of compressed-tensors are unpacked while they are loaded.

Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 (NF4, double quantisation); Dettmers et al. 2022,
arXiv:2208.07339 (LLM.int8).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_adapters_lab import formats, weights
from llm_adapters_lab.anatomy import modules
from llm_adapters_lab.errors import BadSpec, CannotInject, CannotMerge
from llm_adapters_lab.formats import named

Quantization = Literal["none", "int8", "nf4", "nf4-double"]
BLOCK = 64
"""Weights that share a scale in nf4."""
SCALES = 256
"""Scales that share one themselves, in double quantisation."""

# It warns at every single call that int8 works through fp16, and of kernels that it would fetch from the web.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def settings(quantization: Quantization, dtype: torch.dtype) -> Any:
    """Return what transformers has to know to quantise a base while it is loaded.

    Args:
        quantization: any but "none".
        dtype: in which the projections compute.
    """
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    double = quantization == "nf4-double"
    four: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=double, **four)


def check(base: str, config: Any, quantization: Quantization) -> None:
    """Refuse a quantisation that cannot be had.

    Args:
        base: as in a spec.
        config: of the model, as transformers has read it; None if that is not known yet.
        quantization: as in a spec.

    Raises:
        BadSpec: a library is not installed, or the base is quantised in another way, or a GGUF file, or says of its
            own quantisation what transformers does not take.
    """
    present = formats.stored(config)
    if quantization != "none":
        formats.require(quantization, f"quantization = {quantization}", ", or set quantization to none")
        if base.endswith(".gguf"):
            said = "transformers unpacks a GGUF file while it reads it"
            raise BadSpec(f"{base} cannot be loaded as {quantization}: {said}.")
        if present not in ("none", quantization):
            said = f"{base} is quantised already, by {present}, and cannot be as {quantization}"
            raise BadSpec(f"{said}. Set it to none.")
    formats.require(present, f"{base} is quantised by {present}, and that")
    if not base.endswith(".gguf"):
        formats.check(base, config)


def scheme(model: nn.Module) -> str:
    """Return how a model is quantised: "none", "int8", "nf4", "nf4-double" or the method's name, as "gptq"."""
    return named(model.config) if any(weights.packed(module) for module in model.modules()) else "none"


def settle(model: nn.Module) -> None:
    """Keep packed weights as they are for as long as the model lives, and make one that was unpacked a plain one.

    On a CPU, bitsandbytes (with AVX512-BF16) and gptqmodel (in 16 bits) pack 4-bit weights anew, in another order, when
    a model is first evaluated; trained after that, it would pass no gradient on.

    Raises:
        BadSpec: see `check_widths`; or a checkpoint of bitsandbytes holds weights that are not packed.
    """
    for path, module in model.named_modules():
        ours = type(module).__module__.startswith("bitsandbytes") and weights.dims(module)
        if ours and not weights.packed(module) and not weights.offloaded(module):
            said = "The configuration of the base says that it is quantised by bitsandbytes"
            raise BadSpec(f"{said}, and the weight of {path} is not. Take quantization_config out of its config.json.")
    four = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    for module in model.modules():
        for name, value in (("support_avx512bf16_for_cpu", False), ("linear_mode", "train")):
            if hasattr(module, name):
                setattr(module, name, value)
    check_widths([module for module in four if weights.device(module).type == "cpu"])
    if formats.stored(model.config) in formats.UNPACKED:
        forget(model)


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


def check_widths(four: Sequence[nn.Module]) -> None:
    """Refuse what bitsandbytes gets wrong: on a CPU it unpacks rows that are no whole number of blocks to other values.

    Args:
        four: projections that are, or would be, in 4 bits on the CPU.

    Raises:
        BadSpec: one of them has such rows.
    """
    for module in four:
        d_in, _ = weights.dims(module) or (0, 0)
        if d_in % BLOCK:
            raise BadSpec(
                f"A projection of this base reads {d_in} features, and on a CPU bitsandbytes computes in 4 bits right "
                f"only for multiples of {BLOCK}. Choose quantization: int8, or a GPU."
            )


def projections(model: nn.Module) -> list[nn.Module]:
    """Return the modules of an unquantised model that quantising it would pack."""
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = [*get_keys_to_not_convert(model), *(getattr(model, "_keep_in_fp32_modules", None) or ())]
    plain = [(name, m) for name, m in model.named_modules() if type(m) is nn.Linear or isinstance(m, Conv1D)]
    return [module for name, module in plain if should_convert_module(name, kept)]


def size(model: nn.Module, quantization: str, dtype: torch.dtype) -> int:
    """Return the bytes of a base's weights, from a model without any.

    Args:
        model: unquantised, on any device.
        quantization: as `scheme` names it; one whose bits the checkpoint does not tell counts as unquantised.
        dtype: of what is not quantised.
    """
    total = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    bits, group = formats.grouping(model.config)
    for module in projections(model) if quantization != "none" else ():
        d_in, d_out = weights.dims(module) or (0, 0)
        held = packed_size(d_in, d_out, quantization, bits, group)
        total += held - d_in * d_out * dtype.itemsize if held else 0
    return total


def packed_size(d_in: int, d_out: int, quantization: str, bits: int = 0, group: int = 0) -> int:
    """Return the bytes that one packed projection takes, scales included; 0 where that is not known."""
    n = d_in * d_out
    blocks = -(-n // BLOCK)
    if quantization == "int8":
        return n + 4 * d_out
    if quantization in ("nf4", "fp4"):
        return -(-n // 2) + 4 * blocks + 4 * 16
    if quantization in ("nf4-double", "fp4-double"):
        return -(-n // 2) + blocks + 4 * -(-blocks // SCALES) + 4 * (16 + 256 + 1)
    return (n * bits + n // (group or d_in) * (16 + bits)) // 8 if bits else 0


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
