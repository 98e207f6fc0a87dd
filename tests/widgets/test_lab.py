"""The whole lab without a browser: all panels make one spec, its run is followed, nothing is lost."""

import json
import shlex
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from launches import LONG, SMALL, until

import widgets
from llm_adapters_lab.runs.background import launch, stop, working
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run, list_runs
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import state
from widgets.kit.status import summary
from widgets.lab import FIRST_PRESET, TABS, Lab

ROOT = Path(__file__).parents[2]

ENDLESS = {**SMALL, "data": {}, "train": LONG}
MODIFIED = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = '<img src=x onerror="alert(1)">'


def type_in(form, name, text):
    form.controls[name].entry.value = text


def test_a_new_lab_is_ready_for_a_first_run(root):
    lab = Lab(root)
    assert lab.spec == RunSpec.load(FIRST_PRESET)
    assert lab.problem.value == "" and lab.run.problem.value == ""
    assert lab.spec.id in lab.bar.status.value and "not started" in lab.bar.status.value
    assert summary(lab.spec) in lab.bar.status.value
    assert not lab.bar.start.disabled and lab.bar.start.description == "Start"
    assert TABS[lab.tabs.selected_index] == "Setup"
    assert lab.run.spec == lab.export.spec == lab.spec
    assert not root.exists()


def test_the_public_names_are_there():
    for name in widgets.__all__:
        assert getattr(widgets, name).__name__ == name


def test_a_spec_is_summarised():
    assert (
        summary(RunSpec.parse(SMALL))
        == "nano · lora rank 4 at q,v · trained on mini-math, 3 steps · evaluated on mini-bool"
    )
    assert summary(RunSpec()) == "nano · no adapter · not evaluated"
    prefix = RunSpec.parse({"adapter": "prefix", "eval": {"tasks": ["mini-bool", "mini-multi"]}})
    assert summary(prefix) == "nano · prefix virtual tokens 10 · trained on mini-math, 3 epochs · evaluated on 2 tasks"


def test_edits_in_all_panels_make_one_spec_and_its_exports_are_the_same_run(root, tmp_path):
    lab = Lab(root, RunSpec.parse(SMALL))
    before = lab.spec.id
    type_in(lab.model.form, "rank", "2")
    lab.model.at.value = "q,v@0-3"
    type_in(lab.model.other, "seed", "7")
    type_in(lab.data.form, "rows", "40")
    type_in(lab.train, "learning_rate", "0.002")
    type_in(lab.evaluation, "rows", "6")
    spec = RunSpec.parse(
        {
            **{**SMALL, "seed": 7, "adapter": {"type": "lora", "rank": 2, "at": "q,v@0-3"}},
            "data": {**SMALL["data"], "rows": 40},
            "train": {**SMALL["train"], "learning_rate": 0.002},
            "eval": {**SMALL["eval"], "rows": 6},
        }
    )
    assert lab.spec == spec and spec.id != before
    assert spec.id in lab.bar.status.value and before not in lab.bar.status.value
    assert lab.run.run_id == spec.id
    assert lab.problem.value == ""

    texts = {name: box.value for name, box in lab.export.texts.items()}
    assert {name: button.text for name, button in lab.export.copies.items()} == texts
    exec(texts["Python"].removesuffix("record = run(spec)\n"), namespace := {})
    assert namespace["spec"].id == spec.id
    (tmp_path / f"{spec.id}.yaml").write_text(texts["YAML"], encoding="utf-8")
    command = shlex.split(texts["CLI"])
    assert RunSpec.load(tmp_path / command[-1]).id == spec.id
    papermill = shlex.split(texts["papermill"])
    cells = json.loads((ROOT / papermill[1]).read_text(encoding="utf-8"))["cells"]
    defaults = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    exec(defaults, parameters := {})
    given = tmp_path / papermill[papermill.index("-f") + 1]
    parameters |= yaml.safe_load(given.read_text(encoding="utf-8"))
    assert RunSpec.parse({name: parameters[name] for name in RunSpec.model_fields}).id == spec.id


def test_invalid_values_are_reported_with_their_tab_and_start_nothing(root):
    lab = Lab(root, RunSpec.parse(SMALL))
    type_in(lab.model.form, "rank", "0")
    type_in(lab.train, "batch", "none")
    assert lab.spec is None and lab.bar.start.disabled
    assert "Correct the fields marked ✗ in Setup and Training." in lab.bar.status.value
    assert lab.export.save.disabled
    lab.bar.start.click()
    assert not root.exists()
    type_in(lab.model.form, "rank", "4")
    type_in(lab.train, "batch", "8")
    assert lab.spec == RunSpec.parse(SMALL) and not lab.bar.start.disabled


def test_a_preview_stays_until_its_rows_change(root):
    lab = Lab(root, RunSpec.parse(SMALL))
    lab.data.preview.click()
    assert (seen := lab.data.prompts.value)
    type_in(lab.train, "learning_rate", "0.01")
    assert lab.data.prompts.value == seen
    type_in(lab.model.other, "seed", "3")
    assert lab.data.prompts.value == ""


