"""Actions on the selected runs, without a browser: report, download, export, merge, and marks."""

import io
import shutil
import zipfile
from html import unescape
from pathlib import Path

import pytest
from records import make_run
from small_runs import HOSTILE
from transformers import AutoModelForCausalLM

from llm_adapters_lab.core.saving import load_adapter
from llm_adapters_lab.models import loading
from llm_adapters_lab.runs.marks import Marks, mark, marks
from llm_adapters_lab.runs.record import Run, note, write_note
from widgets.kit.markdown import markdown
from widgets.kit.workspace import Workspace
from widgets.panels import run_actions
from widgets.panels.run_actions import RunActions, report_path

Finished = tuple[Path, dict[str, str]]


@pytest.fixture
def some(tmp_path: Path) -> tuple[RunActions, list[Run]]:
    runs = [make_run(tmp_path / "runs", {"type": "lora"}, {"mini-addsub": 3}, seed=seed) for seed in range(3)]
    actions = RunActions(tmp_path / "runs")
    actions.workspace.selection.ids = [run.id for run in runs[:2]]
    return actions, runs


@pytest.fixture
def trained(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunActions:
    root = shutil.copytree(finished[0], tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    actions = RunActions(Workspace(root))
    actions.workspace.selection.ids = [finished[1]["lora"]]
    return actions


def test_without_a_selection_nothing_can_be_done(tmp_path: Path) -> None:
    actions = RunActions(tmp_path / "none")
    for widget in (actions.star, actions.tags, actions.baseline, actions.notes):
        assert widget.disabled
    for button in (actions.report, actions.adapter, actions.exporting, actions.merging):
        assert button.disabled
    assert "No run is selected" in actions.head.value
    actions.close()
    assert not actions.workspace.selection._observers


def test_star_and_tags_are_of_all_selected_runs(some: tuple[RunActions, list[Run]]) -> None:
    actions, runs = some
    mark(runs[0], tags=["own"])
    actions.workspace.runs.refresh()
    actions.star.value = True
    actions.tags.value = " good ,, for the talk"
    assert marks(runs[0]) == Marks(True, ("own", "good", "for the talk"))
    assert marks(runs[1]) == Marks(True, ("good", "for the talk"))
    assert marks(runs[2]) == Marks()
    assert actions.tags.value == "good, for the talk"
    actions.tags.value = "good"
    assert (marks(runs[0]).tags, marks(runs[1]).tags) == (("own", "good"), ("good",))
    actions.tags.value = "x" * 41
    assert "cannot be a tag" in actions.problem.value
    assert marks(runs[1]).tags == ("good",)
    assert actions.baseline.disabled
    assert actions.adapter.disabled


def test_a_run_becomes_the_baseline_and_gets_a_note(some: tuple[RunActions, list[Run]]) -> None:
    actions, runs = some
    actions.workspace.selection.ids = [runs[0].id]
    actions.baseline.value = True
    actions.text.value = "**so** good"
    assert note(runs[0]) == "**so** good"
    assert "<strong>so</strong> good" in actions.preview.value
    assert actions.notes.description == "Notes ●"
    actions.workspace.selection.ids = [runs[1].id]
    assert not actions.baseline.value
    assert actions.text.value == ""
    actions.baseline.value = True
    assert marks(runs[0]) == Marks()
    write_note(runs[1], "from the command line")
    actions.workspace.runs.refresh()
    assert actions.text.value == "from the command line"


def test_a_note_is_rendered_without_its_html() -> None:
    text = f"{HOSTILE}\n\n[a](javascript:alert(1)) [b](https://x.org) ![c](https://x.org/i.png) <data:text/html,x>\n\n"
    text += "[d](JaVaScRiPt:x) [e](file:///etc) [f](&#106;avascript:x)\n\n| a |\n|-|\n| ~~b~~ |\n"
    shown = markdown(text)
    assert "<img" not in shown
    assert "<script" not in shown
    assert shown.count("<a ") == shown.count('rel="noopener noreferrer"') == shown.count('href="https://x.org') == 2
    assert "<s>b</s>" in shown
    assert HOSTILE in unescape(shown)
    assert len(markdown("x" * 10**6)) < 21_000


def test_a_report_is_written_and_offered(some: tuple[RunActions, list[Run]]) -> None:
    actions, runs = some
    actions.report.click()
    assert actions.problem.value == ""
    path = report_path(actions.workspace.root, [run.id for run in runs[:2]])
    assert path.is_file()
    assert path.name in actions.status.value
    assert actions.delivery.file is None
    actions.fetch.click()
    assert actions.delivery.file is not None
    assert actions.delivery.file.name == path.name
    assert actions.delivery.file.data == path.read_bytes()
    assert path.name not in actions.workspace.runs.entries
    assert report_path(path.parent, ["a", "b"]) != report_path(path.parent, ["a", "c"])


def test_an_adapter_is_packed_for_the_browser(trained: RunActions, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained.adapter.description.startswith("Download adapter (")
    assert "kB" in trained.adapter.description
    trained.adapter.click()
    assert trained.problem.value == ""
    file = trained.delivery.file
    assert file is not None
    with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
        archive.extractall("unpacked")
    base, run_id = loading.load_base("nano"), trained.workspace.selection.first
    assert file.name == f"{run_id}.zip"
    assert load_adapter(base.model, Path("unpacked") / run_id / "adapter").config.type == "lora"
    monkeypatch.setattr(run_actions, "MOST", 1000)
    trained.adapter.click()
    assert "at most 1 kB go through the browser. Copy it from runs/" in trained.problem.value
    assert trained.delivery.file is None


@pytest.mark.parametrize("kind", ["peft", "lab", "merged"])
def test_an_adapter_is_exported_and_merged(trained: RunActions, kind: str) -> None:
    (trained.merging if kind == "merged" else trained.exporting).click()
    trained.format.value = kind
    run_id = trained.workspace.selection.first
    assert trained.folder.value == f"exports/{run_id}-{kind}"
    assert " on disk." in trained.size.value
    trained.save.click()
    assert trained.problem.value == ""
    folder = Path(trained.folder.value)
    assert str(folder) in trained.status.value
    file = {"peft": "adapter_config.json", "lab": "adapter.json", "merged": "merge.json"}[kind]
    assert (folder / file).is_file()
    if kind == "merged":
        AutoModelForCausalLM.from_pretrained(folder)
    assert trained.form.layout.display == "none"
    trained.save.click()
    assert "exists already. Name a new folder." in trained.problem.value
    trained.folder.value = "a\x00b"
    trained.save.click()
    assert "control character" in trained.problem.value
    trained.workspace.selection.ids = []
    assert trained.form.layout.display == "none"


def test_what_cannot_be_merged_is_named(trained: RunActions, finished: Finished) -> None:
    trained.workspace.selection.ids = [finished[1]["prefix"]]
    trained.merging.click()
    trained.save.click()
    assert "lab-error" in trained.problem.value
    assert "Traceback" not in trained.problem.value
    assert not Path(trained.folder.value).exists()
    assert not trained.save.disabled
