"""A run to do, and processes that do it, for the fault tests."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nursery import FIELDS, Child, Nursery
from records import timeless

from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec

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

    @classmethod
    def of(cls, nursery: Nursery, folder: Path, fields: dict[str, Any]) -> Lab:
        """Write a spec into a folder, and do the run once, undisturbed."""
        spec = folder / "spec.json"
        spec.write_text(json.dumps(fields), encoding="utf-8")
        lab = cls(nursery, spec, RunSpec.parse(fields).id, {})
        child = lab.start(folder / "whole")
        assert child.wait() == 0, child.said
        lab.whole.update(timeless(lab.record(folder / "whole")))
        return lab

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
