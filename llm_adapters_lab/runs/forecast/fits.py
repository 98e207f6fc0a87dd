"""Is there room for a run? Asked before its weights load, and refused where the answer is no."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llm_adapters_lab.errors import NotEnoughMemory
from llm_adapters_lab.models import loading
from llm_adapters_lab.models.blueprint import named, outline
from llm_adapters_lab.runs.forecast.memory import WORTH_IT, Memory, estimate
from llm_adapters_lab.runs.forecast.size import Size, size_of
from llm_adapters_lab.runs.rows import Rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import Sample, encode
from llm_adapters_lab.training import deepspeed_zero
from llm_adapters_lab.training.distributed import sharded

ROWS = 4096
"""Rows that an estimate looks at: enough to meet long ones, few enough to be read in seconds."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much memory a container may have."""


def memory_of_machine(every_gpu: bool = False) -> int:
    """Return the bytes of memory: of the GPU if there is one, else of the computer; 0 where that cannot be known.

    Args:
        every_gpu: of all GPUs together.
    """
    if torch.cuda.is_available():
        count = torch.cuda.device_count() if every_gpu else 1
        return sum(torch.cuda.get_device_properties(i).total_memory for i in range(count))
    return memory_of_host()


def memory_of_host() -> int:
    """Return the bytes of memory of the computer, or of the container; 0 where that cannot be known."""
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    whole = os.sysconf(names[0]) * os.sysconf(names[1]) if set(names) <= set(getattr(os, "sysconf_names", ())) else 0
    limits = [int(text) for file in LIMITS if (text := _text(file)).isdecimal()]
    return min([whole, *limits])


def samples(spec: RunSpec, rows: Sequence[Example], tokenizer: Any) -> list[Sample]:
    """Return the first training rows of a run as they are trained on; validation rows, which come first, are not."""
    template = spec.data.template or get_task(spec.data.task).template
    learnt = rows[spec.data.validation :][:ROWS]
    return encode(tokenizer, learnt, template, spec.data.max_tokens, spec.data.loss_on)[0]


def require_memory(spec: RunSpec, rows: Rows) -> None:
    """Refuse a run that needs more memory than there is.

    A base that is only scored may lie on disk.

    Raises:
        NotEnoughMemory: the message says what is needed, what there is and what would help.
    """
    spread = spec.device_map == "auto"
    if spread and spec.adapter is None:
        return
    found, there = size_of(spec), memory_of_machine(spread)
    if found.weights < WORTH_IT or not there:
        return
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 or sharded():
        _require_shared_memory(spec, found, count)
        return
    least = Memory(found.weights, 0, found.training, 0)
    if least.total <= there and spec.adapter and least.total > there / 2:  # activations may decide
        tokenizer = loading.tokenizer(spec.base, trust_remote_code=spec.trust_remote_code)
        if tokenizer and (learnt := samples(spec, rows.train, tokenizer)):
            least = estimate(_smallest(spec), learnt, tokenizer) or least
    if least.total > there:
        raise NotEnoughMemory(_told(spec, found, least, there))


def _require_shared_memory(spec: RunSpec, found: Size, count: int) -> None:
    """Refuse several processes for which a host, or the GPU of each, has not memory enough.

    Before it goes to a GPU, or is spread, every process has the whole base in the memory of its host; one that is
    quantised goes to the GPU as it is read.
    """
    gpu, spread = torch.cuda.is_available(), sharded()
    share = 0 if deepspeed_zero.offloads() else found.weights // count if spread else found.weights
    least = Memory(share, 0, found.training, 0)
    if gpu and least.total > memory_of_machine():
        raise NotEnoughMemory(_told(spec, found, least, memory_of_machine()))
    if gpu and named(outline(spec.base, spec.trust_remote_code)[0], spec.quantization) != "none":
        return
    here, there = int(os.environ.get("LOCAL_WORLD_SIZE", count)), memory_of_host()
    read = Memory(found.weights, 0, 0, 0) if gpu or spread else least
    if there and here * read.total > there:
        raise NotEnoughMemory(_told(spec, found, read, there, here))


def _smallest(spec: RunSpec) -> RunSpec:
    """Return the spec with the micro-batches it can be brought to; on a GPU they are halved when memory is short."""
    if not torch.cuda.is_available():
        return spec
    plan = spec.train.model_copy(update={"micro_batch": 1, "micro_tokens": None})
    return spec.model_copy(update={"train": plan})


def _told(spec: RunSpec, found: Size, least: Memory, there: int, sharing: int = 0) -> str:
    """Return the message: what each process needs, and what is there for all that share it."""
    where = "the GPU has" if torch.cuda.is_available() and not sharing else "this computer has"
    parts = {"weights": least.weights, "adapter and optimiser": least.adapter + least.optimizer, "a step": least.step}
    needs = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items() if size)
    each = f" in each of its {sharing} processes here" if sharing > 1 else ""
    cures = ["fewer processes on a computer"] if sharing > 1 else []
    packed = size_of(spec.model_copy(update={"quantization": "nf4"})).weights
    if spec.quantization == "none" and packed < found.weights:
        cures.append(f"quantization: nf4 (weights {packed / 1e9:.1f} GB)")
    if spec.dtype != "bf16" and loading.pick_dtype(spec.dtype).itemsize > 2:
        cures.append("dtype: bf16")
    if least.step:
        cures += ["train.gradient_checkpointing", "a smaller data.max_tokens or train.micro_batch"]
    cures.append("a smaller base" if spec.adapter or sharing else "device_map: auto, which lays the rest on disk")
    return (
        f"{spec.base} needs {least.total / 1e9:.1f} GB of memory at least ({needs}){each}, and {where} "
        f"{there / 1e9:.1f} GB. What would help: {'; '.join(cures)}. "
        "Nothing was loaded; `run --dry-run` tells the whole need."
    )


def _text(file: str) -> str:
    try:
        return Path(file).read_text(encoding="ascii").strip()
    except OSError:
        return ""
