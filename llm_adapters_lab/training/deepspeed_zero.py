"""ZeRO: what a configuration of DeepSpeed that `accelerate launch` was given means for a run.

Stage 3 spreads the weights of the base over the processes, in the memory of the device or, with `offload_param`, of the
host; DeepSpeed does it. What stages 1 and 2 spread, the gradients and moments of what is trained, is small for an
adapter and stays whole, so that checkpoints do not know of processes: they are data parallel here.

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

from llm_adapters_lab.core.hooks import Chain
from llm_adapters_lab.errors import BadSpec

WEIGHTS = 3
"""The stage in which the weights are spread."""
ROUNDING = ("zero_quantized_weights", "zero_quantized_nontrainable_weights")
"""Settings with which weights are held or sent in fewer bits."""


def wanted() -> bool:
    """Say whether DeepSpeed was asked for."""
    return bool(parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"))


def stage() -> int:
    """Return the stage of ZeRO, from 0 to 3; 0 where DeepSpeed was not asked for.

    Raises:
        BadSpec: the configuration cannot be used, or DeepSpeed is not installed.
    """
    return int(_configuration().get("stage", 0)) if wanted() else 0


def offloads() -> bool:
    """Say whether stage 3 keeps the weights of the base outside the devices, in memory or on disk."""
    return stage() == WEIGHTS and _configuration().get("offload_param", {}).get("device", "none") != "none"


@cache
def _configuration() -> dict[str, Any]:
    """Return the part on ZeRO, without what is left to DeepSpeed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise BadSpec(
            "The configuration of accelerate asks for DeepSpeed, which is not installed. "
            "Install it with pip install deepspeed, or take docs/fsdp.yaml, which spreads the base without it."
        )
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        found = DeepSpeedPlugin().deepspeed_config["zero_optimization"].items()
        settings = {key: value for key, value in found if value not in (None, "auto")}
        DeepSpeedZeroConfig(**settings)
    except (ValueError, TypeError, AttributeError, OSError) as error:  # accelerate checks little itself
        raise BadSpec(f"The configuration of DeepSpeed cannot be used: {error}") from error
    _refuse(settings)
    return settings


def _refuse(settings: dict[str, Any]) -> None:
    """Refuse what would be another run than the spec says, and what DeepSpeed itself finds only with the base read."""
    if rounding := [key for key in ROUNDING if settings.get(key)]:
        raise BadSpec(
            f"{rounding[0]} of DeepSpeed rounds the weights of the base, which the spec has to say, since losses "
            "change. Take it out, and set quantization in the spec."
        )
    offload = settings.get("offload_param") or {}
    if offload.get("device") == "nvme":
        from deepspeed.ops import __compatible_ops__ as operations

        if not offload.get("nvme_path"):
            raise BadSpec("The configuration of DeepSpeed cannot be used: offload_param to nvme needs its nvme_path.")
        if not operations.get("async_io"):
            raise BadSpec(
                "offload_param to nvme needs the operation async_io of DeepSpeed, which cannot be built here "
                "(`ds_report` says why; on Linux it takes libaio). Offload to cpu, or install it."
            )


def unused_settings() -> str:
    """Return in a sentence what of the configuration is not used; empty if DeepSpeed was not asked for or has its part.

    Raises:
        BadSpec: see `stage`.
    """
    if not wanted() or stage() in (0, WEIGHTS):
        return ""
    return (
        f"Stage {stage()} of ZeRO spreads gradients and moments of what is trained. They stay whole in every process, "
        "as without DeepSpeed; stage 3 spreads the weights of the base."
    )


def unused() -> Any:
    """Return a context in which Accelerate does not use DeepSpeed itself: its engine would own optimiser and loss."""
    return patch_environment(ACCELERATE_USE_DEEPSPEED="false")


@contextmanager
def _bare(model: nn.Module) -> Iterator[None]:
    """Take the adapters out of the tree of modules, and leave their hooks where they are."""
    chains = [
        (m, name, child) for m in model.modules() for name, child in m.named_children() if isinstance(child, Chain)
    ]
    for module, name, _ in chains:
        del module._modules[name]
    try:
        yield
    finally:
        for module, name, chain in chains:
            module._modules[name] = chain


def spread(model: nn.Module, device: torch.device, count: int) -> None:
    """Leave each process its share of the base; modules fetch the rest while they run.

    Args:
        model: a causal language model, whole on every process, perhaps with adapters.
        device: where it computes.
        count: of the processes.
    """
    import deepspeed

    # Between processes of one CPU gloo does; DeepSpeed would first compile something faster, for minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    settings = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": count, "zero_optimization": _configuration()}
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    settings |= {name: {"enabled": dtype == model.dtype} for name, dtype in dtypes.items()}
    own = [(module, list(module._forward_pre_hooks)) for module in model.modules()]
    with _bare(model):
        deepspeed.zero.Init(module=model, config_dict_or_path=settings)  # one weight after the other
        deepspeed.initialize(model=model, config=settings)
    for module, hooks in own:
        for hook in hooks:  # adapters that stand in for a weight do so when it has been fetched
            module._forward_pre_hooks[hook] = module._forward_pre_hooks.pop(hook)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
