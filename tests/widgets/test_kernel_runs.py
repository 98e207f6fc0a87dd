"""Runs in a thread of the kernel, through the panel that starts them."""

from pathlib import Path

import pytest
from launches import LONG, small, until
from records import timeless

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.status import state as seen_elsewhere
from widgets.kit import kernel_runs
from widgets.panels.run_panel import RunPanel


def panel_of(root: Path, **changes: object) -> RunPanel:
    return RunPanel(small(**changes), root, process=False)


def test_a_run_in_a_thread_is_the_same_run(tmp_path: Path) -> None:
    panel = panel_of(tmp_path / "thread")
    panel.start.click()
    assert panel.problem.value == "" and panel.state.name == "running"
    until(lambda: panel.state.name == "finished", panel.refresh)
    assert not (tmp_path / "thread/.processes").exists()
    record = Run(tmp_path / "thread" / panel.run_id)
    assert timeless(record) == timeless(run(small(), root=tmp_path / "here"))
    kernel_runs.launch(small(), tmp_path / "thread")
    assert kernel_runs.state(record).name == "finished"  # it is not repeated


def test_stop_and_resume_and_one_at_a_time(tmp_path: Path) -> None:
    panel = panel_of(tmp_path, train=LONG)
    panel.start.click()
    until(lambda: "tokens/s" in panel.progress.text.value, panel.refresh)
    assert seen_elsewhere(Run(tmp_path / panel.run_id)).name == "running"
    with pytest.raises(LabError, match=f"{panel.run_id} is running in this kernel"):
        kernel_runs.launch(small(), tmp_path)
    panel.stop.click()
    assert panel.state.name in ("stopping", "stopped")
    until(lambda: panel.state.name == "stopped", panel.refresh)
    reached = panel.curves.points()[0][0][-1]
    assert f"Resume continues after step {reached}" in panel.status.value
    panel.resume.click()
    until(lambda: panel.curves.points()[0][0][-1:] > [reached], panel.refresh)
    panel.stop.click()
    until(lambda: panel.state.name == "stopped", panel.refresh)


def test_an_error_before_the_record_begins_is_shown(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("instruction,answer\nHow many?,1\nAnd now?,2\n", encoding="utf-8")
    task = f"own:{tmp_path / 'rows.csv'}?answer=answer"
    data = {"task": task, "validation": 8, "template": "qa"}
    panel = panel_of(tmp_path / "runs", data=data, eval={"tasks": []})
    panel.start.click()
    until(lambda: panel.state.name == "failed", panel.refresh)
    assert "✗" in panel.error.value and "validation" in panel.error.value
    assert not panel.resume.disabled
