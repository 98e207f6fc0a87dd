"""Checks of nodes, and sweeps as jobs of submitit's local engine, as no Slurm is available."""

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from records import timeless

from llm_adapters_lab.errors import BadSpec, ClusterError
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.executors import make_executor
from llm_adapters_lab.sweeps.nodes import Job, check_node, marked_root, versions
from llm_adapters_lab.sweeps.remote import check_base, run_job
from llm_adapters_lab.sweeps.slurm_executor import Slurm
from llm_adapters_lab.sweeps.spec import Sweep
from llm_adapters_lab.sweeps.sweeping import SweepRun, records, sweep

SMALL: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 2},
    "data": {"task": "mini-math", "rows": 8},
    "train": {"batch": 4, "max_steps": 2, "checkpoint_every": 1},
    "eval": {"tasks": ["mini-bool"], "rows": 2, "batch": 2, "max_new_tokens": 2, "likelihood": False},
}
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed: it is in the extras slurm and dev"
)


def make_job(root: Path, mark: Path, **changes: str) -> Job:
    return Job(SMALL, str(root), mark.name, versions() | changes)


def test_an_equal_node_passes_the_check(tmp_path: Path) -> None:
    with marked_root(tmp_path) as mark:
        assert check_node(make_job(tmp_path, mark))
    assert not list((tmp_path / ".nodes").iterdir())
    assert {"python", "llm_adapters_lab", "torch"} <= set(versions())
    assert "+" not in versions()["torch"]  # the head node of a cluster often has no GPU


def test_other_versions_are_named(tmp_path: Path) -> None:
    with (
        marked_root(tmp_path) as mark,
        pytest.raises(ClusterError, match=r"has torch \S+, not 1.0; nosuch missing, not 2"),
    ):
        check_node(make_job(tmp_path, mark, torch="1.0", nosuch="2"))


def test_a_root_that_is_not_shared_is_named(tmp_path: Path) -> None:
    with marked_root(tmp_path / "one") as mark:
        with pytest.raises(ClusterError, match="does not see the root .*/two of this sweep: it is not there"):
            check_node(make_job(tmp_path / "two", mark))
        (tmp_path / "two").mkdir()
        with pytest.raises(ClusterError, match="it is another folder there"):
            check_node(make_job(tmp_path / "two", mark))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_root_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ClusterError, match="cannot be written to from here"), marked_root(tmp_path):
        pass


def test_a_root_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match="cannot be written to from here"), marked_root(tmp_path / "file"):
        pass


def test_a_job_that_arrives_after_the_end_is_not_run(tmp_path: Path) -> None:
    with marked_root(tmp_path) as mark:
        (mark / "stop").touch()
        run_job(make_job(tmp_path, mark))
    assert [path.name for path in tmp_path.iterdir()] == [".nodes"]


def test_a_node_can_be_checked_without_torch() -> None:
    code = "import sys, llm_adapters_lab.sweeps.nodes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_base_is_compared_with_the_same_base_loaded_in_the_same_way(tmp_path: Path) -> None:
    def check(root: Path, number: str, **changes: Any) -> None:
        spec = RunSpec.parse({**SMALL, **changes})
        record = Run(root / spec.id)
        record.folder.mkdir(parents=True, exist_ok=True)
        record.write("hashes.json", {"base": number})
        check_base(make_job(root, mark), spec, record)

    with marked_root(tmp_path) as mark:
        check(tmp_path, "a" * 20)
        check(tmp_path, "b" * 20, quantization="nf4")
        check(tmp_path, "a" * 20, seed=1)
        with pytest.raises(
            ClusterError, match=r"The base nano on the node .* \(bbbbbbbbbbbb\) than on .* \(aaaaaaaaaaaa\)"
        ):
            check(tmp_path, "b" * 20)


def test_an_executor_rejects_options_and_values_it_does_not_support() -> None:
    assert make_executor("process", jobs=3, cpus=None).jobs == 3
    with pytest.raises(BadSpec, match="The executor local takes no --cpus, --gpus"):
        make_executor("local", jobs=None, cpus=2, gpus=1)
    for wrong in ({"jobs": 0}, {"cpus": 0}, {"gpus": -1}):
        for name in ("ray", "slurm"):
            with pytest.raises(BadSpec, match=f"{next(iter(wrong))} = {next(iter(wrong.values()))}"):
                make_executor(name, **wrong)
    with pytest.raises(BadSpec, match="whole"):
        make_executor("slurm", gpus=0.5)


@needs_submitit
def test_jobs_have_the_results_of_local_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    what = Sweep.parse({"spec": SMALL, "seeds": [0, 1]})
    local = records(sweep(what, root=tmp_path / "local"))
    root = tmp_path / "jobs"
    ended = sweep(what, root=root, executor=Slurm(engine="local"))
    assert [timeless(Run(root / run.id)) for run in local] == [timeless(run) for run in local]
    assert {s.state.name for s in ended} == {"finished"}
    assert not list((root / ".nodes").iterdir())


@needs_submitit
def test_a_job_that_fails_says_why_and_one_that_is_stopped_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stop = threading.Event()
    fails = {"type": "prefix", "virtual_tokens": 2}  # gradient checkpointing drops its cache
    long = {**SMALL["train"], "max_steps": 5000, "epochs": 999.0, "gradient_checkpointing": True}
    what = Sweep.parse({"spec": {**SMALL, "train": long}, "grid": {"adapter": [fails, SMALL["adapter"]]}})

    def look(standings: Sequence[SweepRun]) -> None:
        if standings[0].state.name == "failed" and list(standings[1].run.events("Step")):
            stop.set()

    first, second = sweep(what, root=tmp_path, executor=Slurm(engine="local"), stop=stop, on_update=look)
    assert first.state.name == "failed" and "checkpointing" in first.state.reason
    assert second.state.name == "stopped" and list(second.run.events("Stopped"))


@needs_submitit
def test_a_machine_without_slurm_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="There is no Slurm on this machine"):
        sweep(Sweep.parse({"spec": SMALL}), root=tmp_path, executor=Slurm())
