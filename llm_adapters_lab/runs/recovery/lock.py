"""One process at a time works on a run."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.runs.processes import Who, lives, who
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.training.distributed import ProcessGroup

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def hold(lock: Path, seconds: float = 60.0, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock file, waiting for it so long; that of a process which is dead is free.

    The lock is the operating system's own: it ends with the process, however that ends, and no clock is asked.

    Args:
        lock: path of the file; it holds `who` while it is held, and is gone afterwards.
        seconds: to wait.
        waiting: called again and again while this waits, with what the file says; may raise to give up.

    Raises:
        LabError: another process holds it all the time.
    """
    until = time.monotonic() + seconds
    while (handle := _take(lock)) is None:
        held = _read(lock)
        if time.monotonic() > until:
            raise LabError(f"{lock} is held by {held or 'another process'}. Stop that first, or wait for it.")
        if waiting:
            waiting(held)
        time.sleep(0.02)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a disk that has failed has been told of already
            lock.unlink()
        os.close(handle)


def holder(lock: Path) -> Who | None:
    """Return who holds a lock file, as far as this machine can tell; None for nobody."""
    try:
        held: Who = json.loads(_read(lock))
        return None if lives(held) is False else held
    except (ValueError, KeyError, TypeError):  # free, or just being taken
        return None


def _take(lock: Path) -> int | None:
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # a file system without locks shuts nobody out
            os.close(handle)
            raise
    try:
        # Who held it before may have taken the file away in between; then this is a lock on nothing.
        if os.fstat(handle).st_ino == lock.stat().st_ino:
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(who()).encode())
            return handle
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _read(lock: Path) -> str:
    try:
        return lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


BUSY = 10.0
"""Seconds that several processes wait for another that works on their run."""


class Stopping(Exception):
    """The run was asked to stop."""


@contextmanager
def exclusive(
    run: Run, stop: threading.Event | None, say: Callable[[str], None], group: ProcessGroup
) -> Iterator[None]:
    """Be the only process, or the only ones, that work on a run, waiting as long as another does.

    Args:
        run: its folder is made if need be.
        stop: set to wait no longer; then `Stopping` is raised.
        say: told once what is waited for.
        group: the processes that want to; the first one holds the lock, and not to let the others wait, gives up soon.
    """
    told: list[str] = []

    def waiting(holder: str) -> None:
        if stop is not None and stop.is_set():
            raise Stopping
        if holder and not told:
            told.append(holder)
            say(f"Another process works on {run.id}, and this one waits for its result: {holder}")

    with ExitStack() as lock:
        with group.all_or_none():
            if group.is_main:
                run.folder.mkdir(parents=True, exist_ok=True)
                lock.enter_context(hold(run.lock, math.inf if group.count == 1 else BUSY, waiting))
        yield


def unlock(run: Run) -> None:
    """Take away the lock of a process that died after it had written the result, and nobody else's."""
    if run.lock.exists():
        with suppress(LabError, OSError), hold(run.lock, seconds=0):
            pass
