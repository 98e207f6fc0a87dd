"""Outcome: what a run tells of itself when it begins, when it is complete and when it could not go on."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_adapters_lab import weights
from llm_adapters_lab.checkpoint import steps
from llm_adapters_lab.environment import environment, peak_memory
from llm_adapters_lab.errors import CannotWrite, LabError, ProcessLost
from llm_adapters_lab.events import Failed, Started
from llm_adapters_lab.formats import LIBRARIES
from llm_adapters_lab.inject import Injection
from llm_adapters_lab.models import Base
from llm_adapters_lab.processes import hold
from llm_adapters_lab.quantization import scheme
from llm_adapters_lab.ranks import Ranks
from llm_adapters_lab.record import Run
from llm_adapters_lab.spec import RunSpec
from llm_adapters_lab.tail import last_event
from llm_adapters_lab.untrusted import without_home
from llm_adapters_lab.wrappers.quantize import packed

LONGEST = 10_000
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EIO)


def started(spec: RunSpec, base: Base, injection: Injection | None, steps: int) -> Started:
    """Return the event a run begins with."""
    trainable = injection.count() if injection else 0
    total = weights.total(base.model)
    return Started(spec.id, steps, trainable, total - trainable, str(weights.device(base.model)))


def summary(
    spec: RunSpec,
    base: Base,
    injection: Injection | None,
    scores: dict[str, Any],
    trained: dict[str, Any] | None,
    hashes: dict[str, Any],
) -> dict[str, Any]:
    """Return the result of a run."""
    begun = started(spec, base, injection, 0)
    packages = LIBRARIES.get(scheme(base.model), ())
    return {
        "id": spec.id,
        "status": "finished",
        "adapter": spec.adapter.model_dump(mode="json") if spec.adapter else None,
        "base": spec.base,
        "trainable_parameters": begun.trainable_parameters,
        "base_parameters": begun.base_parameters,
        "adapter_bytes": sum(t.numel() * t.element_size() for t in packed(injection).values()) if injection else 0,
        "scores": scores,
        "train": trained,
        "environment": environment(begun.device, base.model.dtype, *packages),
        "hashes": hashes,
    }


def training(record: Run) -> dict[str, Any]:
    """Return how a training went that is complete; its log tells, also of what an earlier process has done."""
    first = last = next(record.events("Step"))
    for event in record.events("Step"):
        last = event
    known = ("tokens", "seconds", "tokens_per_second")
    return {
        "steps": last["step"],
        **{key: last[key] for key in known},
        "loss_first": first["loss"],
        "loss_last": last["loss"],
        "peak_memory_bytes": peak_memory(),
    }


def explained(error: BaseException, record: Run) -> BaseException:
    """Return an error of the lab for one of the disk that a run is on, and any other as it is."""
    if isinstance(error, LabError) or not isinstance(error, OSError):
        return error
    ours = error.filename is None or Path(error.filename).absolute().is_relative_to(record.folder.absolute())
    if error.errno not in _FULL and not (error.errno in _FORBIDDEN and ours):
        return error
    told = CannotWrite(
        f"{record.folder} cannot be written to: {os.strerror(error.errno)}. Nothing that was saved before is lost. "
        "Make room or lift the protection, then run the same spec again."
    )
    told.__cause__ = error
    return told


def note_failure(spec: RunSpec, record: Run, stage: str, error: BaseException, ranks: Ranks) -> None:
    """Write in the log that a run could not go on; where the process is gone that would have, another one does."""
    with suppress(OSError, LabError):
        if ranks.leads:
            record.append(failed(spec, record, stage, error))
        elif isinstance(error, ProcessLost):
            with hold(record.lock, 5):  # it is free when the first process is dead
                if (last_event(record) or {}).get("event") not in ("Failed", "Stopped", "Finished"):
                    record.append(failed(spec, record, stage, error))


def failed(spec: RunSpec, record: Run, stage: str, error: BaseException) -> Failed:
    """Return the event of a run that could not go on, with what its owner needs to know to continue."""
    kept = max(steps(record.folder), default=0)
    if isinstance(error, LabError) and not isinstance(error, CannotWrite | ProcessLost):
        state = f" The state after step {kept} is kept in checkpoints/{kept:08}." if kept else ""
        advice = f"The same spec would fail again: change it as the error says.{state}"
    else:
        advice = f"Run the same spec again: it goes on {goes_on(record, spec)}."
    words = _private(f"{type(error).__name__}: {error}")
    trace = _private("".join(traceback.format_exception(error)))[-LONGEST:]
    return Failed(spec.id, stage, words, trace, kept, advice)


def goes_on(record: Run, spec: RunSpec) -> str:
    """Return where an unfinished run goes on when its spec is run again."""
    if record.is_trained(spec):
        return "with its scoring"
    return f"after step {kept}" if (kept := max(steps(record.folder), default=0)) else "at the beginning"


def _private(text: str) -> str:
    """Return text without the folders that tell whose machine this is."""
    for folder in sorted({p for p in sys.path if len(p) > 1}, key=len, reverse=True):
        text = text.replace(f'File "{folder}/', 'File "')
    return without_home(text)
