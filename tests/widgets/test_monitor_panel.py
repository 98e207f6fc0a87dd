"""Monitor without a browser: buttons are pressed, markup is read, and the panel is refreshed by the test."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launches import LONG, small, until

from llm_adapters_lab.events import Failed, Norms, Started, Step, Validated
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.machine_load import Gpu, MachineLoad
from llm_adapters_lab.runs.queue import queued
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import State, beside, process_of, stage
from llm_adapters_lab.sweeps.queue import enqueue
from widgets.figures import run_head
from widgets.kit.launching import start
from widgets.kit.panel import _tasks
from widgets.kit.workspace import Workspace
from widgets.panels import monitor_panel
from widgets.panels.monitor_panel import RECENT, MonitorPanel

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script> [x](javascript:alert(3)) & </pre>'
ESCAPED = "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&lt;script&gt;alert(2)&lt;/script&gt;"


def step(number: int, loss: float = 1.0, of: int = 100) -> Step:
    return Step(number, of, loss, 1e-3, 0.5, 100 * number, 0.1 * number, 3400.4, 41.4)


def rows(panel: MonitorPanel, title: str = "") -> list[dict[str, Any]]:
    return [row for part in panel.list.parts if title in ("", part["title"]) for row in part["rows"]]


def press(panel: MonitorPanel, action: str, run_id: str = "") -> None:
    panel.list._handle_custom_msg({"action": action, "run": run_id}, [])


def tools(panel: MonitorPanel) -> list[str]:
    return [tool.description for tool in panel.tools if tool.layout.display != "none"]


def wait_for(panel: MonitorPanel, true: Callable[[], Any]) -> None:
    """Let the panel look at the runs until something is true."""

    def look() -> Any:
        panel.workspace.runs.refresh()
        panel.refresh()
        return true()

    until(look)


def record(root: Path, spec: RunSpec, *events: Any) -> Run:
    made = Run(root / spec.id)
    made.folder.mkdir(parents=True)
    made.write("spec.json", spec.model_dump(mode="json"))
    for event in events:
        made.append(event)
    return made


def test_from_start_to_finish(root: Path) -> None:
    workspace = Workspace(root)
    panel = MonitorPanel(workspace)
    panel.opened()
    assert "Select a run" in panel.title.value
    assert [part["note"] for part in panel.list.parts] == ["no runs yet"]
    (record,) = start([small()], workspace)
    assert stage(record) in ("libraries", "rows", "weights", "")
    workspace.runs.refresh()
    workspace.selection.ids = [record.id]
    assert panel.state.name == "running"
    assert [row["state"] for row in rows(panel, "Running")] == ["running"]
    assert "lab-stages" in panel.head.value
    assert tools(panel) == ["Stop", "Clone"]
    wait_for(panel, lambda: panel.state.name == "finished")
    (row,) = rows(panel, "Recent")
    assert (row["sign"], row["name"], row["actions"]) == ("✓", "lora r4 q,v s0", ["clone"])
    assert row["detail"].startswith("took 0:")
    assert row["text"].endswith(" %")
    assert "mini-bool" in panel.head.value
    assert "12.3k trainable" in panel.head.value
    assert tools(panel) == ["Evaluate base", "Warm start", "Clone"]
    curves = panel.curves.settled[record.id]
    assert curves["step"] == [1, 2, 3]
    assert (len(curves["validation"]), len(curves["distance"]), curves["planned"]) == (1, 3, 3)
    assert panel.curves.live == {}
    assert "lab-dottrack" in panel.dots.value
    assert panel.answers.value.count("gold ") == 5
    wait_for(panel, lambda: '"status": "finished"' in panel.log.value)  # said after the last event
    panel.base.click()
    base = small(adapter=None).id
    assert panel.base.description == "Evaluating base …"
    wait_for(panel, lambda: "ring: base" in panel.dots.value)
    assert tools(panel) == ["Warm start", "Clone"]
    workspace.selection.ids = [base]
    wait_for(panel, lambda: panel.state.name == "finished")
    assert "no curves" in panel.curves.words
    assert tools(panel) == ["Clone"]
    panel.close()


def test_stop_and_resume(root: Path) -> None:
    workspace = Workspace(root)
    panel = MonitorPanel(workspace)
    panel.opened()
    (record,) = start([small(train=LONG)], workspace)
    workspace.runs.refresh()
    workspace.selection.ids = [record.id]
    until(lambda: "tokens/s" in panel.head.value, panel.refresh)
    (row,) = rows(panel)
    assert 0 < row["done"] < 1
    assert row["detail"].startswith("step ")
    assert " of 3,000 · " in row["detail"]
    assert row["detail"].endswith(" left")
    until(lambda: panel.curves.live.get(record.id, {}).get("memory"), panel.refresh)
    panel.stop.click()
    assert panel.problem.value == ""
    wait_for(panel, lambda: panel.state.name == "stopped")
    reached = max(event["step"] for event in record.events("Step"))
    assert f"stopped at step {reached:,} of 3,000 after 0:" in panel.head.value
    assert f"Resume continues after step {reached}." in panel.head.value
    assert rows(panel)[0]["detail"].startswith(f"stopped · step {reached:,} of 3,000 after 0:")
    assert tools(panel) == ["Resume", "Clone"]
    press(panel, "resume", record.id)
    until(lambda: panel.curves.live and panel.curves.live[record.id]["step"][-1] > reached, panel.refresh)
    press(panel, "stop", record.id)
    wait_for(panel, lambda: panel.state.name == "stopped")


def test_a_dead_run_is_shown_as_such(root: Path) -> None:
    workspace = Workspace(root)
    panel = MonitorPanel(workspace)
    panel.opened()
    (record,) = start([small(train=LONG)], workspace)
    workspace.runs.refresh()
    workspace.selection.ids = [record.id]
    until(lambda: "tokens/s" in panel.head.value, panel.refresh)
    os.kill((process_of(record) or {})["pid"], signal.SIGKILL)
    wait_for(panel, lambda: panel.state.name == "dead")
    assert "✗ process died" in panel.title.value
    assert panel.error.value.count("lack of memory") == 1
    assert "Resume" in tools(panel)


def test_the_queue(root: Path) -> None:
    workspace = Workspace(root)
    runs = enqueue([small(seed=number) for number in range(3)], root)
    workspace.runs.refresh()
    panel = MonitorPanel(workspace)
    panel.opened()
    (part,) = [part for part in panel.list.parts if part["title"] == "Queued"]
    assert (part["note"], part["action"], part["label"]) == ("nothing starts them", "keep", "Start the queue")
    assert [row["detail"] for row in part["rows"]] == ["queued (1st)", "queued (2nd)", "queued (3rd)"]
    assert [row["actions"] for row in part["rows"]][:2] == [
        ["start", "remove", "clone"],
        ["start", "up", "remove", "clone"],
    ]
    press(panel, "up", runs[2].id)
    assert [row["id"] for row in rows(panel, "Queued")] == [runs[0].id, runs[2].id, runs[1].id]
    workspace.selection.ids = [runs[2].id]
    assert "queued (2nd)" in panel.title.value
    assert tools(panel) == ["Clone"]
    press(panel, "remove", runs[1].id)
    assert queued(root) == [runs[0], runs[2]]
    assert runs[1].id not in workspace.runs.entries
    press(panel, "start", runs[2].id)
    assert panel.problem.value == ""
    assert [row["id"] for row in rows(panel, "Running")] == [runs[2].id]
    press(panel, "keep")
    wait_for(panel, lambda: all(run.done for run in (runs[0], runs[2])))


def test_a_row_selects_and_clone_hands_on(root: Path) -> None:
    made = [record(root, small(seed=number), step(5)) for number in range(3)]
    workspace, places, clones = Workspace(root), [], []
    workspace.on_go(places.append)
    workspace.on_clone(lambda spec, parent: clones.append((spec, parent)))
    panel = MonitorPanel(workspace)
    panel.opened()
    assert len(panel.list.selected) == 1  # the latest
    panel.list.selected = [made[0].id, made[1].id]
    assert workspace.selection.ids == (made[0].id, made[1].id)
    assert [look["id"] for look in panel.curves.looks] == [made[0].id, made[1].id]
    assert "+1 selected" in panel.title.value
    workspace.selection.ids = [made[2].id]
    assert panel.list.selected == [made[2].id]
    press(panel, "clone", made[1].id)
    assert clones == [(small(seed=1), made[1].id)]
    workspace.selection.ids = [made[1].id]
    panel.warm.click()
    started = small(seed=1, adapter={"type": "lora", "rank": 4, "start": made[1].id})
    assert clones[1:] == [(started, made[1].id)]
    press(panel, "all")
    assert places == ["Compare"]
    (made[1].folder / "spec.json").write_text("{", encoding="utf-8")
    press(panel, "clone", made[1].id)
    assert "is not a spec" in panel.problem.value


def test_a_growing_log_is_followed(tmp_path: Path) -> None:
    made = record(tmp_path, small(), Started(small().id, 100, 1, 1, "cpu"))
    panel = MonitorPanel(tmp_path)
    assert "not taken its first step" in panel.curves.words
    for number in range(1, 81):
        made.append(step(number, loss=float(number)))
    made.append(Norms(80, {"a": 3.0, "b": 4.0}))
    made.append(Validated(80, 2.5, True))
    panel.refresh()
    curves = panel.curves.settled[made.id]
    assert curves["step"] == curves["loss"] == list(range(1, 81))
    assert (curves["validation"], curves["distance"]) == ([[80, 2.5]], [[80, 5.0]])
    assert "The loss rose from" in panel.say.value
    before = panel.curves.settled
    panel.refresh()
    assert panel.curves.settled is before  # nothing is sent again
    made.clear()
    made.append(step(1, loss=7.0))
    panel.refresh()
    assert panel.curves.settled[made.id]["loss"] == [7.0]


def test_hostile_text_is_escaped_once(tmp_path: Path) -> None:
    made = record(tmp_path, small(), Started(small().id, 3, 1, 1, "cpu"), step(2))
    made.append(Failed(made.id, "training", f"ValueError: {HOSTILE}", HOSTILE, 4, HOSTILE))
    beside(made, "log").parent.mkdir()
    beside(made, "log").write_text(HOSTILE, encoding="utf-8")
    answer = {"prompt": HOSTILE, "text": HOSTILE, "gold": HOSTILE, "correct": False}
    (made.folder / "predictions.jsonl").write_text(f'{json.dumps(answer)}\n{{"prompt": "torn', encoding="utf-8")
    record(tmp_path, small(base=HOSTILE))
    panel = MonitorPanel(tmp_path)
    panel.workspace.selection.ids = [made.id]
    panel.refresh()
    assert panel.state.name == "failed"
    shown = [panel.title, panel.head, panel.error, panel.say, panel.answers]
    for each in shown:
        assert "<img" not in each.value
        assert "<script" not in each.value
        assert "&amp;lt;" not in each.value
    assert panel.error.value.count(ESCAPED) == 3
    assert "<summary>traceback</summary>" in panel.error.value
    assert ESCAPED in panel.answers.value
    assert panel.log.value == HOSTILE  # a text area shows plain text
    assert "failed · ValueError" in next(row for row in rows(panel) if row["id"] == made.id)["detail"]


def test_a_broken_log_is_reported_and_the_panel_keeps_reading(tmp_path: Path) -> None:
    made = record(tmp_path, small())
    made.log.write_text("no json\n", encoding="utf-8")
    panel = MonitorPanel(tmp_path)
    assert "JSONDecodeError" in panel.problem.value
    made.log.unlink()
    panel.refresh()
    assert panel.problem.value == ""


def test_what_is_refused_is_said(root: Path) -> None:
    made = record(root, small(adapter={"type": "lora", "at": "gate_up"}))
    panel = MonitorPanel(root)
    assert "Resume continues at the beginning." in panel.head.value
    panel.resume.click()
    assert "gate_up" in panel.problem.value
    panel.refresh()
    assert "gate_up" in panel.problem.value
    press(panel, "stop", made.id)
    assert panel.problem.value == ""


def test_many_runs_are_shortened(tmp_path: Path) -> None:
    for number in range(RECENT + 5):
        made = record(tmp_path, small(seed=number), step(1))
        os.utime(made.folder / "spec.json", (number, number))
    panel = MonitorPanel(tmp_path)
    (part,) = panel.list.parts
    assert (len(part["rows"]), part["note"], part["action"]) == (RECENT, f"{RECENT} of {RECENT + 5}", "all")
    oldest = small(seed=0).id
    panel.workspace.selection.ids = [oldest]
    assert rows(panel)[-1]["id"] == oldest
    panel.workspace.selection.ids = list(panel.workspace.runs.entries)
    assert len(panel.curves.looks) == monitor_panel.TOGETHER


def test_in_a_kernel_it_looks_by_itself_while_it_is_shown(tmp_path: Path) -> None:
    made = record(tmp_path, small())

    async def kernel() -> list[int]:
        counts = []
        panel = MonitorPanel(tmp_path, every=0.01)

        async def count(at_least: int) -> None:
            async with asyncio.timeout(180):
                while made.id not in panel._followed or len(panel._followed[made.id].curves) < at_least:
                    await asyncio.sleep(0.01)
            counts.append(len(panel._followed[made.id].curves))

        for number in (1, 2):
            made.append(step(number))
            await count(number)
        panel.hidden()
        await asyncio.gather(*_tasks)  # a look that has begun
        made.append(step(3))
        await asyncio.sleep(0.5)  # as long as many looks
        await count(2)
        panel.opened()
        await count(3)
        panel.close()
        return counts

    assert asyncio.run(kernel()) == [1, 2, 2, 3]


def test_runs_of_the_kernel(root: Path) -> None:
    workspace = Workspace(root, process=False)
    panel = MonitorPanel(workspace)
    panel.opened()
    (made,) = start([small()], workspace)
    workspace.selection.ids = [made.id]
    assert panel.state.name in ("running", "finished")
    wait_for(panel, lambda: panel.state.name == "finished")
    assert tools(panel) == ["Evaluate base", "Warm start", "Clone"]


def test_a_finished_run_is_shown_wherever_it_was_started(tmp_path: Path) -> None:
    run(small(adapter=None), root=tmp_path)
    panel = MonitorPanel(tmp_path)
    assert "✓ finished" in panel.title.value
    assert panel.dots.value.count("lab-dottrack") == 1


def test_words() -> None:
    assert [run_head.ordinal(number) for number in (1, 2, 3, 4, 11, 12, 21, 113)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "113th")
    ]
    assert run_head.state_words(State("queued"), 2) == "queued (2nd)"
    scoring = {"Step": step(100).to_json(), "Scoring": {"task": "a", "done": 5, "total": 20}}
    assert run_head.progress(scoring) == (0.25, "scoring a, 5 of 20")
    assert run_head.ended(scoring) == "scoring a, 5 of 20"
    assert run_head.progress({"Step": step(100).to_json()}) == (1.0, "scoring")
    assert run_head.progress({}) == (0.0, "")
    assert run_head.hint_line(["a", "b"]).count("⚠") == 2
    assert "lab-now" in run_head.stages("weights")
    load = MachineLoad(2, 0.5, 7.1, 1, 4, (Gpu(0.25, 10**9, 80 * 10**9),))
    assert "CPU 50 % of 2 cores · memory 25 % · GPU 25 %, 1 GB" in monitor_panel._machine(load)
    assert "2 cores, load 7.1" in monitor_panel._machine(load)


@pytest.mark.parametrize("values", [(float("nan"), float("inf")), (123456.789, 1e-9)])
def test_numbers_for_the_browser_are_json(tmp_path: Path, values: tuple[float, float]) -> None:
    made = record(tmp_path, small())
    for number, value in enumerate(values, 1):
        made.append(step(number, loss=value))
    panel = MonitorPanel(tmp_path)
    json.dumps(panel.curves.settled, allow_nan=False)
    assert panel.curves.settled[made.id]["step"] == [1, 2]
