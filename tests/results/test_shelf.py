"""A shelf of adapters: added, listed, searched, loaded, named in specs, picked; refused where it was tampered with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import logits as logits_of
from small_runs import small
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.core.blending import blend
from llm_adapters_lab.core.injection import injections
from llm_adapters_lab.core.saved_adapters import looking_in
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.models import load_base, random_models
from llm_adapters_lab.results import hub
from llm_adapters_lab.results.picking import Picker
from llm_adapters_lab.results.shelf import Shelf
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.registry import get_task

HOSTILE = "<script>alert(1)</script> [link](javascript:x) \x1b[31m\u202e"
TASKS = {"sums": "mini-addsub", "truths": "mini-bool"}
PLAIN = "Once upon a time, a king lived in a castle."


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and a shelf with both."""
    root: Path = tmp_path_factory.mktemp("root")
    shelf = Shelf(root / "shelf")
    for name, task in TASKS.items():
        few = {"data": {"task": task, "rows": 64}, "eval": {"tasks": [task], "rows": 4}}
        record = run(small("lora", adapter={"type": "lora", "rank": 2, "at": "q,v"}, **few), root=root / "runs")
        with looking_in(root / "runs"):
            shelf.add(record.id, name, description="for sums" if name == "sums" else HOSTILE)
    return root


@pytest.fixture
def shelf(root: Path, tmp_path: Path) -> Shelf:
    shutil.copytree(root / "shelf", tmp_path / "shelf")
    return Shelf(tmp_path / "shelf")


def test_cards_know_their_run(shelf: Shelf, root: Path) -> None:
    assert [card.name for card in shelf.select()] == ["sums", "truths"]
    card = shelf.card("sums")
    (record,) = [path for path in (root / "runs").iterdir() if path.name == card.origin]
    summary = json.loads((record / "summary.json").read_text())
    assert card.scores == {"mini-addsub": (summary["scores"]["mini-addsub"]["accuracy"], 4)}
    assert (card.base, card.type, card.task, len(card.questions)) == ("nano", "lora", "mini-addsub", 40)
    assert Shelf(shelf.root).cards == shelf.cards


def test_lists_by_base(shelf: Shelf) -> None:
    assert len(shelf.select("nano")) == 2 and shelf.select("gpt2") == []
    assert len(shelf.select(load_base("nano").model)) == 2
    assert shelf.select(random_models.tiny("tiny:llama")) == []


def test_search_finds_by_description_and_questions(shelf: Shelf) -> None:
    assert [card.name for card, _ in shelf.search("sums")] == ["sums"]
    ((first, near), *_) = shelf.search("is this true or false")
    assert first.name == "truths" and 0 < near <= 1
    assert shelf.search("zebra") == []


def test_an_adapter_of_the_shelf_is_that_of_its_run(shelf: Shelf, root: Path) -> None:
    base = load_base("nano")
    injection = shelf.load(base.model, "sums")
    assert injection.name == "sums"
    record = run(RunSpec.load(root / "runs" / shelf.card("sums").origin / "spec.json"), root=root / "runs")
    other, _ = restore(record)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(logits_of(base.model, ids), logits_of(other.model, ids))


def test_specs_name_adapters_of_a_shelf(shelf: Shelf, tmp_path: Path) -> None:
    adapter = {"type": "lora", "rank": 2, "at": "q,v", "start": str(shelf.root / "sums")}
    record = run(small("lora", adapter=adapter), root=tmp_path)
    assert record.done
    assert blend([str(shelf.root / "sums"), str(shelf.root / "truths")]).config.type == "lora"


