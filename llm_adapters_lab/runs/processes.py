"""Processes: start one that outlives this, tell which one a pid means and whether it lives, and lock out others."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

Who = dict[str, Any]
_children: dict[tuple[int, int | None], subprocess.Popen[bytes]] = {}


def who(pid: int | None = None) -> Who:
    """Return what tells a process of this machine from any other: pid, host and when it started.

    Args:
        pid: default: this process.
    """
    pid = pid or os.getpid()
    return {"pid": pid, "host": platform.node(), "begun": _stat(pid)[1]}


def command(*words: str) -> tuple[list[str], dict[str, str]]:
    """Return a command line of the lab, and an environment in which a child runs this very code, wherever it is."""
    home = Path(__file__).parents[2]
    paths = ["" if home.name == "site-packages" else str(home), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    return [sys.executable, "-P", "-m", "llm_adapters_lab", *words], environment


def spawn(command: list[str], environment: dict[str, str], log: Path) -> Who:
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
