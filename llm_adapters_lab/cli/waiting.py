"""A process that has loaded what runs need and waits for orders on stdin: what the panels keep ready."""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_adapters_lab.cli.arguments import load_spec
from llm_adapters_lab.errors import LabError
from llm_adapters_lab.files import write_json

IDLE, NICE = 600, 10
"""Seconds without an order after which it ends, and the priority of answers."""


def main() -> None:
    """Become the process of the first run that is ordered; other commands are executed by forked copies."""
    load()
    os.write(1, b"ready")
    copy = 0
    signal.alarm(IDLE)
    for line in sys.stdin.buffer:
        order = json.loads(line)
        signal.alarm(0 if "log" in order else IDLE)
        if copy:  # has answered, or is not needed any more
            os.kill(copy, signal.SIGKILL)
            os.waitpid(copy, 0)
        copy = os.fork() if "folder" in order else 0
        if "log" in order:
            return _execute(order["words"], order["log"], order["log"])
        if "folder" in order and not copy:
            _answer(order["words"], order["folder"])
    os._exit(0)


def load() -> bool:
    """Load what runs need, unless this process has; return whether runs can be executed in forked copies of it."""
    if "llm_adapters_lab.runs.execution" not in sys.modules:
        loader = threading.Thread(target=_load)
        loader.start()
        loader.join()
        gc.collect()
        gc.freeze()  # a copy that looked through all objects would copy their memory
    import torch

    return sys.platform == "linux" and not torch.cuda.device_count()


def fork(words: list[str], log: Path) -> dict[str, Any]:
    """Execute a command in a copy of this process that outlives it, and return what identifies the copy."""
    from llm_adapters_lab.runs.processes import who

    log.write_bytes(b"")
    sys.stdout.flush()
    sys.stderr.flush()
    asked = (signal.SIGINT, signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, asked)  # the handlers of this process would swallow them
    try:
        pid = os.fork()
        if not pid:
            for number in (*asked, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid:
        return who(pid)
    code = 1
    try:
        os.setsid()
        _execute(words, str(log), str(log))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:  # what the original has begun must not be ended here
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _load() -> None:
    """Load the libraries and use them once, in a thread of low priority: a process cannot raise its own again."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    import torch

    from llm_adapters_lab.runs import execution, preview  # noqa: F401

    if not torch.cuda.device_count():  # a GPU that was used here would be lost to the copies
        with suppress(LabError):
            preview.dry_run(load_spec(Path("quickstart")), os.devnull)


def _answer(words: list[str], folder: str) -> None:
    os.nice(NICE)
    signal.alarm(IDLE)
    code = 1
    try:
        _execute(words, f"{folder}/out", f"{folder}/err")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:  # there is nothing to tidy up, which would take as long as the answer
        sys.stdout.flush()
        with suppress(OSError):
            write_json(Path(folder) / "code", code)
        os._exit(0)


def _execute(words: list[str], out: str, err: str) -> None:
    """Do what `python -m llm_adapters_lab WORDS` does."""
    for stream, path in enumerate((os.devnull, out, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT), stream)
    sys.argv[1:] = words
    runpy.run_module("llm_adapters_lab", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
