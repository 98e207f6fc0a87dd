"""Copies of the packaged model with one thing wrong, as local folders."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from llm_adapters_lab.models.source import NANO
from llm_adapters_lab.tasks.tokens import Sample


def nano_copy(folder: Path) -> Path:
    """Copy the packaged model into a new folder."""
    shutil.copytree(NANO, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return folder


def nano_with_nan(folder: Path) -> Path:
    """Copy the packaged model, with nan in its last norm."""
    scale_weight(nano_copy(folder), "norm.weight", float("nan"))
    return folder


def scale_weight(folder: Path, end: str, factor: float) -> None:
    """Multiply the last tensor whose name ends like this."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = [name for name in tensors if name.endswith(end)][-1]
    tensors[name] = tensors[name] * factor
    save_file(tensors, file, metadata={"format": "pt"})


def swap_digits(folder: Path) -> None:
    """Exchange the ids of two digits in the tokenizer of a folder."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    vocab["3"], vocab["4"] = vocab["4"], vocab["3"]
    file.write_text(json.dumps(content), encoding="utf-8")


def samples(count: int) -> list[Sample]:
    """Return rows of eight tokens for a tiny model."""
    return [Sample(f"row/{n}", tuple(range(n + 3, n + 11)), tuple(range(n + 3, n + 11))) for n in range(count)]
