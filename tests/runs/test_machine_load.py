"""How busy the machine is, with and without GPUs."""

import os
from pathlib import Path

import pytest

from llm_adapters_lab.runs.machine_load import Gpu, MachineLoad, machine_load


def test_the_machine_is_measured() -> None:
    found = machine_load()
    assert found.processors == os.cpu_count()
    assert 0 <= found.busy <= 1
    assert 0 < found.used < found.total


def test_only_what_slows_runs_down_is_said() -> None:
    assert MachineLoad(2, 0.5, 1.9, 1, 10).warning == ""
    assert MachineLoad(2, 1.0, 7.0, 1, 10).warning == "2 cores, load 7.0: other programs slow runs down."
    assert MachineLoad(1, 1.0, 7.0, 1, 10).warning.startswith("1 core, ")
    assert MachineLoad(2, 1.0, 7.0, 95, 100).warning == "Memory is 95 % full: a run may be killed."


def test_gpus_are_asked_for_by_their_own_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    for lines, expected in {
        "37, 1024, 81559\\n0, 0, 81559": (Gpu(0.37, 2**30, 81559 * 2**20), Gpu(0, 0, 81559 * 2**20)),
        "[N/A], 1024, 81559": (),
    }.items():
        program.write_text(f"#!/bin/sh\nprintf '{lines}'\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        assert machine_load().gpus == expected
    program.write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    assert machine_load().gpus == ()
