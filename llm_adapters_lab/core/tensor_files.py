"""Read and write safetensors files."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llm_adapters_lab.errors import BadSpec, StateMismatch, listed
from llm_adapters_lab.files import PART, flush, share
from llm_adapters_lab.privacy import pickles


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Raises:
        OSError: it cannot be written, e.g. because the disk is full; an earlier file is then unchanged.
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


def check_alone(folder: Path, config: str) -> None:
    """Check that a folder has no adapter in another format, whose config is a file of the given name.

    Raises:
        BadSpec: it has one.
    """
    if (folder / config).exists():
        raise BadSpec(
            f"{folder} holds an adapter in another format ({config}), and a folder is for one adapter, since nothing "
            "says which is meant. Name another folder, or delete the files of one of them."
        )


def check_values(tensors: dict[str, torch.Tensor], what: str) -> None:
    """Check that tensors can be those of a trained adapter, finite floating-point numbers; `what` is for messages.

    Raises:
        StateMismatch: a tensor is empty, has another kind of numbers, or holds inf or nan, also after rounding to fp32.
    """
    faults = []
    for name, tensor in tensors.items():
        if not tensor.numel() or not tensor.is_floating_point():
            faults.append(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}")
        elif not bool(tensor.float().isfinite().all()):
            faults.append(f"{name} holds inf or nan")
    if faults:
        raise StateMismatch(f"{what}: no adapter is made of such tensors: {listed(faults)}. Train or save it again.")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        BadSpec: it is missing or damaged.
    """
    if not path.is_file() and (others := pickles(path.parent)) != "none":
        raise BadSpec(f"There is no {path}, only {others}, and pickled weights are never opened. Save it again.")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadSpec(f"{path} cannot be read as safetensors: {error}. Save the adapter again.") from None
