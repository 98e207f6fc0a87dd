"""Where and how a training computes: accelerator, placement of the model, deterministic kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin, fsdp2_prepare_model

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.models.loading import pick_dtype, to_device
from llm_adapters_lab.training import deepspeed_zero
from llm_adapters_lab.training.distributed import sharded


def make_accelerator(precision: str) -> Accelerator:
    """Return an accelerator for a precision of `TrainSpec`; "auto" is bf16 on a GPU that supports it, else fp32."""
    dtype = pick_dtype(precision)  # type: ignore[arg-type]
    mixed = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    # Accelerate keeps the first precision of a process for good; a notebook trains with several.
    AcceleratorState._reset_state()
    plugin = None
    if sharded() and not deepspeed_zero.requested():
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )
    with deepspeed_zero.bypassed():
        accelerator = Accelerator(mixed_precision=mixed, fsdp_plugin=plugin)
    if plugin:
        accelerator.state.fsdp_plugin = plugin  # which Accelerate itself keeps on GPUs only
    return accelerator


def place(model: Any, injection: Injection | None, accelerator: Accelerator) -> None:
    """Move a model to where it computes; if it is sharded, each process keeps a share of it, and the whole adapter."""
    if not sharded():
        to_device(model, accelerator.device)
        return
    adapters = list(injection.adapters.values()) if injection else []
    for adapter in adapters:
        adapter.to(accelerator.device)
    if deepspeed_zero.requested():
        deepspeed_zero.shard(model, accelerator.device, accelerator.num_processes)
        return
    accelerator.state.fsdp_plugin.ignored_modules = adapters
    fsdp2_prepare_model(accelerator, model)


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Use only kernels that give the same bits every time, if `on`."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
