"""Record why a run failed and how to resume it."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from llm_adapters_lab.errors import CannotWrite, LabError, ProcessLost
from llm_adapters_lab.events import Failed
from llm_adapters_lab.privacy import without_home
from llm_adapters_lab.runs.event_log import last_event
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.recovery.lock import hold
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import resumes_at as resumes_at
from llm_adapters_lab.training.checkpoints import steps
from llm_adapters_lab.training.distributed import ProcessGroup

LONGEST = 10_000
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EIO)


def explained(error: BaseException, record: Run) -> BaseException:
    """Return a `CannotWrite` for an error of the disk that holds the run, and any other error unchanged."""
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


def note_failure(spec: RunSpec, record: Run, stage: str, error: BaseException, group: ProcessGroup) -> None:
    """Log the failure of a run; if the main process is gone, another one does it."""
    with suppress(OSError, LabError):
        if group.is_main:
            record.append(failed(spec, record, stage, error))
        elif isinstance(error, ProcessLost):
            with hold(record.lock, 5):  # free if the main process is dead
                if (last_event(record.log) or {}).get("event") not in ("Failed", "Stopped", "Finished"):
                    record.append(failed(spec, record, stage, error))


def failed(spec: RunSpec, record: Run, stage: str, error: BaseException) -> Failed:
    """Return the event of a failed run, with advice on how to resume it."""
    kept = max(steps(record.folder), default=0)
    if isinstance(error, LabError) and not isinstance(error, CannotWrite | ProcessLost):
        state = f" The state after step {kept} is kept in checkpoints/{kept:08}." if kept else ""
        advice = f"The same spec would fail again: change it as the error says.{state}"
    else:
        advice = f"Run the same spec again: it resumes {resumes_at(record, spec)}."
    words = _private(f"{type(error).__name__}: {error}")
    trace = _private("".join(traceback.format_exception(error)))[-LONGEST:]
    return Failed(spec.id, stage, words, trace, kept, advice)


def _private(text: str) -> str:
    """Return text without the home folder and the import paths of this machine."""
    for folder in sorted({p for p in sys.path if len(p) > 1}, key=len, reverse=True):
        text = text.replace(f'File "{folder}/', 'File "')
    return without_home(text)
