"""What the fault tests share: a small run, what it leaves when nothing happens, and real processes that do it."""

from collections.abc import Iterator

import pytest
import teams
from fault_lab import Lab
from nursery import FIELDS, Nursery

from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with Nursery(folder) as nursery:
        yield Lab.of(nursery, folder, FIELDS)


@pytest.fixture(scope="session")
def alone(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What one process makes of the run of a team."""
    folder = tmp_path_factory.mktemp("alone")
    child = lab.nursery.start("run", teams.spec(folder), "--root", folder / "runs")
    return teams.done([child], Run(folder / "runs" / RunSpec.parse(teams.FIELDS).id))