@pytest.mark.parametrize("file", ["adapter.safetensors", "adapter.json"])
def test_changed_files_are_refused(shelf: Shelf, file: str, tmp_path: Path) -> None:
    path = shelf.root / "sums" / "adapter" / file
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BadSpec, match="'sums' on the shelf .* has other files than those that were added"):
        shelf.load(load_base("nano").model, "sums")
    adapter = {"type": "lora", "rank": 2, "at": "q,v", "start": str(shelf.root / "sums")}
    with pytest.raises(BadSpec, match="has other files"):
        run(small("lora", adapter=adapter), root=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("nano*"))
    shelf.remove("sums")
    assert "sums" not in Shelf(shelf.root).cards and not (shelf.root / "sums").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cards: cards[0].update(name="../../etc"), r"cards\[0\]\.name"),
        (lambda cards: cards[0].update(digest="0" * 63), r"cards\[0\]\.digest"),
        (lambda cards: cards[0].update(surprise=1), "surprise"),
        (lambda cards: cards[0].update(questions=[1]), "questions"),
        (lambda cards: cards.append(cards[0]), "two cards of one name"),
        (lambda cards: cards.append("x"), r"cards\[2\]"),
    ],
)
def test_a_changed_index_is_refused(shelf: Shelf, change: Any, message: str) -> None:
    index = json.loads((shelf.root / "shelf.json").read_text())
    change(index["cards"])
    (shelf.root / "shelf.json").write_text(json.dumps(index))
    with pytest.raises(BadSpec, match=message):
        Shelf(shelf.root)


@pytest.mark.parametrize("text", ["[]", "{", '{"cards": 3}', "null"])
def test_an_index_of_another_form_is_refused(shelf: Shelf, text: str) -> None:
    (shelf.root / "shelf.json").write_text(text)
    with pytest.raises(BadSpec, match=r"shelf\.json"):
        Shelf(shelf.root)


@pytest.mark.parametrize("name", ["../x", "a/b", "A", "-x", "x" * 65, ".."])
def test_names_are_no_paths(shelf: Shelf, name: str) -> None:
    with pytest.raises(BadSpec, match=r"card\.name"):
        shelf.add(shelf.root / "sums", name)
    assert sorted(path.name for path in shelf.root.parent.iterdir()) == ["shelf"]


