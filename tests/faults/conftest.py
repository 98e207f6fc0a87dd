"""What the fault tests share: a small run, what it leaves when nothing happens, and real processes that do it."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import teams
from nursery import FIELDS, Child, Nursery
from records import timeless

from llm_adapters_lab.record import Run
from llm_adapters_lab.spec import RunSpec

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


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    spec = folder / "spec.json"
    spec.write_text(json.dumps(FIELDS), encoding="utf-8")
    with Nursery(folder) as nursery:
        made = Lab(nursery, spec, RunSpec.parse(FIELDS).id, {})
        child = made.start(folder / "whole")
        assert child.wait() == 0, child.said
        made.whole.update(timeless(made.record(folder / "whole")))
        yield made


@pytest.fixture(scope="session")
def alone(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What one process makes of the run of a team."""
    folder = tmp_path_factory.mktemp("alone")
    child = lab.nursery.start("run", teams.spec(folder), "--root", folder / "runs")
    return teams.done([child], Run(folder / "runs" / RunSpec.parse(teams.FIELDS).id))
