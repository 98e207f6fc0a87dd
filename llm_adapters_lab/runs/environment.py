"""The environment of a run: versions, machine, memory, and how busy the processors are."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from llm_adapters_lab._version import __version__

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors")


def peak_memory() -> int:
    """Return the peak memory so far in bytes: allocated on the GPU, or resident in this process without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment(device: str, dtype: torch.dtype, *packages: str) -> dict[str, Any]:
    """Return versions, machine, number of threads, dtype of the weights, and the commit of the lab."""
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
    """Return the git commit of the lab, with "-dirty" if its code has changed since; None outside a checkout."""
    # A file that git tracks: an installed lab may lie in the environment folder of another project's checkout.
    if _git("ls-files", "--error-unmatch", "_version.py") is None or not (head := _git("rev-parse", "HEAD")):
        return None
    return head + ("-dirty" if _git("status", "--porcelain", "--", ".") else "")


def _git(*words: str) -> str | None:
    try:
        here = Path(__file__).parents[1]
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return None if done.returncode else done.stdout.strip()


def cpu_contention(seconds: float = 0.2) -> str:
    """Return a warning if torch has more threads than there are free processors; "" if not.

    The threads of one operation wait for each other, and while one has no processor all the others spin. Beside one
    other busy program, two threads on two processors train `nano` 3 to 17 times slower than one thread (see LOG.md).

    Args:
        seconds: during which the load is measured.
    """
    threads, processors = torch.get_num_threads(), os.cpu_count() or 1
    if threads == 1 or torch.cuda.is_available():
        return ""
    before = _others()
    time.sleep(seconds)
    taken = max(0.0, _others() - before) / seconds
    if taken + threads <= processors + 0.5:
        return ""
    return (
        f"Other programs keep {taken:.1f} of {processors} processors busy, and torch's {threads} threads wait for each "
        f"other. OMP_NUM_THREADS={max(1, int(processors - taken))} may be many times faster."
    )


def _others() -> float:
    """Return the processor time in seconds that all other processes have used since the machine was started."""
    total, own = psutil.cpu_times(), os.times()
    busy: float = sum(total) - total.idle - getattr(total, "iowait", 0.0)
    counted_twice: float = getattr(total, "guest", 0.0) + getattr(total, "guest_nice", 0.0)  # Linux: also part of user
    return busy - counted_twice - own.user - own.system
