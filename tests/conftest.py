"""What all tests share."""

import os

# No test may reach for a network. The hub's library reads these once, when it is imported.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Tiny models are slower on several threads than on one.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_data_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person has set up must not change what a test sees."""
    monkeypatch.delenv("LAB_DATA", raising=False)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Folder and ids of the finished runs of `small_runs`."""
    from small_runs import make

    return make(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for runs whose processes are gone after the test."""
    from launches import end_all

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield tmp_path / "runs"
    end_all(tmp_path / "runs")
