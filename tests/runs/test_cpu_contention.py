"""The warning about busy processors."""

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
import torch

from llm_adapters_lab.runs import environment
from llm_adapters_lab.runs.environment import cpu_contention


@pytest.fixture
def burners() -> Iterator[None]:
    """As many busy processes as there are processors."""
    burn = [sys.executable, "-c", "import time; end = time.time() + 60\nwhile time.time() < end: pass"]
    started = [subprocess.Popen(burn) for _ in range(os.cpu_count() or 1)]
    yield
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("burners")
def test_others_that_take_the_processors_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: max(2, os.cpu_count() or 1))
    said = cpu_contention(1.0)
    assert f"of {os.cpu_count()} processors busy" in said
    assert "OMP_NUM_THREADS=1 may be" in said


@pytest.mark.usefixtures("burners")
def test_one_thread_gets_no_warning() -> None:
    assert torch.get_num_threads() == 1
    assert cpu_contention() == ""


def test_what_this_process_does_itself_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    still = psutil.cpu_times()  # the rest of the machine stands still
    monkeypatch.setattr(psutil, "cpu_times", lambda: still)
    before, start = environment._others(), os.times()
    while (now := os.times()).user - start.user < 0.5:
        pass
    own = now.user + now.system - start.user - start.system
    assert before - environment._others() == pytest.approx(own, abs=0.1)
