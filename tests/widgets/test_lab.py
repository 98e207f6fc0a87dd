"""The whole lab without a browser: one spec out of all panels, one run that is followed, nothing lost."""

import json
import shlex
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from launches import LONG, SMALL, until

import widgets
from llm_adapters_lab.runs.background import launch, state, stop, working
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run, list_runs
from llm_adapters_lab.runs.spec import RunSpec
from widgets.kit.status_bar import words
from widgets.lab import FIRST, TABS, Lab

ROOT = Path(__file__).parents[2]

ENDLESS = {**SMALL, "data": {}, "train": LONG}
MODIFIED = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = '<img src=x onerror="alert(1)">'


def type_in(form, name, text):
    form.controls[name].entry.value = text


def test_a_new_lab_is_ready_for_a_first_run(root):
    lab = Lab(root)
    assert lab.spec == RunSpec.load(FIRST)
    assert lab.problem.value == "" and lab.run.problem.value == ""
    assert lab.spec.id in lab.bar.said.value and "not started" in lab.bar.said.value
    assert words(lab.spec) in lab.bar.said.value
    assert not lab.bar.start.disabled and lab.bar.start.description == "Start"
    assert TABS[lab.tabs.selected_index] == "Choose"
    assert lab.run.spec == lab.hand_over.spec == lab.spec
    assert not root.exists()


def test_the_public_names_are_there():
    for name in widgets.__all__:
        assert getattr(widgets, name).__name__ == name


def test_a_spec_in_words():
    assert words(RunSpec.parse(SMALL)) == "nano · lora rank 4 at q,v · learns mini-math, 3 steps · scored on mini-bool"
    assert words(RunSpec()) == "nano · no adapter · not scored"
    prefix = RunSpec.parse({"adapter": "prefix", "eval": {"tasks": ["mini-bool", "mini-multi"]}})
    assert words(prefix) == "nano · prefix virtual tokens 10 · learns mini-math, 3 epochs · scored on 2 tasks"


def test_edits_in_all_panels_make_one_spec_and_every_form_of_it_is_that_run(root, tmp_path):
    lab = Lab(root, RunSpec.parse(SMALL))
    before = lab.spec.id
    type_in(lab.choose.form, "rank", "2")
    lab.choose.at.value = "q,v@0-3"
    type_in(lab.choose.other, "seed", "7")
    type_in(lab.data.form, "rows", "40")
    type_in(lab.train, "learning_rate", "0.002")
    type_in(lab.score, "rows", "6")
    spec = RunSpec.parse(
        {
            **{**SMALL, "seed": 7, "adapter": {"type": "lora", "rank": 2, "at": "q,v@0-3"}},
            "data": {**SMALL["data"], "rows": 40},
            "train": {**SMALL["train"], "learning_rate": 0.002},
            "eval": {**SMALL["eval"], "rows": 6},
        }
    )
    assert lab.spec == spec and spec.id != before
    assert spec.id in lab.bar.said.value and before not in lab.bar.said.value
    assert lab.run.run_id == spec.id
    assert lab.problem.value == ""

    texts = {name: box.value for name, box in lab.hand_over.texts.items()}
    assert {name: button.text for name, button in lab.hand_over.copies.items()} == texts
    exec(texts["Python"].removesuffix("record = run(spec)\n"), namespace := {})
    assert namespace["spec"].id == spec.id
    (tmp_path / f"{spec.id}.yaml").write_text(texts["YAML"], encoding="utf-8")
    command = shlex.split(texts["command line"])
    assert RunSpec.load(tmp_path / command[-1]).id == spec.id
    papermill = shlex.split(texts["papermill"])
    cells = json.loads((ROOT / papermill[1]).read_text(encoding="utf-8"))["cells"]
    defaults = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    exec(defaults, parameters := {})
    given = tmp_path / papermill[papermill.index("-f") + 1]
    parameters |= yaml.safe_load(given.read_text(encoding="utf-8"))
    assert RunSpec.parse({name: parameters[name] for name in RunSpec.model_fields}).id == spec.id


def test_what_is_wrong_is_told_with_its_tab_and_starts_nothing(root):
    lab = Lab(root, RunSpec.parse(SMALL))
    type_in(lab.choose.form, "rank", "0")
    type_in(lab.train, "batch", "none")
    assert lab.spec is None and lab.bar.start.disabled
    assert "Correct what is marked ✗ in Choose and Train &amp; score." in lab.bar.said.value
    assert lab.hand_over.save.disabled
    lab.bar.start.click()
    assert not root.exists()
    type_in(lab.choose.form, "rank", "4")
    type_in(lab.train, "batch", "8")
    assert lab.spec == RunSpec.parse(SMALL) and not lab.bar.start.disabled


def test_rows_that_were_looked_at_stay_as_long_as_they_are_the_same(root):
    lab = Lab(root, RunSpec.parse(SMALL))
    lab.data.look.click()
    assert (seen := lab.data.prompts.value)
    type_in(lab.train, "learning_rate", "0.01")
    assert lab.data.prompts.value == seen
    type_in(lab.choose.other, "seed", "3")
    assert lab.data.prompts.value == ""


