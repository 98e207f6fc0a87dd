"""The runs panel without a browser: rows are selected, buttons clicked, and values read."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from records import HOSTILE, make_run

from llm_adapters_lab.events import Failed, Finished
from llm_adapters_lab.runs.processes import who
from llm_adapters_lab.runs.record import Run, note, write_note
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import beside
from widgets.figures.run_table import PAGE
from widgets.panels.runs_panel import RunsPanel

LORA, SERIES = {"type": "lora", "rank": 4}, {"type": "series"}


@pytest.fixture
def four(tmp_path: Path) -> list[Run]:
    """Runs of known age, oldest first."""
    made = [
        make_run(tmp_path, None, {"a": 2, "b": 2}),
        make_run(tmp_path, LORA, {"a": 10, "b": 15}),
        make_run(tmp_path, SERIES, {"a": 12, "b": 18}, seed=1),
        make_run(tmp_path, LORA | {"rank": 16}, {}, done=False),
    ]
    made[3].append(Failed(made[3].id, "training", "ValueError: the loss is nan"))
    for age, run in enumerate(made):
        os.utime(run.folder / "spec.json", (1e9 + 60 * age,) * 2)
    return made


def at_work(root: Path, seed: int = 7) -> Run:
    """Write the files of a launched run, with this process as the process of the run."""
    spec = RunSpec.parse({"adapter": LORA, "seed": seed})
    run = Run(root / spec.id)
    beside(run, "json").parent.mkdir(exist_ok=True)
    beside(run, "spec.json").write_text(json.dumps(spec.model_dump(mode="json")), encoding="utf-8")
    process = who() | {"stop": False, "log": None, "time": time.time()}
    beside(run, "json").write_text(json.dumps(process), encoding="utf-8")
    return run


def shown(panel: RunsPanel) -> list[str]:
    return [entry.id for entry in panel.shown]


def headings(panel: RunsPanel) -> list[str]:
    return [child.value for child in panel.table.rows.children[1:] if hasattr(child, "value")]


def test_every_run_has_a_row_with_its_facts(four: list[Run], tmp_path: Path) -> None:
    panel = RunsPanel(tmp_path)
    assert shown(panel) == [run.id for run in reversed(four)]
    assert list(panel.table.lines) == shown(panel)
    base, lora, _, failed = (panel.table.lines[run.id] for run in four)
    for text in ("✓ finished", ">nano<", ">lora<", ">1,000<", ">62.5 % (2)<"):
        assert text in lora.cells.value
    assert ">none<" in base.cells.value
    assert "✗ failed" in failed.cells.value
    assert "ValueError: the loss is nan (training)" in failed.cells.value
    assert "4 runs, 4 shown, 0 selected" in panel.counts.value
    assert panel.compare_selected.disabled
    assert panel.delete_selected.disabled


def test_runs_are_selected_one_by_one_all_or_none(four: list[Run], tmp_path: Path) -> None:
    panel, told = RunsPanel(tmp_path), list[list[str]]()
    panel.observe(lambda p: told.append(p.selected))
    panel.table.lines[four[1].id].selected.value = True
    panel.table.lines[four[0].id].selected.value = True
    assert panel.selected == [four[1].id, four[0].id]
    panel.table.lines[four[1].id].selected.value = False
    panel.filter.value = "adapter=series"
    assert "1 hidden by the filter" in panel.counts.value
    panel.select_all.click()
    assert panel.selected == [four[0].id, four[2].id]
    panel.clear_selection.click()
    assert told == [[four[1].id], [four[1].id, four[0].id], [four[0].id], [four[0].id, four[2].id], []]
    panel.filter.value = ""
    panel.selected = [four[3].id, "unknown", four[3].id]
    assert panel.selected == [four[3].id]
    assert [line.id for line in panel.table.lines.values() if line.selected.value] == [four[3].id]


def test_an_exception_of_an_observer_is_shown(four: list[Run], tmp_path: Path) -> None:
    panel = RunsPanel(tmp_path)

    def broken(_: object) -> None:
        raise RuntimeError(HOSTILE)

    panel.observe(broken)
    panel.select_all.click()
    assert "RuntimeError" in panel.problem.value
    assert "<img" not in panel.problem.value


def test_filter_sort_and_direction(four: list[Run], tmp_path: Path) -> None:
    base, lora, series, failed = (run.id for run in four)
    panel = RunsPanel(tmp_path)
    panel.filter.value = "rank=4"
    assert shown(panel) == [lora]
    panel.filter.value = "ramk=4"
    assert shown(panel) == []
    assert "Did you mean &#x27;rank&#x27;" in panel.filter_error.value
    panel.filter.value = "finished"
    assert panel.filter_error.value == ""
    panel.sort.value = "accuracy"
    assert panel.descending.value
    assert shown(panel) == [series, lora, base]
    panel.filter.value = ""
    assert shown(panel) == [series, lora, base, failed]
    panel.descending.value = False
    assert shown(panel) == [base, lora, series, failed]
    panel.sort.value = "started"
    assert shown(panel) == [failed, series, lora, base]
    panel.sort.value = "adapter"
    assert [panel.descending.value, shown(panel)[-1]] == [False, series]


@pytest.mark.parametrize("name", ["started", "run", "state", "base", "adapter", "parameters", "accuracy", "note"])
def test_every_order_includes_unreadable_runs(name: str, four: list[Run], tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "spec.json").write_text("{", encoding="utf-8")
    at_work(tmp_path)
    panel = RunsPanel(tmp_path)
    panel.sort.value = name
    assert len(shown(panel)) == 6
    assert panel.problem.value == ""
    assert "? unreadable" in panel.table.lines["broken"].cells.value
    assert panel.table.lines["broken"].open.disabled


def test_groups_have_headings_with_count_and_mean(four: list[Run], tmp_path: Path) -> None:
    panel = RunsPanel(tmp_path)
    names = [value for _, value in panel.group.options]
    assert names[:2] == ["", "adapter.type"]  # fields that differ come first
    assert names.index("adapter.rank") < names.index("base")
    panel.group.value = "adapter.type"
    first, second, third = headings(panel)
    assert "adapter.type = lora</b> · 2 runs · mean accuracy 62.5 %<" in first
    assert "adapter.type = none</b> · 1 run · mean accuracy 10.0 %<" in second
    assert "series" in third
    assert shown(panel)[2] == four[0].id
    before = panel.table.rows.children
    panel.refresh()
    assert panel.table.rows.children == before  # widgets in use are kept
    panel.group.value = ""
    assert headings(panel) == []


def test_many_runs_come_in_pages_and_quickly(tmp_path: Path) -> None:
    for seed in range(2 * PAGE + 3):
        make_run(tmp_path, LORA, {"a": seed % 20}, seed=seed, steps=1)
    panel = RunsPanel(tmp_path)
    seen = set(panel.table.lines)
    assert panel.table.position.value == "page 1 of 3"
    assert panel.table.back.disabled
    panel.table.forward.click()
    seen |= set(panel.table.lines)
    panel.table.forward.click()
    assert len(panel.table.lines) == 3
    assert panel.table.forward.disabled
    assert seen | set(panel.table.lines) == set(shown(panel))
    panel.filter.value = "seed=1"
    assert panel.table.position.value == "page 1 of 1"
    assert len(panel.table.lines) == 1
    panel.filter.value, panel.group.value = "", "adapter.rank"
    assert len(headings(panel)) == 1
    panel.select_all.click()
    assert len(panel.selected) == 2 * PAGE + 3
    began = time.process_time()
    panel.refresh()
    assert time.process_time() - began < 1


def test_a_note_is_saved_and_shown_again(four: list[Run], tmp_path: Path) -> None:
    panel = RunsPanel(tmp_path)
    panel.table.lines[four[1].id].note.value = f"best so far {HOSTILE}"
    assert panel.problem.value == ""
    assert note(four[1]) == f"best so far {HOSTILE}"
    again = RunsPanel(tmp_path)
    assert again.table.lines[four[1].id].note.value == note(four[1])
    again.filter.value = "best far"
    assert shown(again) == [four[1].id]
    again.sort.value = "note"
    waiting = at_work(tmp_path)
    panel.refresh()
    panel.table.lines[waiting.id].note.value = "too early"
    assert "no folder" in panel.problem.value


def test_open_passes_the_run_id(four: list[Run], tmp_path: Path) -> None:
    panel, got = RunsPanel(tmp_path), list[str]()
    panel.on_open(got.append)
    panel.table.lines[four[2].id].open.click()
    assert got == [four[2].id]


def test_delete_asks_for_confirmation_and_can_be_cancelled(four: list[Run], tmp_path: Path) -> None:
    panel = RunsPanel(tmp_path)
    panel.selected = [four[0].id, four[3].id]
    panel.delete_selected.click()
    assert "Delete 2 runs permanently" in panel.question.value
    assert all(run.id in panel.question.value for run in (four[0], four[3]))
    assert panel.confirm.layout.display == ""
    panel.cancel_delete.click()
    assert panel.confirm.layout.display == "none"
    panel.confirm_delete.click()
    assert all(run.folder.is_dir() for run in four)
    panel.delete_selected.click()
    panel.table.lines[four[1].id].selected.value = True  # a new selection cancels the question
    assert panel.confirm.layout.display == "none"
    panel.confirm_delete.click()
    assert all(run.folder.is_dir() for run in four)
    panel.selected = [four[3].id]
    panel.delete_selected.click()
    panel.confirm_delete.click()
    assert panel.problem.value == ""
    assert [run.folder.is_dir() for run in four] == [True, True, True, False]
    assert (four[3].id in shown(panel), panel.selected) == (False, [])


def test_an_active_run_is_not_deleted_but_the_others_are(four: list[Run], tmp_path: Path) -> None:
    busy = at_work(tmp_path)
    panel, told = RunsPanel(tmp_path), list[list[str]]()
    assert "▶ running" in panel.table.lines[busy.id].cells.value
    panel.selected = [busy.id, four[0].id]
    panel.observe(lambda p: told.append(p.selected))
    panel.delete_selected.click()
    panel.confirm_delete.click()
    assert f"The run {busy.id} is running. Stop it before it is deleted." in panel.problem.value
    assert not four[0].folder.exists()
    assert beside(busy, "json").exists()
    assert panel.selected == [busy.id]
    assert told == [[busy.id]]
    panel.delete_selected.click()
    assert panel.problem.value == ""


def test_hostile_text_is_escaped_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, LORA, {HOSTILE: 3})
    write_note(run, HOSTILE)
    spec = RunSpec.parse({"base": HOSTILE, "adapter": LORA})
    other = Run(tmp_path / spec.id)
    other.clear()
    other.write("spec.json", spec.model_dump(mode="json"))
    other.append(Failed(other.id, HOSTILE, HOSTILE))
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps({"base": HOSTILE, HOSTILE: 1}), encoding="utf-8")
    panel = RunsPanel(tmp_path)
    panel.group.value = "base"
    panel.select_all.click()
    panel.compare_selected.click()
    panel.delete_selected.click()
    texts = markup(panel.widget)
    assert len(texts) > 15
    assert not [text for text in texts if "<img" in text or "<script" in text or "&amp;lt;" in text]
    assert sum("&lt;img src=x onerror" in text for text in texts) > 5


def markup(widget: Any) -> list[str]:
    """Return the values of all HTML widgets below one."""
    own = [widget.value] if type(widget).__name__ == "HTML" else []
    return own + [text for child in getattr(widget, "children", ()) for text in markup(child)]


def test_compare_shows_the_chosen_runs_in_their_order(four: list[Run], tmp_path: Path) -> None:
    panel = RunsPanel(tmp_path)
    panel.selected = [four[2].id, four[1].id]
    panel.compare_selected.click()
    assert [run.id for run in panel.compare.runs] == [four[2].id, four[1].id]
    assert panel.compare.problem.value == ""


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    panel = RunsPanel(tmp_path / "none yet")
    assert "There are no runs yet" in panel.counts.value
    panel.select_all.click()
    assert panel.problem.value == ""


def test_in_an_event_loop_the_end_of_a_run_is_noticed(tmp_path: Path) -> None:
    async def kernel() -> list[str]:
        busy = at_work(tmp_path)
        panel = RunsPanel(tmp_path, every=0.01)
        states = [panel.entries[0].state.name]
        make = RunSpec.parse({"adapter": LORA, "seed": 7})
        busy.clear()
        busy.write("spec.json", make.model_dump(mode="json"))
        busy.write("summary.json", {"id": busy.id, "status": "finished", "scores": {}})
        busy.append(Finished(busy.id, 1.0))
        await asyncio.sleep(0.3)
        states.append(panel.entries[0].state.name)
        panel.close()
        return states

    assert asyncio.run(kernel()) == ["running", "finished"]
