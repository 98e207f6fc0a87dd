"""The fingerprint of a base: its weights, and what else decides its outputs."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.config import shown
from llm_adapters_lab.core import weights
from llm_adapters_lab.core.anatomy import base_parameters
from llm_adapters_lab.core.hooks import restore_parameters
from llm_adapters_lab.core.sublayers import base_modules
from llm_adapters_lab.errors import BadSpec, WrongBase, listed

SAMPLES = 4096
SHOWN = 4
TOLERANCE = 2.0**-7
"""Relative; twice half a unit in the last place of bf16: either base may have been rounded."""

INDIFFERENT = r"^_|dtype$|version$|^architectures$|cache|quantization|initializ|drop|_token_id$|^output_|label"
"""Settings of a configuration that do not change what a base computes of tokens."""
PROBE = "Tokens of a text, 3.14 % of 2,718: <s> A(b)'s\n\tZürich – naïve 東京 ½"


@torch.no_grad()
def fingerprint(model: nn.Module, tokenizer: Any = None) -> dict[str, Any]:
    """Return the dtype of a base, for each tensor its shape, a digest and a few values, its settings and its tokenizer.

    The digest of 4,096 evenly spaced elements distinguishes bases of one dtype that differ in any of them; the values
    and the sketches, random projections of these elements, serve to compare a base with a rounded copy: they show
    changes that are larger than the rounding. For a packed weight the values are taken from its scales, without a
    digest, as the last bit of scales may depend on the device.
    """
    tensors: dict[str, Any] = {}
    sketches: dict[str, list[float]] = {}
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
                sketches[name] = _sketch(picked)
        tensors[name] = entry
    found = {"dtype": ", ".join(sorted(dtypes)), "tensors": tensors, "settings": _settings(model), "sketches": sketches}
    return found | ({"tokenizer": _tokens(tokenizer)} if tokenizer is not None else {})


def _settings(model: nn.Module) -> dict[str, Any]:
    """Return what decides the outputs besides the parameters: the configuration, and values of all buffers."""
    config: Any = getattr(model, "config", None)
    fields = json.loads(json.dumps(config.to_dict(), default=str)) if hasattr(config, "to_dict") else {}
    found = {key: value for key, value in sorted(fields.items()) if not re.search(INDIFFERENT, key)}
    for path, module in base_modules(model):
        if weights.is_quantized(module) or weights.is_offloaded(module):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and buffer.numel() and buffer.device.type != "meta":
                flat = buffer.detach().reshape(-1)
                found[f"buffer {path}.{name}"] = flat[_spaced(len(flat), 64).to(flat.device)].float().tolist()
    return found


def _tokens(tokenizer: Any) -> dict[str, str]:
    """Return digests of a vocabulary and of the ids of a text."""
    parts = {"vocabulary": sorted(tokenizer.get_vocab().items()), "token ids": list(tokenizer(PROBE)["input_ids"])}
    return {name: hashlib.sha256(json.dumps(part).encode()).hexdigest()[:12] for name, part in parts.items()}


def _sketch(picked: torch.Tensor) -> list[float]:
    """Return the norm of a vector and sums of its elements with eight fixed patterns of signs, to six digits."""
    sums = []
    for number in range(8):
        bits = torch.frombuffer(bytearray(hashlib.shake_128(bytes([number])).digest(len(picked))), dtype=torch.uint8)
        sums.append((picked.double() * (1 - 2.0 * (bits & 1))).sum())
    return [float(f"{value:.6g}") for value in (picked.double().norm(), *sums)]


def _spaced(size: int, count: int) -> torch.Tensor:
    return torch.linspace(0, size - 1, min(size, count), dtype=torch.float64).long()


def check_fingerprint(
    saved: Any, model: nn.Module, folder: Path, tokenizer: Any = None, *, refuse: bool = True
) -> list[str]:
    """Check that a model is the base of a saved fingerprint, and return the differences.

    Args:
        saved: the fingerprint; those of 0.1.0 have neither settings nor tokenizer, which are then not compared.
        model: the base.
        folder: of the adapter, for messages.
        tokenizer: of the base, if it is known.
        refuse: raise an error if there are differences.

    Raises:
        WrongBase: it is another base; the message lists the differences.
        BadSpec: `saved` is not a fingerprint.
    """
    try:
        faults = _differences(saved, fingerprint(model, tokenizer))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise BadSpec(f"{folder / 'base.json'} is no fingerprint of a base ({error!r}). Save it again.") from None
    if faults and refuse:
        raise WrongBase(
            f"The adapter in {folder} was trained on another base: {listed(sorted(faults), 5)}. "
            "Load the base named in its adapter.json, or use check_base=False. Nothing was loaded."
        )
    return sorted(faults)


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
        elif not _close(saved.get("sketches", {}).get(name, ()), present["sketches"].get(name, ())):
            faults.append(f"{name} has other values than rounding explains")
    for part in ("settings", "tokenizer"):
        before, now = saved.get(part, {}), present.get(part, {})
        faults += [
            f"{name} is {shown(now[name])}, was {shown(before[name])}" if part == "settings" else f"the {name} differ"
            for name in before.keys() & now.keys()  # another version of transformers may know other settings
            if not _equal(before[name], now[name], TOLERANCE if name.startswith("buffer ") else 1e-5)
        ]
    return faults


def _close(old: Sequence[float], new: Sequence[float]) -> bool:
    """Return whether two sketches, of which 0.1.0 has none, differ by no more than rounding to bf16 explains."""
    length = max(*old[:1], *new[:1], 0.0) if old and new else 0.0
    # Seven standard deviations of the rounding of numbers near 1, where it is largest.
    return all(abs(a - b) <= 1e-4 + 2 * TOLERANCE * max(length, abs(b)) for a, b in zip(old, new, strict=False))


def _equal(a: Any, b: Any, tolerance: float) -> bool:
    """Return whether two settings are equal, floating-point numbers up to a relative tolerance."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key], tolerance) for key in a)
    floats = isinstance(a, float) and isinstance(b, float)
    return bool(a == b) or (floats and math.isclose(a, b, rel_tol=tolerance))


def base_hash(base_print: dict[str, Any]) -> str:
    """Return the SHA-256 of a fingerprint: of names, shapes, dtype and up to 4,096 values of every tensor."""
    tensors = {key: base_print[key] for key in ("dtype", "tensors")}  # hashes of 0.1.0 remain what they were
    return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()
