"""Quantised bases: schemes of checkpoints, the libraries that read them, and dequantising a loaded model.

Checkpoints of bitsandbytes, GPTQ, AWQ and torchao stay packed. GGUF files and checkpoints of compressed-tensors are
dequantised as they load; the compressed-tensors library itself would do so when the model is first called.
"""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, cast

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.sublayers import base_modules
from llm_adapters_lab.errors import BadSpec, CannotInject, CannotMerge

LIBRARIES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("int8", "nf4", "nf4-double", "fp4", "fp4-double"), ("bitsandbytes",)),
    "compressed-tensors": ("compressed_tensors",),
    "torchao": ("torchao",),
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
}
"""Packages that transformers needs to load a scheme, by their import names."""
EXTRAS = {"bitsandbytes": "quantized", "compressed_tensors": "quantized"}
"""The extra of the lab that installs a package; the others have to be installed separately."""
UNPACKED_ON_LOAD = ("gguf", "compressed-tensors")
"""Schemes that are dequantised as they load."""


def require_libraries(quantization: str, what: str, otherwise: str = "") -> None:
    """Check that the libraries of a scheme are installed; `what` begins the error message, `otherwise` ends it.

    Raises:
        BadSpec: one is not installed; the message has the command that installs it.
    """
    if missing := [name for name in LIBRARIES.get(quantization, ()) if importlib.util.find_spec(name) is None]:
        wanted = " ".join(f'"llm-adapters-lab[{EXTRAS[name]}]"' if name in EXTRAS else name for name in missing)
        raise BadSpec(
            f"{what} needs {' and '.join(missing).replace('_', '-')}, which {'is' if len(missing) == 1 else 'are'} not "
            f"installed. Install with pip install {wanted}{otherwise}."
        )


def check_config(base: str, config: Any) -> None:
    """Check the quantization_config in the configuration of a base.

    Raises:
        BadSpec: transformers would reject it later, or not know the method and leave the weights random.
    """
    if getattr(config, "quantization_config", None) is None:
        return
    from transformers.quantizers.auto import AutoQuantizationConfig

    try:
        with quiet_loading(config):
            AutoQuantizationConfig.from_dict(dict(_fields(config)))
    except Exception as error:  # each method validates its fields in its own way
        reason = str(error).strip().partition("\n")[0]
        raise BadSpec(f"The quantization_config in config.json of {base} cannot be used: {reason}") from error


@contextmanager
def quiet_loading(config: Any) -> Iterator[None]:
    """Redirect the output of gptqmodel, which prints a banner and its progress, to stderr: stdout may be parsed."""
    with redirect_stdout(sys.stderr) if stored_scheme(config) in ("gptq", "awq") else nullcontext():
        yield


def prepare_config(config: Any) -> dict[str, Any]:
    """Set what a checkpoint's configuration needs for training, in place.

    By default gptqmodel chooses the fastest kernel, and most of those do not propagate gradients.

    Returns:
        Further options of `from_pretrained`: gptqmodel chooses a kernel for the device that it loads onto.
    """
    found, fields = stored_scheme(config), _fields(config)
    if found == "compressed-tensors":
        fields["dequantize"] = True
    if found not in ("gptq", "awq"):
        return {}
    if fields.get("backend") in (None, "auto", "autoawq"):
        fields["backend"] = "auto_trainable"
    return {"device_map": {"": torch.cuda.current_device()}} if torch.cuda.is_available() else {}


def stored_scheme(config: Any) -> str:
    """Return the quantisation of a checkpoint's files: "none", a scheme of bitsandbytes such as "nf4", or a method."""
    if not (fields := _fields(config)):
        return "none"
    method = str(fields.get("quant_method") or "bitsandbytes").rpartition(".")[2].lower().replace("_", "-")
    if "bitsandbytes" not in method and "bits-and-bytes" not in method:
        return method
    if fields.get("load_in_8bit"):
        return "int8"
    double = "-double" if fields.get("bnb_4bit_use_double_quant") else ""
    return f"{fields.get('bnb_4bit_quant_type', 'fp4')}{double}"


