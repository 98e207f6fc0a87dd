"""What a reader needs to judge or repeat a run: versions, machine, memory, what went in."""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llm_adapters_lab import __version__

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors")


def peak_memory() -> int:
    """Return the largest memory so far in bytes: allocated on the GPU, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment(device: str, dtype: torch.dtype, *packages: str) -> dict[str, Any]:
    """Return where something ran: versions, machine, threads, dtype of the weights, commit of the lab."""
    return {
        "python": platform.python_version(),
        "llm_adapters_lab": __version__,
        **{name: version(name) for name in (*PACKAGES, *packages)},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the git commit of the lab, with "-dirty" where its code differs; None where it is no checkout."""
    # A file that git knows: an installed lab may lie in the environment folder of somebody else's checkout.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None or not (head := _git("rev-parse", "HEAD")):
        return None
    return head + ("-dirty" if _git("status", "--porcelain", "--", ".") else "")


def base_hash(base_print: dict[str, Any]) -> str:
    """Return the SHA-256 of a base's fingerprint: of names, shapes, dtype and 4,096 values of every tensor."""
    return hashlib.sha256(json.dumps(base_print, sort_keys=True).encode()).hexdigest()


def _git(*words: str) -> str | None:
    try:
        here = Path(__file__).parent
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return None if done.returncode else done.stdout.strip()
