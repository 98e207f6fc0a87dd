"""Read and write the weight of a linear projection, whatever class holds it.

Everything else in the lab sees one orientation, (d_out, d_in), so GPT-2's transposed Conv1D is a case here only. So are
packed weights, which are read as the matrix they stand for, and offloaded ones, which are fetched to be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_adapters_lab.errors import CannotMerge


def dims(module: nn.Module) -> tuple[int, int] | None:
    """Return (d_in, d_out) of a linear projection, or None for any other module.

    Quantised layers count: they are subclasses of `torch.nn.Linear` or carry `in_features` and `out_features`.
    """
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(d_in, int) and isinstance(d_out, int):
        return d_in, d_out
    return None


def turned(module: nn.Module) -> bool:
    """Whether a module stores its weight as (d_in, d_out)."""
    return isinstance(module, Conv1D)


def packed(module: nn.Module) -> bool:
    """Whether a module holds its weight quantised: in fewer bits than a number has."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or buffered(module):
        return dims(module) is not None  # under other names
    return not weight.is_floating_point() or _library(weight) == "torchao"


def buffered(module: nn.Module) -> bool:
    """Whether a projection holds its packed weight as buffers under names of their own, as GPTQ and AWQ have it."""
    return hasattr(module, "qweight") and dims(module) is not None


def holds(module: nn.Module) -> bool:
    """Whether a module has parameters of its own, packed ones among them."""
    return buffered(module) or next(module.parameters(recurse=False), None) is not None


def offloaded(module: nn.Module) -> bool:
    """Whether a module's own parameters lie in memory or on disk and only come to the device while it runs."""
    return bool(has_offloaded_params(module))


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Hold the parameters of an offloaded module on its device; any other has them there anyway."""
    with align_module_device(module):
        yield


def device(module: nn.Module) -> torch.device:
    """Return the device on which a module computes."""
    for part in module.modules():
        if offloaded(part):
            hook: Any = part._hf_hook
            return torch.device(hook.execution_device)
        if (own := next(chain(part.parameters(recurse=False), part.buffers(recurse=False)), None)) is not None:
            return own.device
    return torch.device("cpu")


def count(parameter: torch.Tensor) -> int:
    """Return how many numbers a parameter stands for, whether it is packed, or DeepSpeed keeps it in shares."""
    state = getattr(parameter, "quant_state", None)
    return getattr(parameter, "ds_numel", parameter.numel()) if state is None else math.prod(state.shape)


def total(model: nn.Module) -> int:
    """Return how many numbers the parameters of a model stand for, also those that its projections hold as buffers."""
    total = sum(count(p) for p in model.parameters())
    for module in filter(buffered, model.modules()):
        added = bias(module)
        total += math.prod(dims(module) or ()) + (0 if added is None else added.numel())
    return total


def read(module: nn.Module) -> torch.Tensor:
    """Return the weight of a linear projection as (d_out, d_in), without a copy; dequantised, fp32, if it is packed.

    Raises:
        CannotMerge: the weight is no floating-point matrix, nor packed in a way that can be read.
    """
    with present(module):
        weight = getattr(module, "weight", None)
        if buffered(module):
            weight = _asked(module)
        elif isinstance(weight, torch.Tensor) and packed(module):
            weight = _unpacked(module, weight)
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or not weight.is_floating_point():
            raise CannotMerge(
                f"The weight of a {type(module).__name__} cannot be read as a plain matrix. "
                "Load the base unquantised (fp32, bf16 or fp16)."
            )
        return weight.T if turned(module) else weight


def passes_gradients(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a packed projection passes gradients on to its input; asked without its hooks."""
    if (where := device(module)).type == "meta":
        return True
    with present(module), torch.enable_grad():
        asked = torch.zeros(1, (dims(module) or (0,))[0], dtype=dtype, device=where, requires_grad=True)
        return bool(module.forward(asked).requires_grad)


def bias(module: nn.Module) -> torch.Tensor | None:
    """Return the bias of a projection, or None if it has none."""
    with present(module):
        found: torch.Tensor | None = getattr(module, "bias", None)
        return found


def scales(module: nn.Module) -> torch.Tensor | None:
    """Return the floating-point numbers that a packed weight is scaled with; None where they cannot be told.

    Unlike the codes, they hardly depend on where and from which dtype a weight was quantised.
    """
    weight = getattr(module, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return state.state2.absmax if state.nested else state.absmax  # type: ignore[no-any-return]
    if _library(weight) == "torchao":
        return getattr(weight, "scale", None)
    if (grouped := getattr(module, "scales", None)) is not None:
        return grouped  # type: ignore[no-any-return]
    rows = getattr(weight, "SCB", None)
    return rows if rows is not None else getattr(getattr(module, "state", None), "SCB", None)


def dense(module: nn.Module, like: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the plain projection that a packed one stands for.

    Args:
        module: the packed one.
        like: a module of the class it was quantised from.
        dtype: of what is returned.

    Raises:
        CannotMerge: the weight cannot be read.
    """
    weight, bias = read(module).to(dtype), getattr(module, "bias", None)
    d_out, d_in = weight.shape
    plain: nn.Module
    with torch.device("meta"):
        if turned(like):
            plain, weight = Conv1D(d_out, d_in), weight.T.contiguous()
        else:
            plain = nn.Linear(d_in, d_out, bias=bias is not None)
    plain.weight = nn.Parameter(weight)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().to(dtype))
    return plain.train(module.training)


def _library(weight: object) -> str:
    return type(weight).__module__.partition(".")[0]


def _unpacked(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    if _library(weight) == "torchao":
        return weight.dequantize().float()
    if _library(weight) == "bitsandbytes":
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight  # imports it

        with torch.no_grad():
            found: torch.Tensor = dequantize_bnb_weight(module.get_parameter("weight"), getattr(module, "state", None))
            return found.float()
    return weight


def _asked(module: Any) -> torch.Tensor:
    """Return the weight of a projection that only its own kernel can read: what it makes of the unit vectors."""
    bias, module.bias = module.bias, None
    try:
        with torch.no_grad():
            unit = torch.eye(module.in_features, dtype=module.scales.dtype, device=module.qweight.device)
            return module.forward(unit).T.float()  # type: ignore[no-any-return]
    finally:
        module.bias = bias


def own(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return fp32 copies of a module's own parameters by name, a projection's weight as (d_out, d_in).

    Raises:
        CannotMerge: one of them cannot be read.
    """
    with present(module):
        named: dict[str, torch.Tensor] = dict(module.named_parameters(recurse=False))
        if dims(module) is not None:
            named["weight"] = read(module)
            if (added := getattr(module, "bias", None)) is not None:
                named["bias"] = added
        if quantised := [name for name, p in named.items() if not p.is_floating_point()]:
            raise CannotMerge(
                f"{', '.join(quantised)} of a {type(module).__name__} is quantised and cannot be read as it is. "
                "Load the base unquantised (fp32, bf16 or fp16)."
            )
        return {name: p.detach().float().clone() for name, p in named.items()}


@torch.no_grad()
def write(module: nn.Module, changed: dict[str, torch.Tensor]) -> None:
    """Replace own parameters of a module in place.

    Args:
        module: a module that `own` accepts.
        changed: new values by name, in the orientation of `own`, of any floating dtype.
    """
    for name, value in changed.items():
        _turned(module, name, getattr(module, name)).copy_(value)


def _turned(module: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T if name == "weight" and turned(module) else tensor
