"""The fingerprint of a base, which tells it from every other one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.anatomy import modules, parameters
from llm_adapters_lab.core.hooks import stand_back
from llm_adapters_lab.errors import WrongBase

SAMPLES = 4096
SHOWN = 4
# Half a unit in the last place of bf16, twice: the base may have been rounded for the one run and not for the other.
TOLERANCE = 2.0**-7


@torch.no_grad()
def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Return what tells one base from another: dtype, and for each tensor its shape, a digest and a few values.

    The digest is over 4,096 evenly spaced elements and tells any two bases of one dtype apart that differ there; the
    values serve to compare a base with its own rounded copy. Of a packed weight they are taken from its scales, whose
    last bit may depend on the device, so that there is no digest.
    """
    tensors: dict[str, Any] = {}
    dtypes = set()
    for module in model.modules():
        stand_back(module)
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    buffers = [f"{path}.weight" for path, module in modules(model) if weights.buffered(module)]
    for name, parameter in [*parameters(model), *((name, None) for name in buffers)]:
        if tied.get(name) in tensors:  # offloaded, it is a parameter of its own
            continue
        host = model.get_submodule(name.rpartition(".")[0])
        shape = reversed(weights.dims(host) or ()) if parameter is None else parameter.shape
        entry: dict[str, Any] = {"shape": list(shape)}
        held = name.endswith("weight") and weights.packed(host)
        with weights.present(host):
            told = weights.scales(host) if held else host.get_parameter(name.rpartition(".")[2])
        if told is not None and told.is_floating_point() and told.device.type != "meta":
            flat = told.detach().reshape(-1)
            picked = flat[_spread(flat.numel(), SAMPLES).to(flat.device)].float().cpu()
            entry["values"] = picked[_spread(len(picked), SHOWN)].tolist()
            if parameter is not None and not held:
                entry["digest"] = hashlib.sha256(picked.numpy().tobytes()).hexdigest()[:12]
                dtypes.add(str(parameter.dtype))
        tensors[name] = entry
    return {"dtype": ", ".join(sorted(dtypes)), "tensors": tensors}


def _spread(size: int, count: int) -> torch.Tensor:
    return torch.linspace(0, size - 1, min(size, count), dtype=torch.float64).long()


def _compare(saved: dict[str, Any], present: dict[str, Any], folder: Path) -> None:
    before, now = saved.get("tensors", {}), present["tensors"]
    faults = [f"{name} is missing" for name in before if name not in now]
    faults += [f"{name} is new" for name in now if name not in before]
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        if "values" not in old or "values" not in new:
            continue  # packed in a way that does not tell
        if old["shape"] != new["shape"]:
            faults.append(f"{name} is {tuple(new['shape'])}, was {tuple(old['shape'])}")
        elif "digest" in old and "digest" in new and saved.get("dtype") == present["dtype"]:
            faults += [f"{name} has other values"] if old["digest"] != new["digest"] else []
        elif any(abs(a - b) > 1e-4 + TOLERANCE * abs(b) for a, b in zip(old["values"], new["values"], strict=True)):
            faults.append(f"{name} has other values")
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise WrongBase(
            f"The adapter in {folder} was trained on another base: {'; '.join(sorted(faults)[:5])}{more}. "
            "Load the base named in its adapter.json. Nothing was loaded."
        )


def base_hash(base_print: dict[str, Any]) -> str:
    """Return the SHA-256 of a base's fingerprint: of names, shapes, dtype and 4,096 values of every tensor."""
    return hashlib.sha256(json.dumps(base_print, sort_keys=True).encode()).hexdigest()
