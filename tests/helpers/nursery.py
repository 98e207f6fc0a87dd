"""Nursery: imports the lab once and forks a process for every command. From there on each is the command line's own.

What it saves is the seconds that importing torch takes; the children share nothing with each other.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
FIELDS: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4, "dropout": 0.1},
    "data": {"task": "mini-math", "rows": 12, "validation": 2},
    "train": {
        **{"batch": 4, "micro_batch": 2, "max_steps": 16, "epochs": 9.0, "learning_rate": 1e-2},
        **{"evaluate_every": 5, "checkpoint_every": 2},
    },
    "eval": {"tasks": ["mini-bool", "mini-addsub"], "rows": 6, "batch": 2, "max_new_tokens": 4},
}


class Child:
    """A command at work.

    Attributes:
        pid: of its process, which leads a group of its own.
        out: file with all it has printed.
    """

    def __init__(self, nursery: Nursery, pid: int, out: Path) -> None:
        self.nursery, self.pid, self.out, self.code = nursery, pid, out, None

    def wait(self, seconds: float = 120.0) -> int:
        """Return the exit code once it has ended, -9 for signal 9."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            assert time.monotonic() < until, f"{self.pid} goes on and on: {self.said}"
            time.sleep(0.005)
        return code

    def poll(self) -> int | None:
        """Return the exit code, None while it works."""
        if self.code is None:
            self.code = self.nursery.ask({"pid": self.pid})["code"]
        return self.code

    def send(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """What it has printed."""
        return self.out.read_text(encoding="utf-8", errors="replace") if self.out.is_file() else ""


class Nursery:
    """Starts commands; to be used in `with`."""

    def __init__(self, folder: Path) -> None:
        """Import the lab in another process.

        Args:
            folder: for what the commands print.
        """
        self.folder, self.count = folder, 0
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-P", __file__]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def start(self, *words: object, **limits: object) -> Child:
        """Start a command.

        Args:
            words: of it, after `python -m llm_adapters_lab`; or "-c" and a program.
            limits: `user`: id of the user it runs as; `file`: bytes that a file may have; `folder`: where it works;
                `path`: where Python looks first; `variables`: more of the environment.
        """
        self.count += 1
        out = self.folder / f"{self.count}.out"
        return Child(self, self.ask({"words": [*map(str, words)], "out": str(out), **limits})["pid"], out)

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Give an order to the other side, and return its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def _serve() -> None:
    """Take orders from stdin until it ends; then end the children too."""

    import llm_adapters_lab.cli.result_commands
    import llm_adapters_lab.runs.execution  # noqa: F401

    ended: dict[int, int | None] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "pid" in order:
            pid = order["pid"]
            if ended[pid] is None and (found := os.waitpid(pid, os.WNOHANG))[0]:
                ended[pid] = os.waitstatus_to_exitcode(found[1])
            answer = {"code": ended[pid]}
        elif (pid := os.fork()) == 0:
            _be(order)
        else:
            ended[pid], answer = None, {"pid": pid}
        print(json.dumps(answer), flush=True)
    for pid, code in ended.items():
        if code is None:
            os.kill(pid, 9)


def _be(order: dict[str, Any]) -> None:
    """Be the command line: as `python -m llm_adapters_lab`, with its own streams."""
    os.setsid()
    handle = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if "file" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file"], resource.RLIM_INFINITY))
    if "user" in order:
        os.setgroups([])
        os.setgid(order["user"])
        os.setuid(order["user"])
    if "folder" in order:
        os.chdir(order["folder"])
    os.environ.update(order.get("variables", {}))
    sys.path[:0] = [order["path"]] if "path" in order else []
    from llm_adapters_lab.cli.app import app

    code = 0
    try:
        if order["words"][0] == "-c":
            exec(order["words"][1], {})
        else:
            app(order["words"], prog_name="llm_adapters_lab")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