def loaded_scheme(config: Any) -> str:
    """Return the quantisation that a checkpoint has once loaded: "none" if it is dequantised as it loads."""
    return "none" if (found := stored_scheme(config)) in UNPACKED_ON_LOAD else found


def scheme(model: nn.Module) -> str:
    """Return the quantisation of a loaded model: "none", "int8", "nf4", "nf4-double", or a method such as "gptq"."""
    return loaded_scheme(model.config) if any(weights.is_quantized(module) for module in model.modules()) else "none"


def bits_and_group_size(config: Any) -> tuple[int, int]:
    """Return the bits of a packed weight and the number that share a scale (0: a whole row); (0, 0) if unknown."""
    fields = _fields(config)
    if bits := _number(fields, "bits") or _number(fields, "w_bit"):
        return bits, _number(fields, "group_size") or _number(fields, "q_group_size")
    kind = _part(_part(fields, "quant_type"), "default")
    if digits := re.search(r"(\d)weight", str(kind.get("_type")).lower()):
        return int(digits[1]), _number(_part(kind, "_data"), "group_size")
    return 0, 0


def _number(fields: dict[str, Any], name: str) -> int:
    return found if isinstance(found := fields.get(name), int) and found > 0 else 0


def _part(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return found if isinstance(found := fields.get(name), dict) else {}


def _fields(config: Any) -> dict[str, Any]:
    found = getattr(config, "quantization_config", None) or {}
    fields: dict[str, Any] = found if isinstance(found, dict) else getattr(found, "to_dict", dict)()
    return fields


def check_gradients(model: nn.Module) -> None:
    """Check that every kind of packed projection propagates gradients; those that quantise their input do not.

    Raises:
        CannotInject: one does not; the message names it.
    """
    packed = [(path, m) for path, m in base_modules(model) if weights.is_quantized(m)]
    for path, module in {(type(m), type(getattr(m, "weight", None))): (path, m) for path, m in packed}.values():
        if not weights.passes_gradients(module, model.dtype):  # type: ignore[arg-type]
            raise CannotInject(
                f"{path} is quantised in a way ({scheme(model)}) that does not propagate gradients, so adapters would "
                "be trained wrongly. Use a checkpoint in which only weights are quantised, or an unquantised one."
            )


def plain_projections(model: nn.Module) -> dict[str, nn.Module]:
    """Return a plain projection, in the dtype of the model, for each packed one, by path.

    Raises:
        CannotMerge: one of them cannot be read; the message names it.
    """
    config, dtype = copy.deepcopy(model.config), cast(torch.dtype, model.dtype)
    config.quantization_config = None  # type: ignore[union-attr]
    with torch.device("meta"):
        skeleton = type(model)(config)
    found = {}
    for path, module in model.named_modules():
        if weights.is_quantized(module):
            try:
                weight = weights.read(module).to(dtype)
            except CannotMerge as error:
                raise CannotMerge(f"{path}: {error}") from None
            plain: Any = skeleton.get_submodule(path)
            bias = getattr(module, "bias", None)
            plain.weight = nn.Parameter(weight.T.contiguous() if weights.is_transposed(plain) else weight)
            plain.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype))
            found[path] = plain.train(module.training)
    return found


def dequantize(model: nn.Module, plain: dict[str, nn.Module]) -> None:
    """Replace the packed projections of a model by those of `plain_projections`, in place."""
    for path, module in plain.items():
        model.set_submodule(path, module)
    model.__dict__.pop("hf_device_map", None)
    forget_quantization(model)


def forget_quantization(model: nn.Module) -> None:
    """Remove what transformers records about quantisation from a dequantised model, so that it saves as a plain one."""
    model.hf_quantizer = None  # type: ignore[assignment]
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method", "is_quantized"):
        model.__dict__.pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    loaded: Any = model
    loaded._weight_conversions = [c for c in getattr(model, "_weight_conversions", None) or () if _is_reversible(c)]


def _is_reversible(conversion: Any) -> bool:
    """Return whether saving can undo a conversion of weights done in loading; it cannot undo a dequantisation."""
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True
