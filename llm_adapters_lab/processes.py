"""Processes: start one that outlives this, tell which one a pid means and whether it lives, and lock out others."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import LabError

Who = dict[str, Any]
_children: dict[tuple[int, int | None], subprocess.Popen[bytes]] = {}


def who(pid: int | None = None) -> Who:
    """Return what tells a process of this machine from any other: pid, host and when it started.

    Args:
        pid: default: this process.
    """
    pid = pid or os.getpid()
    return {"pid": pid, "host": platform.node(), "begun": _stat(pid)[1]}


def spawn(command: list[str], log: Path, environment: dict[str, str]) -> Who:
    """Start a process that goes on without this one and its terminal; what it prints goes to a file."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
        )
    process = who(child.pid)
    _children[child.pid, process["begun"]] = child
    return process


def exit_code(process: Who) -> int | None:
    """Return the exit code of a process that this one has started and that has ended, -9 for signal 9; else None."""
    child = _children.get((process["pid"], process["begun"]))
    with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(1) if child else None  # its threads end one by one
    return None


def lives(process: Who) -> bool | None:
    """Say whether a process is still there; None for one on another host, which cannot be asked."""
    if process["host"] != platform.node():
        return None
    child = _children.get((process["pid"], process["begun"]))
    if child is not None and child.poll() is not None:  # unless asked, it stays as a zombie
        return False
    state, begun = _stat(process["pid"])
    if state:
        return state not in "ZX" and begun == process["begun"]
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not Path("/proc/self/stat").is_file()


def _stat(pid: int) -> tuple[str, int | None]:
    """Return state and start of a process in ticks since boot; ("", None) where there is no /proc, or no such pid."""
    try:
        # The name of the program, in brackets, may itself hold brackets and spaces.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", None
    return fields[0], int(fields[19])


@contextlib.contextmanager
def hold(lock: Path, seconds: float = 60.0) -> Iterator[None]:
    """Hold a lock file, waiting for it so long; that of a process which is dead is taken over.

    Raises:
        LabError: another process holds it all the time.
    """
    until = time.monotonic() + seconds
    while not _create(lock):
        held = _read(lock)
        if held is not None and _is_stale(lock, held):
            # Only one may take it away, and only if it still is the one that was found to be stale.
            with hold(lock.with_name(lock.name + "+"), seconds):
                if _read(lock) == held:
                    lock.unlink(missing_ok=True)
        elif time.monotonic() > until:
            raise LabError(f"{lock} is held by {held or 'another process'}. If that is gone, delete the file.")
        else:
            time.sleep(0.02)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _create(lock: Path) -> bool:
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(json.dumps(who()))
    return True


def _read(lock: Path) -> str | None:
    try:
        return lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _is_stale(lock: Path, held: str) -> bool:
    try:
        return lives(json.loads(held)) is False
    except (ValueError, KeyError, TypeError):  # not written yet; or never, because who made it died before
        with contextlib.suppress(FileNotFoundError):
            return time.time() - lock.stat().st_mtime > 5
        return False
