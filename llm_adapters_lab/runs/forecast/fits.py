"""Is there enough memory for a run? Checked before its weights load; the run is refused if there is not."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from llm_adapters_lab.errors import NotEnoughMemory
from llm_adapters_lab.models import loading
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.forecast.memory import WORTH_IT, Memory, estimate
from llm_adapters_lab.runs.forecast.size import Size, size_of
from llm_adapters_lab.runs.rows import Rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training import deepspeed_zero
from llm_adapters_lab.training.distributed import sharded

ROWS = 4096
"""Number of rows that an estimate looks at: enough to meet long ones, few enough to be read in seconds."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files in which Linux states the memory limit of a container."""


def memory_of_machine(every_gpu: bool = False) -> int:
    """Return the memory in bytes of the GPU (`every_gpu`: of all of them), or of the computer if it has none."""
    if torch.cuda.is_available():
        count = torch.cuda.device_count() if every_gpu else 1
        return sum(torch.cuda.get_device_properties(i).total_memory for i in range(count))
    return memory_of_host()


def memory_of_host() -> int:
    """Return the memory in bytes of the computer, or of the container if that has a limit."""
    limits: list[int] = [psutil.virtual_memory().total]
    for file in LIMITS:
        with suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int(Path(file).read_text(encoding="ascii")))
    return min(limits)


def require_memory(spec: RunSpec, rows: Rows, base: Blueprint | None = None) -> None:
    """Refuse a run that needs more memory than there is. A base that is only scored may be offloaded to disk.

    Args:
        spec: of the run.
        rows: its rows.
        base: the blueprint of its base, if it has been read.

    Raises:
        NotEnoughMemory: the message says what is needed, what there is and what would help.
    """
    spread = spec.device_map == "auto"
    if spread and not spec.learns:
        return
    base = base or Blueprint(*spec.base_parts)
    found, available = size_of(spec, base), memory_of_machine(spread)
    if found.weights < WORTH_IT:
        return
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 or sharded():
        _require_shared_memory(spec, found, count, base)
        return
    least = Memory(found.weights, 0, found.training, 0)
    uncertain = least.total <= available < 2 * least.total  # the activations may decide
    if uncertain and spec.learns and base.tokenizer:
        learnt = rows.samples(base.tokenizer, spec.data)[0][spec.data.validation :]
        least = estimate(_smallest(spec), learnt[:ROWS], base) or least
    if least.total > available:
        raise NotEnoughMemory(_refusal(spec, found, least, available, base))


def _require_shared_memory(spec: RunSpec, found: Size, count: int, base: Blueprint) -> None:
    """Refuse several processes for which their host, or the GPU of each, has too little memory.

    Before the base moves to a GPU or is sharded, every process holds all of it in the memory of its host; a quantised
    one goes to the GPU while it is read.
    """
    gpu, spread = torch.cuda.is_available(), sharded()
    share = 0 if deepspeed_zero.offloads_parameters() else found.weights // count if spread else found.weights
    least = Memory(share, 0, found.training, 0)
    if gpu and least.total > memory_of_machine():
        raise NotEnoughMemory(_refusal(spec, found, least, memory_of_machine(), base))
    if gpu and base.quantization(spec.quantization) != "none":
        return
    here, available = int(os.environ.get("LOCAL_WORLD_SIZE", count)), memory_of_host()
    read = Memory(found.weights, 0, 0, 0) if gpu or spread else least
    if here * read.total > available:
        raise NotEnoughMemory(_refusal(spec, found, read, available, base, here))


def _smallest(spec: RunSpec) -> RunSpec:
    """Return the spec with the smallest micro-batches: on a GPU they are halved when memory runs out."""
    if not torch.cuda.is_available():
        return spec
    plan = spec.train.model_copy(update={"micro_batch": 1, "micro_tokens": None})
    return spec.model_copy(update={"train": plan})


def _refusal(spec: RunSpec, found: Size, least: Memory, available: int, base: Blueprint, sharing: int = 0) -> str:
    """Return the message; `sharing` is the number of processes that share what is available."""
    where = "the GPU has" if torch.cuda.is_available() and not sharing else "this computer has"
    parts = {"weights": least.weights, "adapter and optimizer": least.adapter + least.optimizer, "a step": least.step}
    needs = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items() if size)
    each = f" in each of its {sharing} processes here" if sharing > 1 else ""
    cures = ["fewer processes on a computer"] if sharing > 1 else []
    packed = size_of(spec.model_copy(update={"quantization": "nf4"}), base).weights
    if spec.quantization == "none" and packed < found.weights:
        cures.append(f"quantization: nf4 (weights {packed / 1e9:.1f} GB)")
    if spec.dtype != "bf16" and loading.pick_dtype(spec.dtype).itemsize > 2:
        cures.append("dtype: bf16")
    if least.step:
        cures += ["train.gradient_checkpointing", "a smaller data.max_tokens or train.micro_batch"]
    cures.append("a smaller base" if spec.adapter or sharing else "device_map: auto, which puts the rest on disk")
    return (
        f"{spec.base} needs at least {least.total / 1e9:.1f} GB of memory ({needs}){each}, and {where} "
        f"{available / 1e9:.1f} GB. What would help: {'; '.join(cures)}. "
        "Nothing was loaded; `run --dry-run` shows all that is needed."
    )