def test_folders_of_others_are_never_deleted(shelf: Shelf) -> None:
    (shelf.root / "mine").mkdir()
    (shelf.root / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(BadSpec, match="mine exists, and is not on the shelf"):
        shelf.add(shelf.root / "sums", "mine")
    (shelf.root / "sums" / "notes.txt").write_text("mine")
    shelf.add(shelf.root / "truths", "sums")
    shelf.remove("sums")
    assert [path.name for path in (shelf.root / "sums").iterdir()] == ["notes.txt"]
    assert (shelf.root / "mine" / "thesis.txt").read_text() == "years"
    shelf.remove("truths")
    assert not (shelf.root / "truths").exists()


def test_unknown_names_have_the_closest(shelf: Shelf) -> None:
    for call in (shelf.card, shelf.remove, shelf.folder):
        with pytest.raises(BadSpec, match="no adapter 'sum' on the shelf .* Did you mean 'sums'"):
            call("sum")


def test_text_of_cards_has_no_control_characters(shelf: Shelf) -> None:
    assert shelf.card("truths").description == "<script>alert(1)</script> [link](javascript:x) [31m"


def test_a_repository_of_the_hub(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str) -> Path:
        folder = tmp_path / "downloaded"
        shutil.copytree(shelf.root / "sums" / "adapter", folder)
        (folder / "README.md").write_text("---\ntags: [x]\n---\n# Sums\nfor adding")
        return folder

    monkeypatch.setattr(hub, "pull", pull)
    card = shelf.add("someone/their-sums")
    assert (card.name, card.origin, card.description) == ("their-sums", "someone/their-sums", "# Sums\nfor adding")
    assert card.digest == shelf.card("sums").digest and card.questions == ()


def test_the_hub_downloads_nothing_but_tensors_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    seen: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        seen[name] = options
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(BadSpec, match="no adapter of the lab"):
        hub.pull("a/b")
    assert seen == {"a/b": {"allow_patterns": ["*.safetensors", "*.json", "README.md"]}}

    def offline(name: str, **options: Any) -> str:
        raise OSError("no way")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(LabError, match="a/b cannot be downloaded: no way"):
        hub.pull("a/b")


# Picking


@pytest.fixture(scope="module")
def stocked(root: Path) -> Shelf:
    return Shelf(root / "shelf")


@pytest.fixture(scope="module")
def picker(stocked: Shelf) -> Picker:
    base = load_base("nano")
    return Picker(stocked.questions(), base.model, base.tokenizer)


def test_questions_of_a_task_pick_its_adapter(picker: Picker, stocked: Shelf) -> None:
    for name, task in TASKS.items():
        picks = [picker.pick(row.instruction) for row in get_task(task).load("test", None)[:40]]
        assert sum(next(iter(pick), "") == name for pick in picks) >= 36
        assert all(next(iter(picker.pick(question))) == name for question in stocked.card(name).questions)


def test_a_foreign_prompt_picks_none_and_leaves_the_base(picker: Picker, stocked: Shelf) -> None:
    assert picker.pick(PLAIN) == {}
    ids = torch.tensor([[5, 6, 7, 8]])
    before = logits_of(load_base("nano").model, ids)
    stocked.use(picker.model, {"sums": 1.0})
    assert not torch.equal(logits_of(picker.model, ids), before)
    distances = picker.distances(PLAIN)
    stocked.use(picker.model, {})
    assert torch.equal(logits_of(picker.model, ids), before)
    assert picker.distances(PLAIN) == distances  # whatever is in the model
    assert set(injections(picker.model)) == {"sums"}


def test_the_budget_is_kept_and_no_adapter_chosen_twice(picker: Picker, stocked: Shelf) -> None:
    both = "\n".join(stocked.card(name).questions[0] for name in ("sums", "truths", "sums"))
    chosen = picker.pick(both, cut=True, budget=0.8)
    assert chosen == pytest.approx({"sums": 0.8 / 3, "truths": 0.8 / 3})
    alone = picker.pick(stocked.card("sums").questions[0], budget=0.5)
    assert sum(alone.values()) == pytest.approx(0.5)
    with pytest.raises(BadSpec, match="empty"):
        picker.pick("")


def test_adapters_without_questions_cannot_be_picked(stocked: Shelf) -> None:
    base = load_base("nano")
    with pytest.raises(BadSpec, match="No adapter here has training questions"):
        Picker(stocked.questions("gpt2"), base.model, base.tokenizer)


# Command


def lab(*words: object) -> Any:
    return CliRunner().invoke(app, ["shelf", *map(str, words)])


def test_the_command(shelf: Shelf, root: Path) -> None:
    at = ("--shelf", shelf.root)
    listed = lab("list", *at)
    assert listed.exit_code == 0 and "mini-addsub" in listed.stdout and "\x1b" not in listed.stdout
    assert [row["name"] for row in json.loads(lab("search", "sums", "--json", *at).stdout)] == ["sums"]
    origin = shelf.card("sums").origin
    added = lab("add", origin, "--as", "again", "--about", "x", "--licence", "MIT", *at, "--root", root / "runs")
    assert added.exit_code == 0
    shown = lab("show", "again", *at).stdout
    assert "licence: MIT" in shown and f"origin: {origin}" in shown and "trained on: " in shown
    assert lab("remove", "again", *at).exit_code == 0
    question = shelf.card("sums").questions[0]
    assert json.loads(lab("pick", question, "--json", *at).stdout) == {"sums": 1.0}
    for words, message in (
        (("add",), "needs SOURCE"),
        (("list", "x"), "takes no argument"),
        (("search", "x", "--as", "y"), "--as is for shelf add"),
        (("list", "--hub"), "--hub is for shelf search"),
        (("pick", "x", "--base", "tiny:gpt2"), "No adapter here"),
        (("add", "nowhere"), "no saved adapter 'nowhere'"),
    ):
        result = lab(*words, *at)
        assert result.exit_code == 2 and message in " ".join(result.output.split()), (words, result.output)