def test_from_start_to_the_accuracy_beside_the_base(root):
    lab = Lab(root, RunSpec.parse(SMALL))
    lab.bar.start.click()
    assert lab.problem.value == lab.run.problem.value == ""
    assert TABS[lab.tabs.selected_index] == "Run"
    assert lab.run.state.name == "running" and lab.bar.start.description == "Show run"
    until(lambda: lab.run.state.name == "finished", lab.run.refresh)
    assert "✓ finished" in lab.bar.said.value
    results = lab.run.results
    (output,) = results.plot.outputs
    assert figure_names(output) >= {"lora"}
    lab.open("Inspect")
    assert lab.inspect.run_id == lab.run.run_id
    lab.open("Runs")
    assert [entry.id for entry in lab.runs.entries] == [lab.run.run_id]
    assert results.base.layout.display == ""
    results.base.click()
    until(
        lambda: len(list_runs(root)) == 2 and figure_names(results.plot.outputs[0]) >= {"base", "lora"}, lab.run.refresh
    )
    assert results.problem.value == "" and results.base.layout.display == "none"

    again = Lab(root, run_id=lab.run.run_id)
    assert again.spec == lab.spec and TABS[again.tabs.selected_index] == "Run"
    assert again.run.results.plot.outputs == results.plot.outputs
    assert again.run.curves.points() == lab.run.curves.points()


def figure_names(output):
    figure = output["data"]["application/vnd.plotly.v1+json"]
    assert "Accuracy" in figure["layout"]["title"]["text"]
    return {trace.get("name") for trace in figure["data"]}


def test_a_run_that_works_stays_in_sight_and_is_found_again(root):
    lab = Lab(root, RunSpec.parse(ENDLESS))
    lab.bar.start.click()
    started = lab.run.run_id
    until(lambda: "step" in lab.bar.said.value, lab.run.refresh)
    type_in(lab.choose.form, "rank", "2")
    assert lab.spec.id in lab.bar.said.value and "not started" in lab.bar.said.value
    assert lab.run.run_id == started and lab.run.state.works  # the tab Run stays with it
    lab._looked = 0.0
    lab.run.refresh()
    _, button, _ = lab.bar.others.children
    assert button.description == started
    lab.open("Choose")
    button.click()
    assert TABS[lab.tabs.selected_index] == "Run" and lab.run.run_id == started
    assert lab.spec.id != started

    again = Lab(root)  # a restarted kernel
    assert again.spec == RunSpec.parse(ENDLESS) and again.run.run_id == started
    assert TABS[again.tabs.selected_index] == "Run"
    assert [each.id for each in working(root)] == [started]
    again.run.halt.click()
    until(lambda: again.run.state.name == "stopped", again.run.refresh)
    assert again.bar.start.description == "Resume" and working(root) == []
    again.run.clone.click()
    assert TABS[again.tabs.selected_index] == "Choose" and again.spec.id == started
    lab.run.refresh()
    type_in(lab.choose.form, "rank", "3")
    assert lab.run.run_id == lab.spec.id  # nothing works, so it follows the panels


def test_the_run_that_was_started_last_is_the_first_of_those_at_work(root):
    first, second = (launch(RunSpec.parse({**ENDLESS, "seed": seed}), root) for seed in (1, 2))
    assert [each.id for each in working(root)] == [second.id, first.id]
    for each in (first, second):
        stop(each, now=True)
    until(lambda: working(root) == [])
    assert not state(first).works
    assert working(root / "none") == []


def test_a_finished_run_is_opened_and_cloned_into_the_panels(root):
    record = run(RunSpec.parse(SMALL), root=root)
    lab = Lab(root)
    lab.follow(record.id)
    assert TABS[lab.tabs.selected_index] == "Run" and lab.run.state.name == "finished"
    assert lab.spec == RunSpec.load(FIRST)
    lab.run.clone.click()
    assert lab.spec == record.spec and TABS[lab.tabs.selected_index] == "Choose"
    lab.open("Try")
    assert lab.attempt.run_id == record.id
    lab.follow("no-such-run")
    assert "no-such-run" in lab.problem.value


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_spec_is_loaded_from_a_file_of_either_kind(root, tmp_path, suffix):
    lab, path = Lab(root), tmp_path / f"my.{suffix}"
    content = json.dumps(SMALL) if suffix == "json" else yaml.safe_dump(SMALL)
    path.write_text(content, encoding="utf-8")
    lab.load.path.value = str(path)
    lab.load.load.click()
    assert lab.spec == RunSpec.parse(SMALL) and lab.load.problem.value == ""
    assert lab.spec.id in lab.load.said.value and lab.spec.id in lab.bar.said.value
    lab.load.path.value = FIRST
    lab.load.load.click()
    assert lab.spec == RunSpec.load(FIRST)
    upload(lab, f"my.{suffix}", content.encode())
    assert lab.spec == RunSpec.parse(SMALL) and lab.load.upload.value == ()


def upload(lab, name, content):
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": MODIFIED}
    lab.load.upload.set_trait("value", (file,))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- 1", "must hold keys and values"),
        (b"{", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"base: nano\nrnak: 3", "rnak"),
        (b"adapter: {type: lora, rank: 0}", "adapter.rank = 0"),
        (b"", "must hold keys and values"),
    ],
)
def test_a_bad_file_is_told_and_changes_nothing(root, content, said):
    lab = Lab(root, RunSpec.parse(SMALL))
    upload(lab, f"{HOSTILE}.yaml", content)
    assert said in lab.load.problem.value and "<img" not in lab.load.problem.value
    assert lab.spec == RunSpec.parse(SMALL)
    lab.load.path.value = "missing.yaml"
    lab.load.load.click()
    assert "missing.yaml" in lab.load.problem.value


def test_hostile_text_in_the_bar_is_escaped(root):
    assert "<img" not in Lab(root, RunSpec(base=HOSTILE)).bar.said.value
    other = Run(root / HOSTILE)
    lab = Lab(root, RunSpec.parse(SMALL))
    lab.bar.show_others([other])
    assert lab.bar.others.children[1].description == HOSTILE  # a button shows text as it stands
