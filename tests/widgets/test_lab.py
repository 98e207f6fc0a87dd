"""The lab: from a draft to runs, from place to place, with everything found again by a new lab."""

import asyncio

import pytest
from launches import LONG, end_all, until

from llm_adapters_lab.errors import CannotWrite
from llm_adapters_lab.runs.background import launch, stop, working
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.queue import queued
from llm_adapters_lab.runs.record import Run, list_runs
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import state
from widgets import Lab
from widgets.lab import PLACES

SMALL = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4, "alpha": 8},
    "data": {"rows": 64, "validation": 8},
    "train": {"batch": 8, "max_steps": 4},
    "eval": {"tasks": ["mini-addsub"], "rows": 8},
}


ENDLESS = {**SMALL, "data": {}, "train": LONG}


@pytest.fixture
def root(tmp_path):
    yield tmp_path / "runs"
    end_all(tmp_path / "runs")


def type_in(form, name, text):
    form.controls[name].entry.value = text


def shown(lab):
    return PLACES[lab.tabs.selected_index]


def test_a_new_lab_starts_with_a_small_run(root):
    lab = Lab(root)
    assert lab.spec == RunSpec.load("quickstart") and shown(lab) == "Setup"
    assert lab.bar.start.description == "Start" and not lab.bar.start.disabled
    assert lab.root == root.resolve() and not root.exists() and not lab.problem.value
    lab.close()


def test_an_edit_changes_the_bar_and_a_fault_disables_start(root):
    lab = Lab(root, RunSpec.parse(SMALL))
    assert "lora r4" in lab.bar.line.value
    type_in(lab.setup.method.form, "rank", "16")
    assert "lora r16" in lab.bar.line.value and lab.spec.adapter.rank == 16
    type_in(lab.setup.method.form, "rank", "0")
    assert lab.spec is None and lab.bar.start.disabled and "adapter.rank must be" in lab.bar.remark.value
    assert lab.tabs.titles[0] == "Setup ✗"
    type_in(lab.setup.method.form, "rank", "4")
    assert lab.spec == RunSpec.parse(SMALL) and lab.tabs.titles[0] == "Setup"


def test_from_start_to_the_result(root):
    lab = Lab(root, RunSpec.parse(SMALL))
    lab.bar.start.click()
    assert not lab.problem.value and shown(lab) == "Monitor"
    run_id = RunSpec.parse(SMALL).id
    assert lab.workspace.selection.ids == (run_id,)
    until(lambda: Run(root / run_id).done, lab.workspace.runs.refresh)
    until(lambda: "finished" in lab.bar.line.value, lab.workspace.runs.refresh)
    assert lab.bar.start.description == "Show run" and lab.tabs.titles[2] == "Compare (1)"
    for place in PLACES:
        lab.open(place)
        assert not lab.problem.value, place
    lab.close()


def test_several_runs_are_queued_and_found_again(root):
    spec = RunSpec.parse({**ENDLESS, "seed": 0})
    lab = Lab(root, spec)
    type_in(lab.setup.other, "seed", "0, 1, 2")
    assert lab.bar.start.description == "Start 3 runs"
    lab.bar.start.click()
    assert not lab.problem.value and len(lab.workspace.selection.ids) == 3
    until(lambda: working(root) and len(queued(root)) == 2)
    again = Lab(root)  # a restarted kernel
    assert shown(again) == "Monitor" and again.tabs.titles[1] == "Monitor ● 3"
    for waiting in queued(root):
        (root / ".processes" / f"{waiting.id}.queued").unlink()
    for each in working(root):
        stop(each, now=True)
    until(lambda: not working(root))
    assert not queued(root) and len(list_runs(root)) <= 2


def test_a_run_is_shown_by_the_beginning_of_its_id(root):
    record = run(RunSpec.parse(SMALL), root=root)
    lab = Lab(root, run_id=record.id[:-3])
    assert lab.spec == record.spec and shown(lab) == "Monitor"
    assert lab.workspace.selection.ids == (record.id,) and lab.bar.start.description == "Show run"


def test_a_clone_becomes_the_draft(root):
    record = run(RunSpec.parse(SMALL), root=root)
    lab = Lab(root)
    lab.open("Compare")
    lab.workspace.clone(record.spec, record.id)
    assert shown(lab) == "Setup" and lab.spec == record.spec
    assert "copy of lora" in lab.bar.remark.value
    type_in(lab.setup.method.form, "rank", "8")
    assert "rank 4 → 8" in lab.bar.remark.value


def test_a_stopped_run_is_resumed(root):
    spec = RunSpec.parse(ENDLESS)
    record = launch(spec, root)
    until(lambda: state(record).works and record.log.exists())
    stop(record, now=True)
    until(lambda: not state(record).works)
    lab = Lab(root, spec)
    assert lab.bar.start.description == "Resume"


def test_an_unwritable_root_is_said_at_once(tmp_path):
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    with pytest.raises(CannotWrite, match="is a file where a folder is needed"):
        Lab(file / "runs")


def test_a_beginner_gets_a_tour(root):
    lab = Lab(root, level="beginner", locked=["eval"], text="large")
    assert "1 of 5" in lab.coach.words.value and "lab-large" in lab.widget._dom_classes
    assert "lab-ring" in lab.setup.cards["base"]._dom_classes
    for _ in range(4):
        lab.coach.next.click()
    assert lab.coach.step == 4 and lab.coach.next.description == "Done"
    lab.coach.back.click()
    assert lab.coach.step == 3 and "lab-ring" in lab.bar.widget._dom_classes
    lab.coach.skip.click()
    assert lab.coach.step is None and lab.coach.widget.layout.display == "none"
    assert "lab-ring" not in lab.bar.widget._dom_classes
    assert Lab(root).coach is None


def test_in_a_kernel_the_lab_fills_its_page_later(root):

    async def kernel():
        lab = Lab(root)
        assert "Loading PyTorch" in lab._body.children[0].value and "setup" not in vars(lab)
        for _ in range(600):
            await asyncio.sleep(0.05)
            if "playground" in vars(lab):
                break
        assert lab._body.children[-1] is lab.tabs and not lab.problem.value
        other = Lab(root)
        assert other.spec == RunSpec.load("quickstart")  # built when it is asked for
        await asyncio.sleep(0.2)
        lab.close()
        other.close()

    asyncio.run(kernel())


def test_unknown_attributes_are_refused(root):
    with pytest.raises(AttributeError, match="no attribute 'moniter'"):
        _ = Lab(root).moniter
