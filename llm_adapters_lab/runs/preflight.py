"""Before a run: read the rows it needs, and find what is wrong before any weight loads."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import torch
from accelerate.utils import is_torch_version

from llm_adapters_lab._version import __version__
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models import loading, quantization
from llm_adapters_lab.models.blueprint import named
from llm_adapters_lab.runs import trackers
from llm_adapters_lab.runs.forecast.fits import require_memory
from llm_adapters_lab.runs.rows import Rows, read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training import deepspeed_zero
from llm_adapters_lab.training.compilation import require_compiler
from llm_adapters_lab.training.distributed import ProcessGroup, sharded


def preflight(spec: RunSpec) -> Rows:
    """Read the rows of a run, and check all that can be checked before its weights load.

    Raises:
        LabError: spec, rows, base or placement are at fault, or there is not enough memory.
    """
    rows = read_rows(spec)
    check_spec(spec)
    require_memory(spec, rows)
    return rows


def check_spec(spec: RunSpec) -> None:
    """Check model and placement on a model without weights, and that what the training asks for is there."""
    trackers.require(spec.train.trackers)
    skeleton: Any = loading.skeleton(spec.base, trust_remote_code=spec.trust_remote_code)
    if sharded():
        _check_spread(spec.base, named(skeleton, spec.quantization))
    quantization.check(spec.base, skeleton.config, spec.quantization)
    if spec.quantization.startswith("nf4") and not torch.cuda.is_available():
        quantization.check_widths(quantization.projections(skeleton))
    if spec.adapter:
        if spec.train.compile:
            require_compiler("cuda" if torch.cuda.is_available() else "cpu")
        entry = get_adapter(spec.adapter.type)
        entry.cls.sites(Anatomy.of(skeleton), skeleton, spec.adapter.at or entry.at)


def _check_spread(base: str, quantization: str) -> None:
    """Refuse packed weights that cannot be spread over processes."""
    if quantization == "int8" and not deepspeed_zero.wanted():
        raise BadSpec(f"{base} in int8 does not go with FSDP, which loses its scales. Choose nf4, or ZeRO 3.")
    if quantization == "torchao":
        raise BadSpec(f"{base} is packed by torchao, which FSDP and ZeRO 3 cannot spread. Leave it whole: --multi_gpu.")


def check_group(group: ProcessGroup, spec: RunSpec, fresh: bool) -> None:
    """Check that all processes of a group are about to do the same run, and can.

    Raises:
        BadSpec: they are not, or cannot.
    """
    if group.count > 1:
        versions = {name: version(name) for name in ("torch", "transformers", "accelerate")}
        wanted = {"the spec": spec.canonical(), "fresh": fresh, "FSDP or ZeRO 3": sharded()}
        group.agree({"llm_adapters_lab": __version__, **versions, **wanted})
        _check_shareable(spec, group.count)


def _check_shareable(spec: RunSpec, count: int) -> None:
    if spec.adapter and spec.train.batch % count:
        raise BadSpec(
            f"train.batch = {spec.train.batch} cannot be shared equally among {count} processes. "
            "Choose a multiple of their number; the batch is that of all of them together."
        )
    if spec.device_map != "none":
        raise BadSpec(
            f"device_map = {spec.device_map} lays the base over all devices; each of {count} processes has its own. "
            "Set it to none and spread the base by FSDP or ZeRO 3, see docs/processes.md; or start one process."
        )
    if sharded() and spec.train.compile:
        raise BadSpec("train.compile does not go with FSDP or ZeRO 3, whose layers change their weights. Take it out.")
    if not sharded() or deepspeed_zero.wanted():
        return
    if os.environ.get("FSDP_VERSION", "2") != "2" or is_torch_version("<", "2.7"):
        raise BadSpec("Of FSDP only version 2 is used, from torch 2.7 on. Set fsdp_version: 2 for accelerate.")
