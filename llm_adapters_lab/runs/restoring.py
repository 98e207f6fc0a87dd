"""Load the base of a run, with the adapter that it has trained."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.saving import load_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models import loading
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.models.loading import Base
from llm_adapters_lab.runs.hashes import outdated
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec


def restore(record: Run, base: Base | None = None, name: str = "default") -> tuple[Base, Injection | None]:
    """Load the base of a run with its trained adapter.

    Args:
        record: the run.
        base: its base, if it is in memory already, perhaps with other adapters in it.
        name: of the adapter in the base.

    Raises:
        BadSpec: the run has an adapter that was not trained to the end.
        WrongBase: the base is no longer the one it was trained on.

    Warns:
        UserWarning: its tokenizer or configuration is no longer the one of the run.
    """
    spec = record.spec
    if spec.adapter and not (record.folder / "adapter" / "adapter.json").is_file():
        raise BadSpec(f"The run {record.id} has no trained adapter ({record.summary['status']}). Run its spec again.")
    base = base or load_base(spec)
    if text := outdated(record):
        warnings.warn(text, stacklevel=2)
    if spec.adapter is None:
        return base, None
    return base, load_adapter(base.model, record.folder / "adapter", name=name, tokenizer=base.tokenizer)


def calibration(record: Run, count: int) -> dict[str, Any]:
    """Return the base of a run as "model", and as "ids" its first training rows, cut to the shortest of them.

    Raises:
        LabError: base or rows cannot be read.
    """
    base = load_base(record.spec)
    samples = read_rows(record.spec).samples(base.tokenizer, record.spec.data)[0][:count]
    length = min(len(sample.ids) for sample in samples)
    return {"model": base.model, "ids": torch.tensor([sample.ids[:length] for sample in samples])}


def load_base(spec: RunSpec, plan: Blueprint | None = None) -> Base:
    """Load the base of a run; `plan` is its blueprint, if it has been read.

    Raises:
        LabError: see `models.load_base`.
        BadSpec: it has no tokenizer.
    """
    plan = plan or Blueprint(*spec.base_parts)
    plan.usable_tokenizer(trains=False)
    return loading.load_base(plan, spec.dtype, quantization=spec.quantization, device_map=spec.device_map)
