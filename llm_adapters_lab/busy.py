"""Busy: do others keep the processors at work on which torch is about to compute?"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import torch

_STAT = Path("/proc/stat")


def crowded(seconds: float = 0.2) -> str:
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
