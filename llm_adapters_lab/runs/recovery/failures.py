"""Record why a run failed and how to go on."""

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
from llm_adapters_lab.training.checkpoints import steps
from llm_adapters_lab.training.distributed import ProcessGroup

LONGEST = 10_000
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EIO)


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


def note_failure(spec: RunSpec, record: Run, stage: str, error: BaseException, group: ProcessGroup) -> None:
    """Write in the log that a run could not go on; where the process is gone that would have, another one does."""
    with suppress(OSError, LabError):
        if group.is_main:
            record.append(failed(spec, record, stage, error))
        elif isinstance(error, ProcessLost):
            with hold(record.lock, 5):  # it is free when the first process is dead
                if (last_event(record.log) or {}).get("event") not in ("Failed", "Stopped", "Finished"):
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
