"""Bases in fewer bits: 8 or 4 of them for each weight of a projection, by bitsandbytes or as a checkpoint has them.

Only projections are quantised; embeddings, output head, norms and biases stay as they are, and so do adapters, which
train beside the packed weights. nf4: 4-bit normal floats with one scale for 64 weights; nf4-double: the scales are
quantised too; int8: one scale a row, and activations in 8 bits but for outlier features.

Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 (NF4, double quantisation); Dettmers et al. 2022,
arXiv:2208.07339 (LLM.int8).
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_adapters_lab import weights
from llm_adapters_lab.errors import BadSpec, CannotMerge

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
        BadSpec: bitsandbytes is not installed, or the base is quantised in another way or a GGUF file.
    """
    if quantization == "none":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadSpec(
            f"quantization = {quantization} needs bitsandbytes, which is not installed. "
            'Install it with pip install "llm-adapters-lab[quantized]", or set quantization to none.'
        )
    if base.endswith(".gguf"):
        raise BadSpec(f"{base} cannot be loaded as {quantization}: transformers unpacks a GGUF file while it reads it.")
    if (present := named(config)) not in ("none", quantization):
        raise BadSpec(f"{base} is quantised already, by {present}, and cannot be as {quantization}. Set it to none.")


def declared(config: Any) -> dict[str, Any] | None:
    """Return what a checkpoint's configuration says of its own quantisation, or None if it has none."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    fields: dict[str, Any] = found if isinstance(found, dict) else getattr(found, "to_dict", dict)()
    return None if fields.get("quant_method") == "gguf" else fields  # those are unpacked while they are loaded


def named(config: Any) -> str:
    """Return the name of the quantisation that a configuration declares: one of the lab's, or that of its method."""
    if (fields := declared(config)) is None:
        return "none"
    method = str(fields.get("quant_method") or "bitsandbytes").rpartition(".")[2].lower()
    if "bitsandbytes" not in method and "bits_and_bytes" not in method:
        return method
    if fields.get("load_in_8bit"):
        return "int8"
    double = "-double" if fields.get("bnb_4bit_use_double_quant") else ""
    return f"{fields.get('bnb_4bit_quant_type', 'fp4')}{double}"


def scheme(model: nn.Module) -> str:
    """Return how a model is quantised: "none", "int8", "nf4", "nf4-double" or the method's name, as "gptq"."""
    return named(model.config) if any(weights.packed(module) for module in model.modules()) else "none"


def settle(model: nn.Module) -> None:
    """Keep packed weights as they are for as long as the model lives.

    On a CPU with AVX512-BF16, bitsandbytes packs 4-bit weights anew, in another order and for bf16, when a model is
    first evaluated; trained after that, it would pass no gradient on.

    Raises:
        BadSpec: see `check_widths`.
    """
    name = "support_avx512bf16_for_cpu"
    four = [module for module in model.modules() if hasattr(module, name)]
    for module in four:
        setattr(module, name, False)
    check_widths([module for module in four if weights.device(module).type == "cpu"])


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
    fields = declared(getattr(model, "config", None)) or {}
    for module in projections(model) if quantization != "none" else ():
        d_in, d_out = weights.dims(module) or (0, 0)
        held = packed_size(d_in, d_out, quantization, fields)
        total += held - d_in * d_out * dtype.itemsize if held else 0
    return total


def packed_size(d_in: int, d_out: int, quantization: str, fields: dict[str, Any]) -> int:
    """Return the bytes that one packed projection takes, scales included; 0 where that is not known."""
    n = d_in * d_out
    blocks = -(-n // BLOCK)
    if quantization == "int8":
        return n + 4 * d_out
    if quantization in ("nf4", "fp4"):
        return -(-n // 2) + 4 * blocks + 4 * 16
    if quantization in ("nf4-double", "fp4-double"):
        return -(-n // 2) + blocks + 4 * -(-blocks // SCALES) + 4 * (16 + 256 + 1)
    if bits := fields.get("bits") or fields.get("w_bit"):
        group = int(fields.get("group_size") or fields.get("q_group_size") or d_in)
        return n * int(bits) // 8 + n // (d_in if group < 1 else group) * (16 + int(bits)) // 8
    return 0


def dequantize(model: nn.Module, plain: dict[str, nn.Module]) -> None:
    """Put plain projections in the place of packed ones, so that the model is one that never was quantised.

    Args:
        model: changed in place.
        plain: a module for the path of every packed one.
    """
    for path, module in plain.items():
        model.set_submodule(path, module)
    model.hf_quantizer = None  # type: ignore[assignment]
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method", "is_quantized", "hf_device_map"):
        model.__dict__.pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def unpacked(model: nn.Module) -> dict[str, nn.Module]:
    """Return a plain projection, in the dtype of the model, for the path of every packed one.

    Raises:
        CannotMerge: one of them cannot be read; the message names it.
    """
    found = {}
    for path, module in model.named_modules():
        if weights.packed(module):
            try:
                found[path] = weights.dense(module, model.dtype)  # type: ignore[arg-type]
            except CannotMerge as error:
                raise CannotMerge(f"{path}: {error}") from None
    return found
