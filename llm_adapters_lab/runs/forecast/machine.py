"""What the lab chooses on this machine where a spec leaves it open, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llm_adapters_lab.models import loading
from llm_adapters_lab.runs.environment import cpu_contention
from llm_adapters_lab.training.compilation import find_compiler


@dataclass(frozen=True)
class Choice:
    """What is chosen for something, and why."""

    what: str
    chosen: str
    why: str


def choices() -> list[Choice]:
    """Return device, precision, attention, optimizer and compilation as they are chosen on this machine."""
    gpu = torch.cuda.is_available()
    cores = torch.get_num_threads()
    device = torch.cuda.get_device_name() if gpu else f"CPU, {cores} thread{'s' * (cores != 1)}"
    half = loading.pick_dtype("auto") == torch.bfloat16
    why = {
        (True, True): "the GPU computes in bf16",
        (True, False): "this GPU does not compute in bf16",
        (False, False): "a CPU without matrix units trains many times slower in bf16",
    }[gpu, half]
    threads = "torch uses every core; OMP_NUM_THREADS or torch.set_num_threads changes that"
    path = find_compiler()
    has = f"train.compile works: {path or 'the GPU needs no compiler for C++'}" if gpu or path else "no C++ compiler"
    return [
        Choice("device", device, "there is a GPU" if gpu else cpu_contention() or f"no GPU; {threads}"),
        Choice("precision", "bf16" if half else "fp32", why),
        Choice("attention", "sdpa", "torch's fused attention, where the model supports it"),
        Choice("optimizer", "AdamW, fused", "one kernel for all tensors, on the CPU as on CUDA"),
        Choice("compile", "off", has),
    ]
