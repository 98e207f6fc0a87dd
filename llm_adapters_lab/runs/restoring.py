"""Load what a run has trained."""

from __future__ import annotations

from typing import Any

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.saving import load_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models import loading
from llm_adapters_lab.models.loading import Base
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec


def restore(record: Run) -> tuple[Base, Injection | None]:
    """Load the base of a run with its trained adapter.

    Raises:
        BadSpec: the run has an adapter that was not trained to the end.
        WrongBase: the base is no longer the one it was trained on.
    """
    spec = record.spec
    base = load_base(spec)
    if spec.adapter is None:
        return base, None
    if not (record.folder / "adapter" / "adapter.json").is_file():
        raise BadSpec(f"The run {record.id} has no trained adapter ({record.summary['status']}). Run its spec again.")
    return base, load_adapter(base.model, record.folder / "adapter", tokenizer=base.tokenizer)


def load_base(spec: RunSpec) -> loading.Base:
    """Load the base of a run, as the spec wants it.

    Raises:
        LabError: see `models.load`.
        BadSpec: it has no tokenizer.
    """
    how: dict[str, Any] = {"quantization": spec.quantization, "device_map": spec.device_map}
    base = loading.load_base(spec.base, spec.dtype, trust_remote_code=spec.trust_remote_code, **how)
    if base.tokenizer is None:
        raise BadSpec(f"{spec.base} is random and has no tokenizer: inspect it, or use base: nano.")
    return base
