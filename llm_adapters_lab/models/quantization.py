"""Bases in fewer bits: 8 or 4 of them for each weight of a projection, by bitsandbytes or as a checkpoint has them.

Only projections are quantised; embeddings, output head, norms and biases stay as they are, and so do adapters, which
train beside the packed weights. nf4: 4-bit normal floats with one scale for 64 weights; nf4-double: the scales are
quantised too; int8: one scale a row, and activations in 8 bits but for outlier features. Checkpoints of GPTQ, AWQ and
torchao stay packed; those of compressed-tensors are unpacked while they are loaded.

Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 (NF4, double quantisation); Dettmers et al. 2022,
arXiv:2208.07339 (LLM.int8).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_adapters_lab.core import quantized_formats, weights
from llm_adapters_lab.core.packed import forget
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models.spec import Quantization

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
    present = quantized_formats.stored(config)
    if quantization != "none":
        quantized_formats.require(quantization, f"quantization = {quantization}", ", or set quantization to none")
        if base.endswith(".gguf"):
            said = "transformers unpacks a GGUF file while it reads it"
            raise BadSpec(f"{base} cannot be loaded as {quantization}: {said}.")
        if present not in ("none", quantization):
            said = f"{base} is quantised already, by {present}, and cannot be as {quantization}"
            raise BadSpec(f"{said}. Set it to none.")
    quantized_formats.require(present, f"{base} is quantised by {present}, and that")
    if not base.endswith(".gguf"):
        quantized_formats.check(base, config)


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
    if quantized_formats.stored(model.config) in quantized_formats.UNPACKED:
        forget(model)


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
    bits, group = quantized_formats.grouping(model.config)
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
