"""One waiting process serves all tests of a worker: pytest changes the environment with every test."""

import os

import pytest

from widgets.kit import warm


@pytest.fixture(autouse=True)
def one_waiting_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.name != "test_warm.py":
        names = ("OMP_NUM_THREADS", "HOME", "LAB_CACHE")
        monkeypatch.setattr(warm, "_surroundings", lambda: (os.getpid(), os.getcwd(), *map(os.environ.get, names)))
