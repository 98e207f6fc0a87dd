"""The run panel without a browser: buttons are clicked, values read, and the panel is refreshed by the test."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from launches import LONG, small, until

from llm_adapters_lab.events import Failed, Norms, Started, Step, Validated
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import beside
from widgets.kit.panel import guarded
from widgets.panels.run_panel import POINTS, RunPanel, TrainingCurves

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script> [x](javascript:alert(3)) & </pre>'
ESCAPED = "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&lt;script&gt;alert(2)&lt;/script&gt;"


def step(number: int, loss: float = 1.0, of: int = 100) -> Step:
    return Step(number, of, loss, 1e-3, 0.5, 100 * number, 0.1 * number + loss * 1e-9, 3400.4, 41.4)


def enabled(panel: RunPanel) -> set[str]:
    buttons = (panel.start, panel.stop, panel.resume, panel.clone)
    return {button.description for button in buttons if not button.disabled}


def test_from_start_to_finish(root: Path) -> None:
    panel = RunPanel(small(), root)
    assert panel.state.name == "unfinished"
    assert enabled(panel) == {"Start", "Clone"}
    panel.start.click()
    assert panel.problem.value == ""
    assert panel.state.name == "running"
    assert "Loading libraries" in panel.status.value
    assert enabled(panel) == {"Stop", "Clone"}
    until(lambda: panel.state.name == "finished", panel.refresh)
    assert "✓ finished" in panel.status.value
    assert "mini-bool" in panel.status.value
    assert panel.progress.bar.value == 1
    assert enabled(panel) == {"Clone"}
    assert panel.heartbeat.value.startswith("Updated ")
    assert '"status": "finished"' in panel.log.value
    again = RunPanel(root=root, run_id=panel.run_id)
    assert again.spec == small()
    assert again.curves.points() == panel.curves.points()
    assert again.status.value == panel.status.value
    # A figure that was just made holds all points in its constructor's data.
    batches, means, held_out, norms, moved = again.curves.points()
    assert batches[0] == means[0] == norms[0] == [1, 2, 3]
    assert batches[1] == [e["loss"] for e in Run(root / panel.run_id).events("Step")]
    assert len(held_out[0]) == 1
    assert moved[1][-1] > 0
    assert [trace["x"] for trace in panel.curves.widget.figure["data"]] == [x for x, _ in again.curves.points()]


def test_stop_and_resume(root: Path) -> None:
    panel = RunPanel(small(train=LONG), root)
    panel.start.click()
    until(lambda: "tokens/s" in panel.progress.text.value, panel.refresh)
    assert 0 < panel.progress.bar.value < 1
    assert "of 3000" in panel.progress.text.value
    panel.stop.click()
    assert panel.state.name in ("stopping", "stopped")
    until(lambda: panel.state.name == "stopped", panel.refresh)
    assert enabled(panel) == {"Resume", "Clone"}
    reached = panel.curves.points()[0][0][-1]
    assert f"Stopped while training. · Resume continues after step {reached:.0f}." in panel.status.value
    panel.resume.click()
    assert panel.problem.value == ""
    until(lambda: panel.curves.points()[0][0][-1:] > [reached], panel.refresh)
    assert panel.curves.points()[0][0] == list(range(1, int(panel.curves.points()[0][0][-1]) + 1))
    panel.stop.click()
    until(lambda: panel.state.name == "stopped", panel.refresh)


def test_a_dead_run_is_shown_as_such_and_can_be_resumed(root: Path) -> None:
    panel = RunPanel(small(train=LONG), root)
    panel.start.click()
    until(lambda: panel.progress.text.value.startswith("step"), panel.refresh)
    process = json.loads(beside(Run(root / panel.run_id), "json").read_text(encoding="utf-8"))
    os.kill(process["pid"], signal.SIGKILL)
    until(lambda: panel.state.name == "dead", panel.refresh)
    assert "✗ dead" in panel.status.value
    assert f"process {process['pid']}" in panel.error.value
    assert panel.error.value.count("lack of memory") == 1
    assert enabled(panel) == {"Resume", "Clone"}


def test_a_refused_start_is_shown_until_one_succeeds(root: Path) -> None:
    panel = RunPanel(small(adapter={"type": "lora", "at": "gate_up"}), root)
    panel.start.click()
    assert "gate_up" in panel.problem.value
    assert panel.problem.value.count("✗") == 1
    panel.refresh()
    assert "gate_up" in panel.problem.value
    assert enabled(panel) == {"Start", "Clone"}
    panel.spec = small()
    assert panel.problem.value == ""
    assert panel.run_id == small().id


def test_without_a_spec_there_is_nothing_to_start(tmp_path: Path) -> None:
    panel = RunPanel(root=tmp_path)
    assert enabled(panel) == set()
    assert "There is no spec yet." in panel.status.value
    panel.start.click()
    assert "no spec to run" in panel.problem.value


def test_without_a_spec_nothing_of_the_previous_run_is_shown(tmp_path: Path) -> None:
    record = Run(tmp_path / small().id)
    record.folder.mkdir()
    record.append(step(50))
    panel = RunPanel(small(), tmp_path)
    assert panel.progress.bar.value == 0.5
    panel.spec = None
    assert (panel.run_id, panel.title.value, panel.progress.text.value, panel.progress.bar.value) == ("", "", "", 0)
    assert panel.curves.points()[0] == ([], [])


def test_clone_passes_the_spec_on(tmp_path: Path) -> None:
    panel, got = RunPanel(small(), tmp_path), []
    panel.on_clone(got.append)
    panel.clone.click()
    assert got == [small()]

    def broken(spec: RunSpec) -> None:
        raise RuntimeError(HOSTILE)

    panel.on_clone(broken)
    panel.clone.click()
    assert ESCAPED in panel.problem.value
    assert "RuntimeError" in panel.problem.value
    assert "<img" not in panel.problem.value
    assert "<script" not in panel.problem.value
    assert "&amp;lt;" not in panel.problem.value


def test_hostile_text_is_escaped_once(tmp_path: Path) -> None:
    record = Run(tmp_path / small().id)
    record.folder.mkdir()
    record.append(Started(record.id, 3, 1, 1, "cpu"))
    record.append(Failed(record.id, "training", f"ValueError: {HOSTILE}", HOSTILE, 4, HOSTILE))
    beside(record, "log").parent.mkdir()
    beside(record, "log").write_text(HOSTILE, encoding="utf-8")
    panel = RunPanel(small(base=HOSTILE), tmp_path)
    assert "<img" not in panel.title.value
    assert ESCAPED in panel.title.value
    panel.spec = small()
    assert panel.state.name == "failed"
    for line in (panel.error.value, panel.status.value):
        assert "<img" not in line
        assert "<script" not in line
        assert "&amp;lt;" not in line
    assert panel.error.value.count(ESCAPED) == 3
    assert "<summary>traceback</summary>" in panel.error.value
    assert panel.log.value == HOSTILE  # a text area shows plain text


def test_a_run_of_another_process_is_followed(tmp_path: Path) -> None:
    record = Run(tmp_path / small().id)
    panel = RunPanel(small(), tmp_path)
    record.folder.mkdir()
    record.append(Started(record.id, 100, 1, 1, "cpu"))
    for number in range(1, 51):
        record.append(step(number, loss=float(number)))
    record.append(Norms(50, {"a": 3.0, "b": 4.0}))
    record.append(Validated(50, 2.5, True))
    panel.refresh()
    assert panel.progress.text.value == "step 50 of 100 · loss 50.000 · 3,400 tokens/s · 0:00:41 left"
    assert panel.progress.bar.value == 0.5
    batches, means, held_out, norms, moved = panel.curves.points()
    assert batches[0] == list(range(1, 51))
    assert means[1] == pytest.approx(batches[1])  # the mean of a straight line is that line
    assert held_out == ([50], [2.5])
    assert moved == ([50], [5.0])
    assert norms[1] == [0.5] * 50
    assert panel.curves.widget.figure["data"][0]["y"] == batches[1]
    with (record.folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "Step", "st')  # an incomplete line
    panel.refresh()
    assert panel.problem.value == ""
    record.clear()
    record.append(Started(record.id, 100, 1, 1, "cpu"))
    record.append(step(1, loss=7.0))
    panel.refresh()
    assert panel.curves.points()[0] == ([1], [7.0])


def test_a_broken_record_is_reported_and_the_panel_keeps_reading(tmp_path: Path) -> None:
    record = Run(tmp_path / small().id)
    panel = RunPanel(small(), tmp_path)
    record.folder.mkdir()
    log = record.folder / "events.jsonl"
    log.write_text("no json\n", encoding="utf-8")
    panel.refresh()
    assert "JSONDecodeError" in panel.problem.value
    log.unlink()
    panel.refresh()
    assert panel.problem.value == ""


def test_a_long_run_is_drawn_with_few_points() -> None:
    curves = TrainingCurves()
    curves.add(step(number, of=100_000).to_json() for number in range(1, 20_001))
    for x, y in curves.points():
        assert len(x) == len(y) <= POINTS + 1
    assert curves.points()[0][0][-1] == 20_000
    began = time.perf_counter()
    curves.update()
    assert time.perf_counter() - began < 2
    drawn = curves.widget.figure
    curves.add([step(20_001).to_json()])
    curves.update(force=False)
    assert curves.widget.figure is drawn  # one more point would make no visible difference
    curves.update()
    assert curves.widget.figure["data"][0]["x"][-1] == 20_001
    curves.add(step(number).to_json() for number in range(20_002, 20_041))
    curves.update(force=False)
    assert curves.widget.figure["data"][0]["x"][-1] == 20_040


def test_in_an_event_loop_the_panel_refreshes_itself(tmp_path: Path) -> None:
    async def kernel() -> int:
        panel = RunPanel(small(), tmp_path, every=0.01)
        record = Run(tmp_path / panel.run_id)
        record.folder.mkdir()
        record.append(step(1))
        await asyncio.sleep(0.2)
        panel.close()
        return len(panel.curves.points()[0][0])

    assert asyncio.run(kernel()) == 1


def test_a_finished_run_is_shown_wherever_it_was_started(tmp_path: Path) -> None:
    record = run(small(adapter=None), root=tmp_path)
    panel = RunPanel(root=tmp_path, run_id=record.id[:-2])
    assert panel.state.name == "finished"
    assert panel.title.value == f"<div><b>{record.id}</b> · nano, no adapter, mini-math</div>"
    assert all(x == [] for x, _ in panel.curves.points())


def test_a_guard_keeps_the_message_of_another_callback() -> None:
    class Box:
        value = ""

    class Panel:
        problem: Any = Box()
        problem_of = ""

        @guarded
        def one(self, fails: bool) -> None:
            if fails:
                raise ValueError("no")

        @guarded
        def other(self) -> None:
            pass

    panel = Panel()
    panel.one(True)
    panel.other()
    assert "ValueError: no" in panel.problem.value
    panel.one(False)
    assert panel.problem.value == ""
