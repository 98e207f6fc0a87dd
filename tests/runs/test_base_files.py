"""Hashes of the files of a base, and records of earlier versions that have none."""

import json
import threading
from pathlib import Path

import pytest
from records import make_run
from small_bases import nano_copy

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.events import Event, Resumed, Step
from llm_adapters_lab.files import write_json
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.base_files import NAMES, changed, file_hashes, unchanged, weight_hash
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.hashes import outdated
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training import checkpoints


def rewrite(file: Path, **fields: object) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | fields, indent=7), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "fields", "key"),
    [
        ("config.json", {"rms_norm_eps": 0.5}, "config"),
        ("generation_config.json", {"eos_token_id": [1, 2]}, "generation"),
        ("tokenizer_config.json", {"clean_up_tokenization_spaces": True, "padding_side": "left"}, "tokenizer"),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}, "template"),
        ("config.json", {"transformers_version": "4.0.0", "_name_or_path": "x"}, ""),
    ],
)
def test_what_decides_a_result_is_in_a_hash(file: str, fields: dict[str, object], key: str, tmp_path: Path) -> None:
    folder = nano_copy(tmp_path / "base")
    before = file_hashes(Blueprint(str(folder)))
    weights = weight_hash(Blueprint(str(folder)))
    rewrite(folder / file, **fields)
    now = file_hashes(Blueprint(str(folder)))
    assert changed(before, now) == ([NAMES[key]] if key else [])
    assert weights and weights == weight_hash(Blueprint(str(folder)))
    assert changed({"base": "", "data": {}}, now) == []  # a record of an earlier version


def test_a_base_without_files_has_no_hashes() -> None:
    assert file_hashes(Blueprint("tiny:llama")) == weight_hash(Blueprint("tiny:llama")) == {}
    with pytest.raises(LabError):
        file_hashes(Blueprint("./nowhere"))


def test_a_finished_run_is_unchanged_as_long_as_its_base_is(tmp_path: Path) -> None:
    folder = nano_copy(tmp_path / "base")
    spec = RunSpec.parse({"base": str(folder), "eval": {"tasks": ["mini-bool"], "rows": 2}})
    record = run(spec, root=tmp_path / "runs")
    assert unchanged(record) and not outdated(record)
    rewrite(folder / "config.json", rms_norm_eps=0.5)
    assert not unchanged(record) and NAMES["config"] in outdated(record)
    (folder / "config.json").unlink()
    assert unchanged(record) and not outdated(record)  # not known


def test_own_rows_and_saved_adapters_are_not_looked_at_without_torch(tmp_path: Path) -> None:
    lora = {"type": "lora"}
    assert unchanged(make_run(tmp_path, lora, {}))
    assert not unchanged(make_run(tmp_path, lora, {}, data={"task": "own:rows.json"}))
    assert not unchanged(make_run(tmp_path, {"type": "composed", "rule": "a > b"}, {}))


def test_a_training_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    plan = {"data": {"rows": 16}, "train": {"batch": 4, "max_steps": 4, "checkpoint_every": 1}}
    spec, stop = RunSpec.parse({"base": "nano", "adapter": "lora", **plan}), threading.Event()
    record = run(spec, root=tmp_path, stop=stop, on_event=lambda e: stop.set() if isinstance(e, Step) else None)
    old = {key: json.loads((record.folder / "hashes.json").read_text())[key] for key in ("base", "data")}
    record.write("hashes.json", old)
    place = next(record.folder.glob("checkpoints/0*"))
    rewrite(place / "state.json", hashes=old)
    write_json(place / "manifest.json", {name: checkpoints._digest(place / name) for name in checkpoints._FILES})
    told: list[Event] = []
    assert run(spec, root=tmp_path, on_event=told.append).done
    assert [(e.stage, e.step) for e in told if isinstance(e, Resumed)] == [("training", 1)]
