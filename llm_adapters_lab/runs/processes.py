"""Processes: start one that outlives this one, identify one by more than its pid, and tell whether it is alive."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

Who = dict[str, Any]
CLOCK = 2.0
"""Seconds by which the start time of a process may shift, because the clock of the machine is adjusted."""
_children: dict[tuple[int, float | None], subprocess.Popen[bytes]] = {}


def who(pid: int | None = None) -> Who:
    """Return what identifies a process: pid, host and start time in seconds since the epoch; default: this process."""
    pid = pid or os.getpid()
    try:
        begun = psutil.Process(pid).create_time()
    except psutil.Error:
        begun = None
    return {"pid": pid, "host": platform.node(), "begun": begun}


def command(*words: str) -> tuple[list[str], dict[str, str]]:
    """Return a command line of the lab, and an environment in which a child process imports this very code."""
    home = Path(__file__).parents[2]
    paths = ["" if home.name == "site-packages" else str(home), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    return [sys.executable, "-P", "-m", "llm_adapters_lab", *words], environment


def spawn(command: list[str], environment: dict[str, str], log: Path) -> Who:
    """Start a process that outlives this one and its terminal; its output goes to a file."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
        )
    return adopt(child)


def adopt(child: subprocess.Popen[bytes]) -> Who:
    """Keep a child of this process, so that `lives` and `exit_code` know how it ends, and return what identifies it."""
    process = who(child.pid)
    _children[child.pid, process["begun"]] = child
    return process


def exit_code(process: Who) -> int | None:
    """Return the exit code of a child of this process that has ended, -9 for signal 9; None for any other process."""
    child = _children.get((process["pid"], process["begun"]))
    with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(1) if child else None  # its threads end one by one
    return None


def lives(process: Who) -> bool | None:
    """Return whether a process is alive; None for one on another host, which cannot be asked."""
    if process["host"] != platform.node():
        return None
    child = _children.get((process["pid"], process["begun"]))
    if child is not None and child.poll() is not None:  # unless asked, it stays as a zombie
        return False
    try:
        found = psutil.Process(process["pid"])
        same = process["begun"] is None or abs(found.create_time() - process["begun"]) < CLOCK
        return same and found.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
