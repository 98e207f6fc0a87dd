"""Save a trained adapter and load it again, into the base it was trained on and no other.

<folder>/adapter.safetensors  the tensors of `Injection.state_dict`
         adapter.json         what they belong to: base, config, version of the lab
         base.json            a fingerprint of that base: samples of its every tensor
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from llm_adapters_lab import __version__, weights
from llm_adapters_lab.adapter import get_adapter
from llm_adapters_lab.anatomy import modules, parameters
from llm_adapters_lab.chain import stand_back
from llm_adapters_lab.errors import BadSpec, WrongBase
from llm_adapters_lab.fields import parse
from llm_adapters_lab.inject import Injection, inject
from llm_adapters_lab.models import Base
from llm_adapters_lab.prepare import load_base
from llm_adapters_lab.quantization import scheme
from llm_adapters_lab.record import PART, Run, flush, share, write_atomically
from llm_adapters_lab.untrusted import pickles
from llm_adapters_lab.wrappers.quantize import load, packed

SAMPLES = 4096
SHOWN = 4
# Half a unit in the last place of bf16, twice: the base may have been rounded for the one run and not for the other.
TOLERANCE = 2.0**-7


def save_adapter(
    injection: Injection, folder: str | Path, base: str = "", base_print: dict[str, Any] | None = None
) -> None:
    """Write the three files; the adapter stays in the model.

    Args:
        injection: what is saved.
        folder: made if need be.
        base: name of the base, as in `RunSpec.base`.
        base_print: `fingerprint` of the base, where its weights are no longer at hand; default: it is taken now.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter.safetensors", packed(injection))
    write_json(folder / "base.json", base_print or fingerprint(injection.model))
    meta: dict[str, Any] = {"base": base, "quantization": scheme(injection.model), "lab": __version__}
    meta["config"] = injection.config.model_dump(mode="json")
    write_json(folder / "adapter.json", meta)


def load_adapter(
    model: nn.Module, folder: str | Path, *, name: str = "default", tokenizer: Any = None, check_base: bool = True
) -> Injection:
    """Put a saved adapter into a model; after an error the model is as it was.

    Args:
        model: the base it was trained on.
        folder: of `save_adapter`, or one of peft.
        name: as in `inject`.
        tokenizer: as in `inject`.
        check_base: False loads an adapter into another base of the same shape, at your own risk.

    Raises:
        BadSpec: the folder holds no adapter, or files that cannot be read.
        WrongBase: the model is not the base it was trained on; the message lists what differs.
        StateMismatch: the tensors do not fit; the message lists how.
        CannotImport: the folder is one of peft and has a feature that has no counterpart here.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / "adapter.json"):
        from llm_adapters_lab.export import from_peft

        return from_peft(model, folder, name=name, tokenizer=tokenizer)
    meta = read_json(folder / "adapter.json")
    fields = meta.get("config")
    if not isinstance(fields, dict) or "type" not in fields:
        raise BadSpec(f"{folder / 'adapter.json'} names no adapter: its config has no type. Save the adapter again.")
    config = parse(get_adapter(str(fields["type"])).config, fields, f"{folder / 'adapter.json'}: ")
    state = read_tensors(folder / "adapter.safetensors")
    if check_base and (before := meta.get("quantization", "none")) != (now := scheme(model)):
        raise WrongBase(
            f"The adapter in {folder} was trained on a base with quantization: {before}, and this one has {now}. Load "
            "it that way, or with check_base=False: an adapter makes up for the rounding that it was trained with."
        )
    if check_base and (folder / "base.json").is_file():
        saved = read_json(folder / "base.json")
        try:
            _compare(saved, fingerprint(model), folder)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise BadSpec(f"{folder / 'base.json'} is no fingerprint of a base ({error!r}). Save it again.") from None
    injection = inject(model, config, name=name, tokenizer=tokenizer)
    try:
        load(injection, state)
    except BaseException:
        injection.eject()
        raise
    return injection


def restore(record: Run) -> tuple[Base, Injection | None]:
    """Load the base of a run with its trained adapter.

    Raises:
        BadSpec: the run has an adapter that was not trained to the end.
        WrongBase: the base is no longer the one it was trained on.
    """
    spec = record.spec
    base = load_base(spec)
    if spec.adapter is None:
        return base, None
    if not (record.folder / "adapter" / "adapter.json").is_file():
        raise BadSpec(f"The run {record.id} has no trained adapter ({record.summary['status']}). Run its spec again.")
    return base, load_adapter(base.model, record.folder / "adapter", tokenizer=base.tokenizer)


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


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file in one piece.

    Raises:
        OSError: it cannot be written, for instance because the disk is full; there is no file then, or the earlier one.
    """
    part = path.with_name(path.name + PART)
    try:
        save_file(tensors, part, metadata)
        share(part)
        flush(part)
        part.replace(path)
        flush(path.parent)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        BadSpec: it is missing or damaged.
    """
    if not path.is_file() and (others := pickles(path.parent)) != "none":
        raise BadSpec(
            f"There is no {path}, and pickled weights are never opened; here they are {others}. Save it again."
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadSpec(f"{path} cannot be read as safetensors: {error}. Save the adapter again.") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BadSpec: it is missing or damaged.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError(f"it holds a {type(fields).__name__}, not names with values")
        return fields
    except (OSError, ValueError, RecursionError) as error:
        raise BadSpec(f"{path} cannot be read as JSON: {error}.") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one piece."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
