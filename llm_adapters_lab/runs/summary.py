"""The start event and the summary of a run."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.quantized import LIBRARIES, scheme
from llm_adapters_lab.core.sites import placement_counts
from llm_adapters_lab.events import Started
from llm_adapters_lab.models.loading import Base
from llm_adapters_lab.runs.environment import environment, peak_memory
from llm_adapters_lab.runs.forecast.size import size_of
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec


def started(spec: RunSpec, base: Base, injection: Injection | None, steps: int) -> Started:
    """Return the event that starts a run."""
    own = trainable = injection.count() if injection else 0
    if injection and spec.train.regime and spec.learns:
        trainable = size_of(spec, base.blueprint).trainable
    total = weights.num_parameters(base.model)
    return Started(spec.id, steps, trainable, total - own, str(weights.device(base.model)))


def summary(
    spec: RunSpec,
    base: Base,
    injection: Injection | None,
    scores: dict[str, Any],
    trained: dict[str, Any] | None,
    hashes: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of `summary.json`."""
    begun = started(spec, base, injection, 0)
    packages = LIBRARIES.get(scheme(base.model), ())
    return {
        "id": spec.id,
        "status": "finished",
        "adapter": spec.adapter.model_dump(mode="json") if spec.adapter else None,
        "base": spec.base,
        "trainable_parameters": begun.trainable_parameters,
        "base_parameters": begun.base_parameters,
        "adapter_bytes": sum(t.numel() * t.element_size() for t in injection.saved_tensors().values())
        if injection
        else 0,
        "sites": placement_counts(injection.sites.values()) if injection else {},
        "scores": scores,
        "train": trained,
        "environment": environment(begun.device, base.model.dtype, *packages),
        "hashes": hashes,
    }


def training_summary(record: Run) -> dict[str, Any]:
    """Return the content of `train.json` for a complete training, including the part before a resume.

    Measures of the objective are means over the first and last tenth of the steps, as in `reward_first`.
    """
    first = last = next(record.events("Step"))
    for event in record.events("Step"):
        last = event
    measured = [event["measures"] for event in record.events("Step") if event.get("measures")]
    tenth = math.ceil(len(measured) / 10)
    ends = (("first", measured[:tenth]), ("last", measured[-tenth:]))
    means = {f"{name}_{end}": fmean(m[name] for m in some) for end, some in ends for name in last.get("measures", ())}
    known = ("tokens", "seconds", "tokens_per_second")
    return {
        "steps": last["step"],
        **{key: last[key] for key in known},
        "loss_first": first["loss"],
        "loss_last": last["loss"],
        "peak_memory_bytes": peak_memory(),
        **means,
    }
