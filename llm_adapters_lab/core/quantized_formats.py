"""Formats of quantised checkpoints: what a configuration says of it, which library reads it, and what that is told.

Checkpoints of bitsandbytes, GPTQ, AWQ and torchao stay packed. Those of compressed-tensors are unpacked while they are
loaded, as GGUF files are: the library itself would unpack them all when the model is first called.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import torch

from llm_adapters_lab.errors import BadSpec

LIBRARIES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("int8", "nf4", "nf4-double", "fp4", "fp4-double"), ("bitsandbytes",)),
    "compressed-tensors": ("compressed_tensors",),
    "torchao": ("torchao",),
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
}
"""What transformers needs to load a quantisation, by the names of the imports."""
EXTRAS = {"bitsandbytes": "quantized", "compressed_tensors": "quantized"}
"""Which extra of the lab brings a library; any other has to be installed by itself."""
UNPACKED = ("gguf", "compressed-tensors")
"""Formats that are unpacked while they are loaded."""


def require(quantization: str, what: str, otherwise: str = "") -> None:
    """Refuse what a library is missing for.

    Args:
        quantization: as `stored` names it.
        what: would need it; begins the message.
        otherwise: what else could be done, for the end of the message.

    Raises:
        BadSpec: it is not installed; the message tells how to.
    """
    if missing := [name for name in LIBRARIES.get(quantization, ()) if importlib.util.find_spec(name) is None]:
        wanted = " ".join(f'"llm-adapters-lab[{EXTRAS[name]}]"' if name in EXTRAS else name for name in missing)
        named = " and ".join(missing).replace("_", "-")
        raise BadSpec(
            f"{what} needs {named}, which {'is' if len(missing) == 1 else 'are'} not installed. "
            f"Install with pip install {wanted}{otherwise}."
        )


def check(base: str, config: Any) -> None:
    """Refuse a checkpoint whose configuration of its quantisation cannot be used.

    Args:
        base: as in a spec.
        config: of the model, as transformers has read it; None if that is not known yet.

    Raises:
        BadSpec: transformers would refuse it later, or not know the method and leave the weights random.
    """
    if getattr(config, "quantization_config", None) is None:
        return
    from transformers.quantizers.auto import AutoQuantizationConfig

    try:
        with hushed(config):
            AutoQuantizationConfig.from_dict(dict(_fields(config)))
    except Exception as error:  # every method checks its fields in its own way
        said = str(error).strip().partition("\n")[0]
        raise BadSpec(f"The quantization_config in config.json of {base} cannot be used: {said}") from error


@contextmanager
def hushed(config: Any) -> Iterator[None]:
    """Let gptqmodel, which prints a banner and what it does, print to stderr: stdout may be read by a program."""
    with redirect_stdout(sys.stderr) if stored(config) in ("gptq", "awq") else nullcontext():
        yield


def prepare(config: Any) -> dict[str, Any]:
    """Write into a checkpoint's configuration what has to be known when it is loaded to be trained on.

    Left to itself, gptqmodel chooses the fastest kernel, and most of those pass no gradient on.

    Returns:
        Options that go with it: kernels are chosen for the device that a checkpoint is loaded onto.
    """
    found, fields = stored(config), _fields(config)
    if found == "compressed-tensors":
        fields["dequantize"] = True
    if found not in ("gptq", "awq"):
        return {}
    if fields.get("backend") in (None, "auto", "autoawq"):
        fields["backend"] = "auto_trainable"
    return {"device_map": {"": torch.cuda.current_device()}} if torch.cuda.is_available() else {}


def stored(config: Any) -> str:
    """Return the name of the quantisation of a checkpoint's files: one of the lab's, or that of its method."""
    if not (fields := _fields(config)):
        return "none"
    method = str(fields.get("quant_method") or "bitsandbytes").rpartition(".")[2].lower().replace("_", "-")
    if "bitsandbytes" not in method and "bits-and-bytes" not in method:
        return method
    if fields.get("load_in_8bit"):
        return "int8"
    double = "-double" if fields.get("bnb_4bit_use_double_quant") else ""
    return f"{fields.get('bnb_4bit_quant_type', 'fp4')}{double}"


def named(config: Any) -> str:
    """Return the name of the quantisation of a loaded checkpoint: "none" for one that has been unpacked."""
    return "none" if (found := stored(config)) in UNPACKED else found


def grouping(config: Any) -> tuple[int, int]:
    """Return the bits of a packed weight and how many share a scale, 0 for a whole row; (0, 0) if that is not told."""
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
