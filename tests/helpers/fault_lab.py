"""A run to do, and processes that do it, for the fault tests."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nursery import FIELDS, Child, Nursery
from records import timeless

from llm_adapters_lab.runs.record import Run

STEPS = FIELDS["train"]["max_steps"]


class Lab(NamedTuple):
    """A run to do and something to do it with.

    Attributes:
        nursery: starts processes.
        spec: file with the spec.
        id: of the run.
        whole: what it leaves when nothing interrupts it.
    """

    nursery: Nursery
    spec: Path
    id: str
    whole: dict[str, Any]

    def start(self, root: Path, *words: object, **limits: object) -> Child:
        """Start the run in a root."""
        return self.nursery.start("run", self.spec, "--root", root, *words, **limits)

    def finish(self, root: Path) -> None:
        """Take the run up again, and see that it ends as if nothing had been."""
        child = self.start(root)
        assert child.wait() == 0, child.said
        assert timeless(self.record(root)) == self.whole

    def record(self, root: Path) -> Run:
        """Return the run in a root."""
        return Run(root / self.id)

    def steps(self, root: Path) -> int:
        """Return how many steps its log tells of."""
        return sum(1 for _ in self.record(root).events("Step"))


def until(true: Callable[[], Any], child: Child, seconds: float = 120.0) -> None:
    """Wait, until something is true or the process has ended."""
    end = time.monotonic() + seconds
    while not true() and child.poll() is None:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
