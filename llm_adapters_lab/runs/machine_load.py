"""How busy this machine is now: processors, memory, GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

import psutil

CROWDED, FULL = 1.5, 0.92
"""Load per processor, and share of memory in use, from which on runs are slowed down."""
INSTANT = 0.1
"""Seconds over which the share of busy processors is measured."""
_QUERY = ("--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Gpu:
    """A GPU: busy share 0..1, bytes of memory in use and in total."""

    busy: float
    used: int
    total: int


@dataclass(frozen=True)
class MachineLoad:
    """What programs use of this machine.

    Attributes:
        processors: number of them.
        busy: share of them that is busy, 0..1.
        load: mean number of programs that ran or waited for a processor in the last minute.
        used: bytes of memory in use.
        total: bytes of memory.
        gpus: all GPUs.
    """

    processors: int
    busy: float
    load: float
    used: int
    total: int
    gpus: tuple[Gpu, ...] = ()

    @property
    def warning(self) -> str:
        """What slows runs down; "" if nothing does."""
        if self.used > FULL * self.total:
            return f"Memory is {100 * self.used / self.total:.0f} % full: a run may be killed."
        if self.load > CROWDED * self.processors and self.processors:
            cores = f"{self.processors} core{'s' * (self.processors > 1)}"
            return f"{cores}, load {self.load:.1f}: other programs slow runs down."
        return ""


def machine_load() -> MachineLoad:
    """Measure the load of this machine; takes 0.1 s, with a GPU up to a second."""
    memory = psutil.virtual_memory()
    used = memory.total - memory.available
    busy, (load, *_) = psutil.cpu_percent(INSTANT) / 100, psutil.getloadavg()
    return MachineLoad(os.cpu_count() or 1, busy, load, used, memory.total, tuple(_gpus()))


def _gpus() -> list[Gpu]:
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=3, check=True)
        rows = [[float(part) for part in line.split(",")] for line in done.stdout.splitlines()]
    except (OSError, subprocess.SubprocessError, ValueError):  # such as "[N/A]"
        return []
    return [Gpu(busy / 100, int(used * 2**20), int(total * 2**20)) for busy, used, total in rows]
