"""The fingerprint of a base, which identifies its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.anatomy import base_modules, base_parameters
from llm_adapters_lab.core.hooks import restore_parameters
from llm_adapters_lab.errors import BadSpec, WrongBase

SAMPLES = 4096
SHOWN = 4
TOLERANCE = 2.0**-7
"""Relative; twice half a unit in the last place of bf16: either base may have been rounded."""


@torch.no_grad()
def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Return the dtype of a base, and for each tensor its shape, a digest and a few values.

    The digest of 4,096 evenly spaced elements distinguishes bases of one dtype that differ in any of them; the values
    serve to compare a base with a rounded copy. For a packed weight they are taken from its scales, without a digest,
    as the last bit of scales may depend on the device.
    """
    tensors: dict[str, Any] = {}
    dtypes = set()
    for module in model.modules():
        restore_parameters(module)
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    buffers = [f"{path}.weight" for path, module in base_modules(model) if weights.has_packed_buffers(module)]
    for name, parameter in [*base_parameters(model), *((name, None) for name in buffers)]:
        if tied.get(name) in tensors:  # a separate parameter if it is offloaded
            continue
        host = model.get_submodule(name.rpartition(".")[0])
        shape = reversed(weights.dims(host) or ()) if parameter is None else parameter.shape
        entry: dict[str, Any] = {"shape": list(shape)}
        packed = name.endswith("weight") and weights.is_quantized(host)
        with weights.on_device(host):
            source = weights.scales(host) if packed else host.get_parameter(name.rpartition(".")[2])
        if source is not None and source.is_floating_point() and source.device.type != "meta":
            flat = source.detach().reshape(-1)
            picked = flat[_spaced(flat.numel(), SAMPLES).to(flat.device)].float().cpu()
            entry["values"] = picked[_spaced(len(picked), SHOWN)].tolist()
            if parameter is not None and not packed:
                entry["digest"] = hashlib.sha256(picked.numpy().tobytes()).hexdigest()[:12]
                dtypes.add(str(parameter.dtype))
        tensors[name] = entry
    return {"dtype": ", ".join(sorted(dtypes)), "tensors": tensors}


def _spaced(size: int, count: int) -> torch.Tensor:
    return torch.linspace(0, size - 1, min(size, count), dtype=torch.float64).long()


def check_fingerprint(saved: Any, model: nn.Module, folder: Path) -> None:
    """Check that a model is the base of a saved fingerprint; `folder`, of the adapter, is for messages.

    Raises:
        WrongBase: it is another base; the message lists the differences.
        BadSpec: `saved` is not a fingerprint.
    """
    try:
        faults = _differences(saved, fingerprint(model))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise BadSpec(f"{folder / 'base.json'} is no fingerprint of a base ({error!r}). Save it again.") from None
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise WrongBase(
            f"The adapter in {folder} was trained on another base: {'; '.join(sorted(faults)[:5])}{more}. "
            "Load the base named in its adapter.json. Nothing was loaded."
        )


def _differences(saved: dict[str, Any], present: dict[str, Any]) -> list[str]:
    before, now = saved.get("tensors", {}), present["tensors"]
    faults = [f"{name} is missing" for name in before if name not in now]
    faults += [f"{name} is new" for name in now if name not in before]
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        if "values" not in old or "values" not in new:
            continue  # the scales of a packed weight could not be read
        if old["shape"] != new["shape"]:
            faults.append(f"{name} is {tuple(new['shape'])}, was {tuple(old['shape'])}")
        elif "digest" in old and "digest" in new and saved.get("dtype") == present["dtype"]:
            faults += [f"{name} has other values"] if old["digest"] != new["digest"] else []
        elif any(abs(a - b) > 1e-4 + TOLERANCE * abs(b) for a, b in zip(old["values"], new["values"], strict=True)):
            faults.append(f"{name} has other values")
    return faults


def base_hash(base_print: dict[str, Any]) -> str:
    """Return the SHA-256 of a fingerprint: of names, shapes, dtype and up to 4,096 values of every tensor."""
    return hashlib.sha256(json.dumps(base_print, sort_keys=True).encode()).hexdigest()
