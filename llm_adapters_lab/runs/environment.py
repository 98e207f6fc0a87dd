"""What a reader needs to judge or repeat a run: versions, machine, memory, what went in."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llm_adapters_lab._version import __version__

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
    """Return the git commit of the lab, with "-dirty" where its code differs; None where it is not a checkout."""
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


_STAT = Path("/proc/stat")


def cpu_contention(seconds: float = 0.2) -> str:
    """Return in a sentence that torch has more threads than processors are free; empty if not, or if nobody can tell.

    Threads of one operation wait for each other, and while one has no processor all the others spin. With one other
    program at work, two threads on two processors train `nano` 3 to 17 times slower than one does (see LOG.md).

    Args:
        seconds: to look for; Linux alone tells.
    """
    threads, processors = torch.get_num_threads(), os.cpu_count() or 1
    if threads == 1 or torch.cuda.is_available():
        return ""
    with suppress(OSError, ValueError):
        before = _others()
        time.sleep(seconds)
        taken = max(0.0, _others() - before) / seconds
        if taken + threads > processors + 0.5:
            return (
                f"Other programs keep {taken:.1f} of {processors} processors busy, and torch's {threads} threads wait "
                f"for each other. OMP_NUM_THREADS={max(1, int(processors - taken))} may be many times faster."
            )
    return ""


def _others() -> float:
    """Return how many seconds of processors all others have taken since the machine was started."""
    user, nice, system, _, _, *interrupts = map(int, _STAT.read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9])
    own = os.times()
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - own.user - own.system
