"""Read and write the weights of linear projections, whatever class holds them.

The rest of the lab sees one orientation, (d_out, d_in); only this module knows that GPT-2's Conv1D stores the
transpose. Packed weights are read as the matrix they represent, offloaded ones are loaded to be read.
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

on_device = align_module_device
"""Context manager: holds the parameters of an offloaded module on its device; does nothing for other modules."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without dropout; afterwards each module is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def dims(module: nn.Module) -> tuple[int, int] | None:
    """Return (d_in, d_out) of a linear projection, or None for any other module.

    Quantised layers count: they are subclasses of `torch.nn.Linear` or have `in_features` and `out_features`.
    """
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (d_in, d_out) if isinstance(d_in, int) and isinstance(d_out, int) else None


def is_transposed(module: nn.Module) -> bool:
    """Return whether a module stores its weight as (d_in, d_out)."""
    return isinstance(module, Conv1D)


def is_quantized(module: nn.Module) -> bool:
    """Return whether a module's weight is quantised (packed)."""
    if hasattr(type(module), "stored"):  # a matrix of a plain parameter, which may be spread over processes
        return False
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or has_packed_buffers(module):
        return dims(module) is not None  # stored under other names
    return not weight.is_floating_point() or _library(weight) == "torchao"


def has_packed_buffers(module: nn.Module) -> bool:
    """Return whether a projection stores its packed weight in buffers, as GPTQ and AWQ do."""
    return hasattr(module, "qweight") and dims(module) is not None


def has_parameters(module: nn.Module) -> bool:
    """Return whether a module has parameters of its own, including packed ones."""
    return has_packed_buffers(module) or next(module.parameters(recurse=False), None) is not None


def is_offloaded(module: nn.Module) -> bool:
    """Return whether a module's own parameters are kept in memory or on disk and loaded only while it runs."""
    return bool(has_offloaded_params(module))


def device(module: nn.Module) -> torch.device:
    """Return the device on which a module computes."""
    for part in module.modules():
        if is_offloaded(part):
            hook: Any = part._hf_hook
            return torch.device(hook.execution_device)
        if (tensor := next(chain(part.parameters(recurse=False), part.buffers(recurse=False)), None)) is not None:
            return tensor.device
    stored = getattr(module, "stored", None)  # of a matrix that is no module
    return torch.device("cpu") if stored is None else stored.device


def state(module: nn.Module) -> tuple[torch.Tensor, tuple[Any, ...]] | None:
    """Return the stored weight of a projection and what changes whenever what is computed from it would.

    None if its changes cannot be followed. Compare the weight by identity.
    """
    weight: Any = module._parameters.get("weight")
    weight = getattr(module, "stored", getattr(module, "qweight", None)) if weight is None else weight
    if not isinstance(weight, torch.Tensor) or weight.is_inference():
        return None
    if (kind := weight.device.type) == "meta" and (kind := device(module).type) == "meta":
        return None  # otherwise it is offloaded
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return weight, (weight._version, weight.dtype, weight.device, weight.data_ptr(), precision)


def numel(parameter: torch.Tensor) -> int:
    """Return the number of elements of a parameter, also if it is packed, or partitioned by DeepSpeed."""
    state = getattr(parameter, "quant_state", None)
    return getattr(parameter, "ds_numel", parameter.numel()) if state is None else math.prod(state.shape)


def num_parameters(model: nn.Module) -> int:
    """Return the number of parameters of a model, including those that projections store in buffers."""
    total = sum(numel(p) for p in model.parameters())
    for module in filter(has_packed_buffers, model.modules()):
        added = bias(module)
        total += math.prod(dims(module) or ()) + (0 if added is None else added.numel())
    return total


