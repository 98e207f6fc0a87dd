"""The choice of a base: what is offered, what is looked up, what is wrong."""

import asyncio
import json
import shutil
import threading

import pytest
from huggingface_hub import constants

from llm_adapters_lab.models import blueprint as blueprints
from llm_adapters_lab.models import hub
from llm_adapters_lab.models.blueprint import blueprint
from llm_adapters_lab.models.source import NANO
from llm_adapters_lab.models.spec import PACKAGED
from widgets.forms.model_picker import OWN, RECENT_MODELS, TINY_MODELS, ModelPicker

HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture(autouse=True)
def nothing_is_known():
    blueprints._blueprint.cache_clear()


def groups(picker):
    found = {}
    for each in picker.widget.options:
        found.setdefault(each["group"], []).append(each["value"])
    return found


def test_the_first_base_is_known_at_once():
    picker = ModelPicker()
    assert picker.blueprint is blueprint("nano") and not picker.pending and not picker.error
    assert len(picker.blueprint.anatomy.layers) == 6


def test_bases_are_grouped(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    at = tmp_path / "models--me--small/snapshots/main"
    at.mkdir(parents=True)
    config = {"model_type": HOSTILE, "text_config": {"num_hidden_layers": 3, "hidden_size": 64}}
    (at / "config.json").write_text(json.dumps(config))
    (tmp_path / "models--me--small/refs").mkdir()
    (tmp_path / "models--me--small/refs/main").write_text("main")
    picker = ModelPicker()
    found = groups(picker)
    assert [*found] == ["Packaged", RECENT_MODELS, TINY_MODELS] and found["Packaged"] == [*PACKAGED]
    assert found[RECENT_MODELS] == ["me/small"] and TINY_MODELS in picker.widget.folded
    hints = {each["value"]: each["hint"] for each in picker.widget.options}
    assert hints["me/small"] == f"3 layers · width 64 · {HOSTILE}" and "6 layers · width 128" in hints["nano"]


def test_observers_hear_of_the_search_and_of_its_end():
    heard = []
    picker = ModelPicker()
    picker.observe(lambda each: heard.append((each.value, each.pending, each.blueprint is not None, each.error)))
    picker.value = "tiny:bloom"
    assert heard[-1] == ("tiny:bloom", False, True, "") and ("tiny:bloom", True, False, "") in heard
    picker.widget.value = "tiny:llama"  # as the browser does
    assert heard[-1] == ("tiny:llama", False, True, "") and not picker.widget.note


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "Choose a base"),
        ("no-such", "There is no model 'no-such'"),
        ("/no/such", "no model folder"),
        ("tiny:none", "no tiny model"),
        ("x.gguf", "no GGUF file"),
        ("a/b/c", "no model folder"),
        ("me/doesnotexist", "is not on this machine"),
        (HOSTILE, "There is no model"),
    ],
)
def test_what_is_wrong_is_told_at_the_field(name, words):
    picker = ModelPicker()
    picker.value = name
    assert picker.blueprint is None and not picker.pending
    assert words in picker.error and picker.widget.error == picker.error and picker.value == name
    picker.value = "nano"
    assert picker.blueprint and not picker.error and not picker.widget.error


def test_a_folder_is_offered_again(tmp_path):
    folder = shutil.copytree(NANO, tmp_path / "mine")
    picker = ModelPicker()
    picker.value = str(folder)
    assert picker.blueprint and groups(picker)[OWN] == [str(folder)]


def test_the_parts_of_a_spec_change_the_base():
    picker = ModelPicker()
    picker.use(False, {}, {"<tool>": "a tool"})
    assert picker.blueprint and "<tool>" in picker.blueprint.tokenizer.get_vocab()
    before = picker.blueprint
    picker.use(False, {}, {"<tool>": "a tool"})
    assert picker.blueprint is before


def test_only_the_last_of_several_look_ups_counts(monkeypatch):
    free, answer = threading.Event(), hub.require_model

    def slow(name, seconds):  # a hub that takes its time
        free.wait(10)
        return answer(name, seconds)

    monkeypatch.setattr(hub, "require_model", slow)

    async def work():
        picker = ModelPicker()
        picker.value = "me/slow"
        assert picker.pending and picker.widget.note == "looking for me/slow …" and picker.blueprint is None
        picker.value = "tiny:llama"
        while picker.pending:
            await asyncio.sleep(0.01)
        free.set()
        await asyncio.sleep(0.2)
        assert picker.blueprint is blueprint("tiny:llama") and not picker.error

    asyncio.run(work())
