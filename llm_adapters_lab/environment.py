"""What a reader needs to judge or repeat a run: versions, machine, memory."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llm_adapters_lab import __version__


def peak_memory() -> int:
    """Return the largest memory so far in bytes: allocated on the GPU, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment(device: str) -> dict[str, Any]:
    """Return what a reader needs to judge or repeat a run: versions, machine, threads, commit."""
    packages = ("torch", "transformers", "accelerate")
    try:
        here = Path(__file__).parent
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5)
        commit = git.stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "python": platform.python_version(),
        "llm_adapters_lab": __version__,
        **{name: version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "commit": commit,
    }
