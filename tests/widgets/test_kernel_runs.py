"""Runs in a thread of the kernel, started as the lab starts them."""

from pathlib import Path

import pytest
from launches import LONG, small, until
from records import timeless

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.status import state as seen_elsewhere
from widgets.kit import kernel_runs
from widgets.kit.launching import start
from widgets.kit.workspace import Workspace
from widgets.panels.monitor_panel import MonitorPanel


def started(root: Path, **changes: object) -> Run:
    (record,) = start([small(**changes)], Workspace(root, process=False))
    return record


def test_a_run_in_a_thread_is_the_same_run(tmp_path: Path) -> None:
    record = started(tmp_path / "thread")
    until(lambda: kernel_runs.state(record).name == "finished")
    assert not (tmp_path / "thread/.processes").exists()
    assert timeless(record) == timeless(run(small(), root=tmp_path / "here"))
    kernel_runs.launch(small(), tmp_path / "thread")
    assert kernel_runs.state(record).name == "finished"  # it is not repeated


def test_stop_and_resume_and_one_at_a_time(tmp_path: Path) -> None:
    record = started(tmp_path, train=LONG)
    steps = lambda: [event["step"] for event in record.events("Step")]  # noqa: E731
    until(lambda: record.log.exists() and steps())
    assert seen_elsewhere(record).name == "running"
    with pytest.raises(LabError, match=f"{record.id} is running in this kernel"):
        kernel_runs.launch(small(), tmp_path)
    kernel_runs.stop(record)
    assert kernel_runs.state(record).name in ("stopping", "stopped")
    until(lambda: kernel_runs.state(record).name == "stopped")
    reached = steps()[-1]
    panel = MonitorPanel(Workspace(tmp_path, process=False))
    panel.workspace.selection.ids = [record.id]
    panel.opened()
    assert f"after step {reached}" in panel.say.value + panel.head.value + panel.resume.tooltip
    panel.resume.click()
    until(lambda: steps()[-1] > reached)
    kernel_runs.stop(record)
    until(lambda: kernel_runs.state(record).name == "stopped")
    panel.close()


def test_several_runs_cannot_share_a_kernel(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="2 runs cannot share this kernel"):
        start([small(), small(seed=1)], Workspace(tmp_path, process=False))


def test_an_error_before_the_record_begins_is_shown(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("instruction,answer\nHow many?,1\nAnd now?,2\n", encoding="utf-8")
    task = f"own:{tmp_path / 'rows.csv'}?answer=answer"
    data = {"task": task, "validation": 8, "template": "qa"}
    record = started(tmp_path / "runs", data=data, eval={"tasks": []})
    until(lambda: kernel_runs.state(record).name == "failed")
    assert "validation" in kernel_runs.state(record).reason
