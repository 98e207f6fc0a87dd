"""Quantised bases: projections in 8 or 4 bits, quantised by bitsandbytes or stored so in the checkpoint.

Only projections are quantised; embeddings, output head, norms and biases are not, and neither are adapters, which train
beside the packed weights. nf4: 4-bit normal floats with one scale per 64 weights; nf4-double: the scales are quantised
too; int8: one scale per row, and activations in 8 bits except outlier features. Checkpoints of GPTQ, AWQ and torchao
stay packed; those of compressed-tensors are unpacked while they load.

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

from llm_adapters_lab.core import quantized, weights
from llm_adapters_lab.core.quantized import forget_quantization
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models.spec import Quantization

BLOCK = 64
"""Weights per scale in nf4."""
SCALES = 256
"""Scales per second-level scale, in double quantisation."""

# It warns at every call that int8 computes in fp16, and of kernels that it would download.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def settings(quantization: Quantization, dtype: torch.dtype) -> Any:
    """Return the configuration with which transformers quantises a base while it loads.

    Args:
        quantization: any but "none".
        dtype: dtype in which the projections compute.
    """
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quantization == "nf4-double",
        bnb_4bit_compute_dtype=dtype,
    )


def check(base: str, config: Any, quantization: Quantization) -> None:
    """Refuse a quantisation that is not possible.

    Args:
        base: the base as given in a spec.
        config: configuration of the model, as read by transformers; None if not yet known.
        quantization: the quantisation given in a spec.

    Raises:
        BadSpec: a library is not installed; or the base is a GGUF file, is quantised in another way, or has a
            quantization_config that transformers does not accept.
    """
    present = quantized.stored_scheme(config)
    if quantization != "none":
        quantized.require_libraries(quantization, f"quantization = {quantization}", ", or set quantization to none")
        if base.endswith(".gguf"):
            raise BadSpec(
                f"{base} cannot be loaded as {quantization}: transformers dequantises a GGUF file as it reads."
            )
        if present not in ("none", quantization):
            raise BadSpec(
                f"{base} is already quantised by {present} and cannot be loaded as {quantization}. "
                "Set quantization to none."
            )
    quantized.require_libraries(present, f"{base} is quantised by {present}, and that")
    if not base.endswith(".gguf"):
        quantized.check_config(base, config)


def pin_packing(model: nn.Module) -> None:
    """Fix the packing of a model's weights, and forget the quantisation of a model that was unpacked as it loaded.

    On a CPU, bitsandbytes (with AVX512-BF16) and gptqmodel (in 16 bits) repack 4-bit weights in another order when a
    model is first evaluated; no gradient passes through it after that.

    Raises:
        BadSpec: see `check_widths`; or a bitsandbytes checkpoint has weights that are not packed.
    """
    for path, module in model.named_modules():
        ours = type(module).__module__.startswith("bitsandbytes") and weights.dims(module)
        if ours and not weights.is_quantized(module) and not weights.is_offloaded(module):
            raise BadSpec(
                f"The config.json of the base says that bitsandbytes quantised it, but the weight of {path} is not "
                "quantised. Remove quantization_config from it."
            )
    four = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    for module in model.modules():
        for name, value in (("support_avx512bf16_for_cpu", False), ("linear_mode", "train")):
            if hasattr(module, name):
                setattr(module, name, value)
    check_widths([module for module in four if weights.device(module).type == "cpu"])
    if quantized.stored_scheme(model.config) in quantized.UNPACKED_ON_LOAD:
        forget_quantization(model)


def check_widths(four: Sequence[nn.Module]) -> None:
    """Refuse widths that bitsandbytes computes wrongly on a CPU: rows that are not a whole number of blocks.

    Args:
        four: projections that are, or would be, in 4 bits on a CPU.

    Raises:
        BadSpec: one of them has such rows.
    """
    for module in four:
        d_in, _ = weights.dims(module) or (0, 0)
        if d_in % BLOCK:
            raise BadSpec(
                f"A projection of this base has {d_in} input features, and on a CPU the 4-bit results of bitsandbytes "
                f"are correct only for multiples of {BLOCK}. Choose quantization: int8, or a GPU."
            )


def projections(model: nn.Module) -> list[nn.Module]:
    """Return the modules of an unquantised model that quantisation would pack."""
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = [*get_keys_to_not_convert(model), *(getattr(model, "_keep_in_fp32_modules", None) or ())]
    plain = [(name, m) for name, m in model.named_modules() if type(m) is nn.Linear or isinstance(m, Conv1D)]
    return [module for name, module in plain if should_convert_module(name, kept)]


def weight_bytes(model: nn.Module, quantization: str, dtype: torch.dtype) -> int:
    """Return the bytes that the weights of a base take, from a model without weights.

    Args:
        model: the unquantised model, on any device.
        quantization: a name that `scheme` returns; counts as none if the checkpoint does not give its bits.
        dtype: dtype of what is not quantised.
    """
    total = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    bits, group = quantized.bits_and_group_size(model.config)
    for module in projections(model) if quantization != "none" else ():
        d_in, d_out = weights.dims(module) or (0, 0)
        held = packed_bytes(d_in, d_out, quantization, bits, group)
        total += held - d_in * d_out * dtype.itemsize if held else 0
    return total


def packed_bytes(d_in: int, d_out: int, quantization: str, bits: int = 0, group: int = 0) -> int:
    """Return the bytes that a packed projection takes, scales included; 0 if unknown."""
    n = d_in * d_out
    blocks = -(-n // BLOCK)
    if quantization == "int8":
        return n + 4 * d_out
    if quantization in ("nf4", "fp4"):
        return -(-n // 2) + 4 * blocks + 4 * 16
    if quantization in ("nf4-double", "fp4-double"):
        return -(-n // 2) + blocks + 4 * -(-blocks // SCALES) + 4 * (16 + 256 + 1)
    return (n * bits + n // (group or d_in) * (16 + bits)) // 8 if bits else 0
