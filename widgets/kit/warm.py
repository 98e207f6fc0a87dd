"""A process that has loaded what runs need, and waits: see `cli.waiting`.

A run in it makes its first step seconds earlier, and it answers commands at once. There is at most one, which ends with
the kernel or after ten idle minutes.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import select
import subprocess
import sys
import sysconfig
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.errors import LabError
from llm_adapters_lab.runs import background
from llm_adapters_lab.runs.processes import Who, adopt, command
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec

LONGEST = 120.0
"""Seconds that an answer may take."""
_waiting: list[tuple[subprocess.Popen[bytes], Any]] = []
_lock, _turn = threading.RLock(), asyncio.Lock()


def prepare() -> subprocess.Popen[bytes]:
    """Return the process that waits; a new one, if there is none that equals one started now."""
    with _lock:
        if (process := _current()) is None:
            before, (line, env) = _surroundings(), command()
            line[-1], pipe = "llm_adapters_lab.cli.waiting", subprocess.PIPE
            streams: Any = {"stdin": pipe, "stdout": pipe, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(line, bufsize=0, env=env, start_new_session=True, **streams)
            _waiting.append((process, before))
        return process


def launch(spec: RunSpec, root: str | Path = "runs") -> Run:
    """Start a run as `background.launch` does, in the waiting process if it is ready."""
    return background.launch(spec, root, begin=begin)


def begin(words: list[str], log: Path) -> Who | None:
    """Execute a command in the waiting process; None if none waits that is ready and equals one started now."""
    with _lock:
        process = _current()
        if process is None or not select.select([process.stdout.fileno()], [], [], 0)[0]:  # type: ignore[union-attr]
            return None
        log.write_bytes(b"")
        _waiting.clear()
        _send(process, words=words, log=str(log))
        _close(process)
        return adopt(process)


async def answer(*words: str) -> tuple[int, str, str]:
    """Execute a command at low priority in a copy of the waiting process; cancelling it ends the command.

    Returns:
        Its exit code, and what it wrote to stdout and stderr.

    Raises:
        LabError: it was killed.
        TimeoutError: it takes too long.
    """
    for _ in range(2):  # a run may take the process
        async with _turn, asyncio.timeout(LONGEST):
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                code, process = Path(folder) / "code", prepare()
                _send(process, words=words, folder=folder)
                try:
                    while not code.exists() and process.poll() is None and process in dict(_waiting):
                        await asyncio.sleep(0.02)
                finally:
                    _send(process)
                if code.exists():
                    out, err = ((Path(folder) / name).read_text("utf-8", "replace") for name in ("out", "err"))
                    return int(code.read_text()), out, err
    raise LabError("The estimate was interrupted twice, perhaps for lack of memory.")


def discard() -> None:
    """End the waiting process."""
    with _lock:
        while _waiting:
            process, _ = _waiting.pop()
            _close(process)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.kill()
            process.wait()


def _current() -> subprocess.Popen[bytes] | None:
    if _waiting and (_waiting[0][0].poll() is not None or _waiting[0][1] != _surroundings()):
        discard()
    return _waiting[0][0] if _waiting else None


def _surroundings() -> Any:
    """Return what a process takes over when it starts, and when the code that it loads was changed."""
    packages = {entry.module.partition(".")[0] for entry in all_adapters().values()}
    folders = [Path(folder) for name in packages for folder in getattr(sys.modules.get(name), "__path__", ())]
    files = (file for folder in folders for file in folder.rglob("*.*") if file.suffix in (".py", ".yaml"))
    changed = {file: file.stat().st_mtime_ns for file in (*files, Path(sysconfig.get_path("purelib")))}
    return os.getpid(), os.environ.copy(), os.getcwd(), changed


def _send(process: subprocess.Popen[bytes], **order: Any) -> None:
    with suppress(OSError, ValueError):  # it has ended, or is that of a run
        process.stdin.write(json.dumps(order).encode() + b"\n")  # type: ignore[union-attr]


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        stream.close()  # type: ignore[union-attr]


atexit.register(discard)
