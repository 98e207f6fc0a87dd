"""Locks: at most one process, or one group of processes, works on a run at a time."""

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
from typing import TYPE_CHECKING

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.runs.processes import Who, lives, who
from llm_adapters_lab.runs.record import Run

if TYPE_CHECKING:
    from llm_adapters_lab.training.distributed import ProcessGroup

_held: set[int] = set()
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def hold(lock: Path, seconds: float = 60.0, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock file, waiting for it if need be; the lock of a dead process is free.

    It is a lock of the operating system, which ends with the process, however that ends. The file names its holder,
    which is why `filelock` is not used: its files do not. Where a file system has no locks, this is an error.

    Args:
        lock: path of the file; it contains `who` while it is held, and is removed afterwards.
        seconds: to wait, at most.
        waiting: called repeatedly while waiting, with the content of the file; may raise to give up.

    Raises:
        LabError: another process holds it.
    """
    until = time.monotonic() + seconds
    while (handle := _take(lock)) is None:
        held = _read(lock)
        if time.monotonic() > until:
            raise LabError(f"{lock} is held by {held or 'another process'}. Stop that first, or wait for it.")
        if waiting:
            waiting(held)
        time.sleep(0.02)
    _held.add(handle)
    try:
        yield
    finally:
        _held.discard(handle)
        with contextlib.suppress(OSError):  # a failed disk has been reported already
            lock.unlink()
        os.close(handle)


def _let_go() -> None:
    """Close the locks of the parent in a forked process, which would hold them longer than the parent lives."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


def holder(lock: Path) -> Who | None:
    """Return the process that holds a lock file, as far as this machine can tell; None if it is free."""
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
        if error.errno not in _NO_LOCKS:  # on a file system without locks, nothing is locked
            os.close(handle)
            raise
    try:
        # The previous holder may have removed the file in between.
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
    except (FileNotFoundError, NotADirectoryError):
        return ""


BUSY = 10.0
"""Seconds that a group of processes waits for another that works on its run."""


class Stopping(Exception):
    """A stop of the run was requested."""


@contextmanager
def exclusive(
    run: Run, stop: threading.Event | None, say: Callable[[str], None], group: ProcessGroup
) -> Iterator[None]:
    """Have exclusive access to a run, waiting while another process works on it.

    Args:
        run: its folder is created if need be.
        stop: set it to stop waiting; then `Stopping` is raised.
        say: called once with a message about the other process.
        group: the processes that want access; the main one holds the lock, and gives up after `BUSY` seconds.
    """
    reported: list[str] = []

    def waiting(holder: str) -> None:
        if stop is not None and stop.is_set():
            raise Stopping
        if holder and not reported:
            reported.append(holder)
            say(f"Another process works on {run.id}; waiting for its result: {holder}")

    with ExitStack() as lock:
        with group.all_or_none():
            if group.is_main:
                run.folder.mkdir(parents=True, exist_ok=True)
                lock.enter_context(hold(run.lock, math.inf if group.count == 1 else BUSY, waiting))
        yield


def unlock(run: Run) -> None:
    """Remove the lock of a process that died after it had written the result, and no other."""
    if run.lock.exists():
        with suppress(LabError, OSError), hold(run.lock, seconds=0):
            pass
