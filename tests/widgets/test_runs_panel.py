"""The runs panel without a browser: rows are ticked, buttons clicked, and what is shown is read."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from records import HOSTILE, make_run

from llm_adapters_lab.events import Failed, Finished
from llm_adapters_lab.runs.background import beside
from llm_adapters_lab.runs.processes import who
from llm_adapters_lab.runs.record import Run, note, write_note
from llm_adapters_lab.runs.spec import RunSpec
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
    """Write what `launch` leaves, with this very process as that of the run."""
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


def test_every_run_has_a_line_with_what_is_known(four: list[Run], tmp_path: Path) -> None:
    panel = RunsPanel(tmp_path)
    assert shown(panel) == [run.id for run in reversed(four)]
    assert list(panel.table.lines) == shown(panel)
    base, lora, _, failed = (panel.table.lines[run.id] for run in four)
    for text in ("✓ finished", ">nano<", ">lora<", ">1,000<", ">62.5 % (2)<"):
        assert text in lora.cells.value
    assert ">none<" in base.cells.value
    assert "✗ failed" in failed.cells.value
    assert "ValueError: the loss is nan (training)" in failed.cells.value
    assert "4 runs, 4 shown, 0 chosen" in panel.counts.value
    assert panel.contrast.disabled
    assert panel.remove.disabled


def test_runs_are_chosen_one_by_one_all_or_none(four: list[Run], tmp_path: Path) -> None:
    panel, told = RunsPanel(tmp_path), list[list[str]]()
    panel.observe(lambda p: told.append(p.chosen))
    panel.table.lines[four[1].id].chosen.value = True
    panel.table.lines[four[0].id].chosen.value = True
    assert panel.chosen == [four[1].id, four[0].id]
    panel.table.lines[four[1].id].chosen.value = False
    panel.filter.value = "adapter=series"
    assert "1 of them hidden" in panel.counts.value
    panel.all.click()
    assert panel.chosen == [four[0].id, four[2].id]
    panel.none.click()
    assert told == [[four[1].id], [four[1].id, four[0].id], [four[0].id], [four[0].id, four[2].id], []]
    panel.filter.value = ""
    panel.chosen = [four[3].id, "unknown", four[3].id]
    assert panel.chosen == [four[3].id]
    assert [line.id for line in panel.table.lines.values() if line.chosen.value] == [four[3].id]


def test_what_a_listener_raises_is_shown(four: list[Run], tmp_path: Path) -> None:
    panel = RunsPanel(tmp_path)

    def broken(_: object) -> None:
        raise RuntimeError(HOSTILE)

    panel.observe(broken)
    panel.all.click()
    assert "RuntimeError" in panel.problem.value
    assert "<img" not in panel.problem.value


def test_filter_sort_and_direction(four: list[Run], tmp_path: Path) -> None:
    base, lora, series, failed = (run.id for run in four)
    panel = RunsPanel(tmp_path)
    panel.filter.value = "rank=4"
    assert shown(panel) == [lora]
    panel.filter.value = "ramk=4"
    assert shown(panel) == []
    assert "Did you mean &#x27;rank&#x27;" in panel.wrong.value
    panel.filter.value = "finished"
    assert panel.wrong.value == ""
    panel.sort.value = "accuracy"
    assert panel.falling.value
    assert shown(panel) == [series, lora, base]
    panel.filter.value = ""
    assert shown(panel) == [series, lora, base, failed]
    panel.falling.value = False
    assert shown(panel) == [base, lora, series, failed]
    panel.sort.value = "begun"
    assert shown(panel) == [failed, series, lora, base]
    panel.sort.value = "adapter"
    assert [panel.falling.value, shown(panel)[-1]] == [False, series]


@pytest.mark.parametrize("name", ["begun", "run", "state", "base", "adapter", "parameters", "accuracy", "note"])
def test_every_order_holds_all_runs_also_those_that_cannot_be_read(name: str, four: list[Run], tmp_path: Path) -> None:
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
    assert names[:2] == ["", "adapter.type"]  # what differs stands first
    assert names.index("adapter.rank") < names.index("base")
    panel.group.value = "adapter.type"
    first, second, third = headings(panel)
    assert "adapter.type = lora</b> · 2 runs · mean accuracy 62.5 %<" in first
    assert "adapter.type = none</b> · 1 run · mean accuracy 10.0 %<" in second
    assert "series" in third
    assert shown(panel)[2] == four[0].id
    before = panel.table.rows.children
    panel.refresh()
    assert panel.table.rows.children == before  # nothing is taken from under a hand
    panel.group.value = ""
    assert headings(panel) == []


def test_many_runs_come_in_pages_and_quickly(tmp_path: Path) -> None:
    for seed in range(2 * PAGE + 3):
        make_run(tmp_path, LORA, {"a": seed % 20}, seed=seed, steps=1)
    panel = RunsPanel(tmp_path)
    seen = set(panel.table.lines)
    assert panel.table.place.value == "page 1 of 3"
    assert panel.table.back.disabled
    panel.table.further.click()
    seen |= set(panel.table.lines)
    panel.table.further.click()
    assert len(panel.table.lines) == 3
    assert panel.table.further.disabled
    assert seen | set(panel.table.lines) == set(shown(panel))
    panel.filter.value = "seed=1"
    assert panel.table.place.value == "page 1 of 1"
    assert len(panel.table.lines) == 1
    panel.filter.value, panel.group.value = "", "adapter.rank"
    assert len(headings(panel)) == 1
    panel.all.click()
    assert len(panel.chosen) == 2 * PAGE + 3
    began = time.process_time()
    panel.refresh()
    assert time.process_time() - began < 1


def test_a_note_is_kept_and_comes_back(four: list[Run], tmp_path: Path) -> None:
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


def test_open_names_the_run(four: list[Run], tmp_path: Path) -> None:
    panel, got = RunsPanel(tmp_path), list[str]()
    panel.on_open(got.append)
    panel.table.lines[four[2].id].open.click()
    assert got == [four[2].id]


def test_delete_asks_first_and_can_be_taken_back(four: list[Run], tmp_path: Path) -> None:
    panel = RunsPanel(tmp_path)
    panel.chosen = [four[0].id, four[3].id]
    panel.remove.click()
    assert "Delete 2 runs for good" in panel.question.value
    assert all(run.id in panel.question.value for run in (four[0], four[3]))
    assert panel.confirm.layout.display == "flex"
    panel.keep.click()
    assert panel.confirm.layout.display == "none"
    panel.sure.click()
    assert all(run.folder.is_dir() for run in four)
    panel.remove.click()
    panel.table.lines[four[1].id].chosen.value = True  # another choice is another question
    assert panel.confirm.layout.display == "none"
    panel.sure.click()
    assert all(run.folder.is_dir() for run in four)
    panel.chosen = [four[3].id]
    panel.remove.click()
    panel.sure.click()
    assert panel.problem.value == ""
    assert [run.folder.is_dir() for run in four] == [True, True, True, False]
    assert (four[3].id in shown(panel), panel.chosen) == (False, [])


def test_a_run_at_work_is_refused_and_the_others_go(four: list[Run], tmp_path: Path) -> None:
    busy = at_work(tmp_path)
    panel, told = RunsPanel(tmp_path), list[list[str]]()
    assert "▶ running" in panel.table.lines[busy.id].cells.value
    panel.chosen = [busy.id, four[0].id]
    panel.observe(lambda p: told.append(p.chosen))
    panel.remove.click()
    panel.sure.click()
    assert f"The run {busy.id} is running. Stop it before it is deleted." in panel.problem.value
    assert not four[0].folder.exists()
    assert beside(busy, "json").exists()
    assert panel.chosen == [busy.id]
    assert told == [[busy.id]]
    panel.remove.click()
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
    panel.all.click()
    panel.contrast.click()
    panel.remove.click()
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
    panel.chosen = [four[2].id, four[1].id]
    panel.contrast.click()
    assert [run.id for run in panel.compare.runs] == [four[2].id, four[1].id]
    assert panel.compare.problem.value == ""


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    panel = RunsPanel(tmp_path / "none yet")
    assert "There are no runs yet" in panel.counts.value
    panel.all.click()
    assert panel.problem.value == ""


def test_inside_a_loop_it_looks_while_a_run_works(tmp_path: Path) -> None:
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
