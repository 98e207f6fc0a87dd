"""What the lab chooses on this machine, and why; and what a run will need of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models import loading
from llm_adapters_lab.models.blueprint import outline
from llm_adapters_lab.runs.environment import cpu_contention
from llm_adapters_lab.runs.forecast.fits import ROWS as ROWS
from llm_adapters_lab.runs.forecast.fits import memory_of_machine as memory_of_machine
from llm_adapters_lab.runs.forecast.fits import samples
from llm_adapters_lab.runs.forecast.memory import Memory, estimate
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training.compilation import compiler
from llm_adapters_lab.training.fast_paths import told


@dataclass(frozen=True)
class Choice:
    """What is chosen for something, and why."""

    what: str
    chosen: str
    why: str


def choices() -> list[Choice]:
    """Return what is chosen on this machine where a spec leaves it open."""
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    half = loading.pick_dtype("auto") == torch.bfloat16
    why = {
        (True, True): "the GPU computes in bf16",
        (True, False): "this GPU does not compute in bf16",
        (False, False): "a CPU without matrix units trains many times slower in bf16",
    }[gpu, half]
    threads = "torch takes the cores there are; OMP_NUM_THREADS or torch.set_num_threads say otherwise"
    path = compiler()
    has = f"train.compile works: {path or 'the GPU needs no compiler for C++'}" if gpu or path else "no C++ compiler"
    return [
        Choice("device", device, "there is a GPU" if gpu else cpu_contention() or f"no GPU; {threads}"),
        Choice("precision", "bf16" if half else "fp32", why),
        Choice("attention", "sdpa", "the fused attention of torch, where the model has it"),
        Choice("optimizer", "AdamW, fused", "one kernel for all tensors; the CPU and CUDA have it"),
        Choice("compile", "off", has),
    ]


def examine(spec: RunSpec) -> tuple[list[Choice], Memory | None]:
    """Return the shortcuts that a run takes, and the memory that its training needs; no weight is loaded.

    Args:
        spec: with an adapter.

    Returns:
        The choices; and the estimate, from the first `ROWS` rows, or None for a model that cannot run without numbers.

    Raises:
        LabError: rows, base or adapter are at fault.
    """
    tokenizer = loading.tokenizer(spec.base, trust_remote_code=spec.trust_remote_code)
    if spec.adapter is None or tokenizer is None:
        raise BadSpec("Only the training of an adapter on a base with a tokenizer can be examined; give such a spec.")
    learnt = samples(spec, read_rows(spec).train, tokenizer)
    model, _ = outline(spec.base, spec.trust_remote_code)
    injection = inject(model, spec.adapter, tokenizer=tokenizer)
    try:
        shortcuts, reasons = told(model, injection, learnt, spec.train)
    finally:
        injection.eject()
    found = []
    for name, takes in vars(shortcuts).items():
        why = reasons.get(name, "exact up to rounding" if takes else "as the spec says, or for want of packing")
        found.append(Choice(f"train.{name}", "on" if takes else "off", why))
    return found, estimate(spec, learnt, tokenizer)


def as_json(machine: list[Choice], taken: list[Choice], memory: Memory | None) -> dict[str, Any]:
    """Return all of it as plain data."""
    needed = {**vars(memory), "total": memory.total} if memory else None
    return {"choices": [vars(c) for c in (*machine, *taken)], "memory": needed, "available": memory_of_machine()}