def read(module: nn.Module) -> torch.Tensor:
    """Return the weight (d_out, d_in) of a linear projection: a view, or dequantised to fp32 if it is packed.

    Raises:
        CannotMerge: the weight is not a floating-point matrix, nor packed in a way that can be read.
    """
    with on_device(module):
        weight = getattr(module, "weight", None)
        if has_packed_buffers(module):
            weight = _read_through_kernel(module)
        elif isinstance(weight, torch.Tensor) and is_quantized(module):
            weight = _dequantize(module, weight)
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or not weight.is_floating_point():
            raise CannotMerge(
                f"The weight of a {type(module).__name__} cannot be read as a plain matrix. "
                "Load the base unquantised (fp32, bf16 or fp16)."
            )
        return weight.T if is_transposed(module) else weight


def _dequantize(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    if _library(weight) == "torchao":
        return weight.dequantize().float()
    if _library(weight) == "bitsandbytes":
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight  # imports bitsandbytes

        with torch.no_grad():
            found: torch.Tensor = dequantize_bnb_weight(module.get_parameter("weight"), getattr(module, "state", None))
            return found.float()
    return weight


def _read_through_kernel(module: Any) -> torch.Tensor:
    """Return a weight that only the module's own kernel can read: its outputs for the unit vectors."""
    bias, module.bias = module.bias, None
    try:
        with torch.no_grad():
            unit = torch.eye(module.in_features, dtype=module.scales.dtype, device=module.qweight.device)
            return module.forward(unit).T.float()  # type: ignore[no-any-return]
    finally:
        module.bias = bias


def _library(weight: object) -> str:
    return type(weight).__module__.partition(".")[0]


def passes_gradients(module: nn.Module, dtype: torch.dtype) -> bool:
    """Return whether a packed projection propagates gradients to its input; its hooks are not called."""
    if (where := device(module)).type == "meta":
        return True
    with on_device(module), torch.enable_grad():
        x = torch.zeros(1, (dims(module) or (0,))[0], dtype=dtype, device=where, requires_grad=True)
        return bool(module.forward(x).requires_grad)


def bias(module: nn.Module) -> torch.Tensor | None:
    """Return the bias of a projection, or None if it has none."""
    if "bias" in module._parameters and "_hf_hook" not in module.__dict__:
        return module._parameters["bias"]  # in passing: adapters ask at every call
    with on_device(module):
        return getattr(module, "bias", None)


def scales(module: nn.Module) -> torch.Tensor | None:
    """Return the floating-point scales of a packed weight, or None if they cannot be read.

    Unlike the codes, they hardly depend on the device and dtype from which a weight was quantised.
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


def row_scale(embedding: nn.Module) -> torch.Tensor | float:
    """Return the factor by which an embedding multiplies its rows, as in Gemma."""
    factor = getattr(embedding, "embed_scale", 1.0)
    return factor.to(embedding.weight.dtype) if isinstance(factor, torch.Tensor) else factor  # type: ignore[arg-type]


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return fp32 copies of a module's own parameters by name, the weight of a projection as (d_out, d_in).

    Raises:
        CannotMerge: one of them cannot be read.
    """
    with on_device(module):
        named: dict[str, torch.Tensor] = dict(module.named_parameters(recurse=False))
        if dims(module) is not None:
            named["weight"] = read(module)
            if (added := getattr(module, "bias", None)) is not None:
                named["bias"] = added
        if quantised := [name for name, p in named.items() if not p.is_floating_point()]:
            raise CannotMerge(
                f"{', '.join(quantised)} of a {type(module).__name__} is quantised and cannot be read. "
                "Load the base unquantised (fp32, bf16 or fp16)."
            )
        return {name: p.detach().float().clone() for name, p in named.items()}


@torch.no_grad()
def write(module: nn.Module, changed: dict[str, torch.Tensor]) -> None:
    """Replace parameters of a module in place: by name, in the orientation of `own_tensors`, of any floating dtype."""
    for name, value in changed.items():
        tensor = getattr(module, name)
        (tensor.T if name == "weight" and is_transposed(module) else tensor).copy_(value)
