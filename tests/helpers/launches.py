"""Small runs for tests that start them in processes of their own."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_adapters_lab.runs import processes
from llm_adapters_lab.runs.processes import Who, lives
from llm_adapters_lab.runs.queue import keeper
from llm_adapters_lab.runs.spec import RunSpec

SMALL: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4},
    "data": {"task": "mini-math", "rows": 24, "validation": 8},
    "train": {"batch": 8, "max_steps": 3, "learning_rate": 1e-3},
    "eval": {"tasks": ["mini-bool"], "rows": 5, "batch": 3, "max_new_tokens": 4},
}
LONG = {"batch": 8, "max_steps": 5000, "epochs": 1000.0}


def small(**changes: Any) -> RunSpec:
    return RunSpec.parse({**SMALL, **changes})


def until(true: Callable[[], Any], look: Callable[[], Any] = lambda: None, seconds: float = 180.0) -> Any:
    """Wait until something is true, and return it."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
        look()
    return found


def end_all(root: Path) -> None:
    """Kill what a test has launched under a root, whatever became of it."""
    for found in (keeper(root), *_noted(root, "benchmark-*.json")):  # first: they start others
        _kill(found)
    for found in _noted(root, "*.json"):
        _kill(found)
    for child in processes._children.values():
        child.wait(120)


def _noted(root: Path, names: str) -> Iterator[Who]:
    for path in root.glob(f".processes/{names}"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "pid" in found:
            yield found


def _kill(process: Who | None) -> None:
    if process and lives(process):
        with suppress(ProcessLookupError):
            os.kill(process["pid"], signal.SIGKILL)
