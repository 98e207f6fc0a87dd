"""DeepSpeed ZeRO: what a DeepSpeed configuration given to `accelerate launch` means for a run.

In stage 3, DeepSpeed shards the weights of the base over the processes, in the memory of the device or, with
`offload_param`, of the host. What stages 1 and 2 shard, the gradients and moments of the trained parameters, is small
for an adapter and stays whole, so that checkpoints do not depend on the processes: these stages are data parallel here.

Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from accelerate.utils import DeepSpeedPlugin, parse_flag_from_env, patch_environment
from torch import nn

from llm_adapters_lab.core.hooks import AdapterChain
from llm_adapters_lab.errors import BadSpec

WEIGHTS = 3
"""The stage in which the weights are sharded."""
ROUNDING = ("zero_quantized_weights", "zero_quantized_nontrainable_weights")
"""Settings by which weights are stored or sent in fewer bits."""


def requested() -> bool:
    """Return whether DeepSpeed was asked for."""
    return bool(parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"))


def stage() -> int:
    """Return the stage of ZeRO, from 0 to 3; 0 if DeepSpeed was not asked for.

    Raises:
        BadSpec: the configuration cannot be used, or DeepSpeed is not installed.
    """
    return int(_configuration().get("stage", 0)) if requested() else 0


def offloads_parameters() -> bool:
    """Return whether stage 3 keeps the weights of the base outside the devices, in host memory or on disk."""
    return stage() == WEIGHTS and _configuration().get("offload_param", {}).get("device", "none") != "none"


@cache
def _configuration() -> dict[str, Any]:
    """Return the `zero_optimization` section, without settings left to DeepSpeed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise BadSpec(
            "The configuration of accelerate asks for DeepSpeed, which is not installed. "
            "Install it with pip install deepspeed, or use docs/fsdp.yaml, which shards the base without it."
        )
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        found = DeepSpeedPlugin().deepspeed_config["zero_optimization"].items()
        settings = {key: value for key, value in found if value not in (None, "auto")}
        DeepSpeedZeroConfig(**settings)
    except (ValueError, TypeError, AttributeError, OSError) as error:  # accelerate itself checks little
        raise BadSpec(f"The configuration of DeepSpeed cannot be used: {error}") from error
    _refuse(settings)
    return settings


def _refuse(settings: dict[str, Any]) -> None:
    """Refuse what contradicts the spec, and what DeepSpeed itself would only find after loading the base."""
    if rounding := [key for key in ROUNDING if settings.get(key)]:
        raise BadSpec(
            f"{rounding[0]} of DeepSpeed rounds the weights of the base, which changes losses and is therefore up to "
            "the spec. Remove it, and set quantization in the spec."
        )
    offload = settings.get("offload_param") or {}
    if offload.get("device") == "nvme":
        from deepspeed.ops import __compatible_ops__ as operations

        if not offload.get("nvme_path"):
            raise BadSpec("The configuration of DeepSpeed cannot be used: offload_param to nvme needs its nvme_path.")
        if not operations.get("async_io"):
            raise BadSpec(
                "offload_param to nvme needs the operation async_io of DeepSpeed, which cannot be built here "
                "(`ds_report` says why; on Linux it needs libaio). Install what is missing, or offload to cpu."
            )


def ignored_settings() -> str:
    """Return a sentence on what of the configuration is ignored, or "".

    Raises:
        BadSpec: see `stage`.
    """
    if stage() in (0, WEIGHTS):
        return ""
    return (
        f"Stage {stage()} of ZeRO shards the gradients and moments of trained parameters. Those of an adapter stay "
        "whole in every process, as without DeepSpeed; stage 3 shards the weights of the base."
    )


def bypassed() -> Any:
    """Return a context in which Accelerate does not use DeepSpeed, whose engine would own optimiser and loss."""
    return patch_environment(ACCELERATE_USE_DEEPSPEED="false")


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[None]:
    """Take the adapters out of the module tree, leaving their hooks in place."""
    chains = [
        (m, name, child)
        for m in model.modules()
        for name, child in m.named_children()
        if isinstance(child, AdapterChain)
    ]
    for module, name, _ in chains:
        del module._modules[name]
    try:
        yield
    finally:
        for module, name, chain in chains:
            module._modules[name] = chain


def shard(model: nn.Module, device: torch.device, count: int) -> None:
    """Leave each of `count` processes its share of a base that is whole in all; modules fetch the rest as they run."""
    import deepspeed

    # Between processes on one CPU, gloo is good enough; DeepSpeed would first compile something faster, for minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    settings = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": count, "zero_optimization": _configuration()}
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    settings |= {name: {"enabled": dtype == model.dtype} for name, dtype in dtypes.items()}
    own = [(module, list(module._forward_pre_hooks)) for module in model.modules()]
    with _without_adapters(model):
        deepspeed.zero.Init(module=model, config_dict_or_path=settings)  # one weight after the other
        deepspeed.initialize(model=model, config=settings)
    for module, hooks in own:
        for hook in hooks:  # our hooks last: an adapter replaces a weight once it has been fetched
            module._forward_pre_hooks[hook] = module._forward_pre_hooks.pop(hook)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