def test_from_start_to_the_accuracy_next_to_the_base(root):
    lab = Lab(root, RunSpec.parse(SMALL))
    lab.bar.start.click()
    assert lab.problem.value == lab.run.problem.value == ""
    assert TABS[lab.tabs.selected_index] == "Monitor"
    assert lab.run.state.name == "running" and lab.bar.start.description == "Show run"
    until(lambda: lab.run.state.name == "finished", lab.run.refresh)
    assert "✓ finished" in lab.bar.status.value
    results = lab.run.results
    (output,) = results.plot.outputs
    assert figure_names(output) >= {"lora"}
    lab.open("Inspect")
    assert lab.inspect.run_id == lab.run.run_id
    lab.open("Compare")
    assert [entry.id for entry in lab.runs.entries] == [lab.run.run_id]
    assert results.base.layout.display == ""
    results.base.click()
    until(
        lambda: len(list_runs(root)) == 2 and figure_names(results.plot.outputs[0]) >= {"base", "lora"}, lab.run.refresh
    )
    assert results.problem.value == "" and results.base.layout.display == "none"

    again = Lab(root, run_id=lab.run.run_id)
    assert again.spec == lab.spec and TABS[again.tabs.selected_index] == "Monitor"
    assert again.run.results.plot.outputs == results.plot.outputs
    assert again.run.curves.points() == lab.run.curves.points()


def figure_names(output):
    figure = output["data"]["application/vnd.plotly.v1+json"]
    assert "Accuracy" in figure["layout"]["title"]["text"]
    return {trace.get("name") for trace in figure["data"]}


def test_an_active_run_stays_visible_and_is_found_again(root):
    lab = Lab(root, RunSpec.parse(ENDLESS))
    lab.bar.start.click()
    started = lab.run.run_id
    until(lambda: "step" in lab.bar.status.value, lab.run.refresh)
    type_in(lab.model.form, "rank", "2")
    assert lab.spec.id in lab.bar.status.value and "not started" in lab.bar.status.value
    assert lab.run.run_id == started and lab.run.state.works  # the tab Monitor stays with it
    lab._last_search = 0.0
    lab.run.refresh()
    _, button, _ = lab.bar.others.children
    assert button.description == started
    lab.open("Setup")
    button.click()
    assert TABS[lab.tabs.selected_index] == "Monitor" and lab.run.run_id == started
    assert lab.spec.id != started

    again = Lab(root)  # a restarted kernel
    assert again.spec == RunSpec.parse(ENDLESS) and again.run.run_id == started
    assert TABS[again.tabs.selected_index] == "Monitor"
    assert [each.id for each in working(root)] == [started]
    again.run.stop.click()
    until(lambda: again.run.state.name == "stopped", again.run.refresh)
    assert again.bar.start.description == "Resume" and working(root) == []
    again.run.clone.click()
    assert TABS[again.tabs.selected_index] == "Setup" and again.spec.id == started
    lab.run.refresh()
    type_in(lab.model.form, "rank", "3")
    assert lab.run.run_id == lab.spec.id  # no run is active, so it follows the panels


def test_active_runs_are_listed_newest_first(root):
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
    assert TABS[lab.tabs.selected_index] == "Monitor" and lab.run.state.name == "finished"
    assert lab.spec == RunSpec.load(FIRST_PRESET)
    lab.run.clone.click()
    assert lab.spec == record.spec and TABS[lab.tabs.selected_index] == "Setup"
    lab.open("Playground")
    assert lab.chat.run_id == record.id
    lab.follow("no-such-run")
    assert "no-such-run" in lab.problem.value


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_spec_is_loaded_from_a_file_of_either_kind(root, tmp_path, suffix):
    lab, path = Lab(root), tmp_path / f"my.{suffix}"
    content = json.dumps(SMALL) if suffix == "json" else yaml.safe_dump(SMALL)
    path.write_text(content, encoding="utf-8")
    lab.upload.path.value = str(path)
    lab.upload.load.click()
    assert lab.spec == RunSpec.parse(SMALL) and lab.upload.problem.value == ""
    assert lab.spec.id in lab.upload.status.value and lab.spec.id in lab.bar.status.value
    lab.upload.path.value = FIRST_PRESET
    lab.upload.load.click()
    assert lab.spec == RunSpec.load(FIRST_PRESET)
    upload(lab, f"my.{suffix}", content.encode())
    assert lab.spec == RunSpec.parse(SMALL) and lab.upload.upload.value == ()


def upload(lab, name, content):
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": MODIFIED}
    lab.upload.upload.set_trait("value", (file,))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- 1", "must hold keys and values"),
        (b"{", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"base: nano\nrnak: 3", "rnak"),
        (b"adapter: {type: lora, rank: 0}", "adapter.rank must be a whole number from 1 to 4096; given was 0"),
        (b"", "must hold keys and values"),
    ],
)
def test_a_bad_file_is_reported_and_changes_nothing(root, content, said):
    lab = Lab(root, RunSpec.parse(SMALL))
    upload(lab, f"{HOSTILE}.yaml", content)
    assert said in lab.upload.problem.value and "<img" not in lab.upload.problem.value
    assert lab.spec == RunSpec.parse(SMALL)
    lab.upload.path.value = "missing.yaml"
    lab.upload.load.click()
    assert "missing.yaml" in lab.upload.problem.value


def test_hostile_text_in_the_bar_is_escaped(root):
    assert "<img" not in Lab(root, RunSpec(base=HOSTILE)).bar.status.value
    other = Run(root / HOSTILE)
    lab = Lab(root, RunSpec.parse(SMALL))
    lab.bar.show_others([other])
    assert lab.bar.others.children[1].description == HOSTILE  # a button shows plain text
