"""What a run says of its rows is said in its events, its summary, a dry run, the card and the report."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.errors import BadRow, BadSpec
from llm_adapters_lab.events import row_remarks
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.results.model_card import card
from llm_adapters_lab.results.reports import report
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.preflight import check_rows
from llm_adapters_lab.runs.preview import dry_run
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.encoding import count_control_rows

LONG = {"instruction": "is it " * 99, "answer": "yes"}


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return f"own:{path}?template=qa"


def test_every_place_tells_which_rows_are_left_out(tmp_path: Path) -> None:
    rows = [{"instruction": f"is {n} it ?", "answer": "yes"} for n in range(4)]
    learnt = write(tmp_path / "learnt.jsonl", [*rows, LONG, rows[0]])
    asked = write(tmp_path / "asked.jsonl", [{"instruction": "is it <s> ?", "answer": "yes"}, *rows[1:3]])
    fields: dict[str, Any] = {"data": {"task": learnt, "max_tokens": 64}, "train": {"max_steps": 1, "batch": 2}}
    spec = RunSpec.parse({**fields, "adapter": "lora", "eval": {"tasks": [asked], "max_new_tokens": 8}})
    left_out = "Of 6 training rows: 1 longer than data.max_tokens, dropped; 1 equal to an earlier row; 2 with"
    control = "1 of 3 rows have a control token written out, read as text."
    foreseen = dry_run(spec, tmp_path / "runs")
    assert foreseen.rows == 5
    done = run(spec, root=tmp_path / "runs")
    page = report([done], tmp_path / "report.html").read_text(encoding="utf-8")
    text = card("nano", LoRAConfig(), "lab", done, "x").replace("\\", "")
    for texts in (foreseen.notes, row_remarks(done.summary), [page], [text]):
        assert any(left_out in text for text in texts)
        assert any(control in text for text in texts)
    assert [event["too_long"] for event in done.events("LeftOut")] == [1]
    assert any(event["text"] == f"test/{asked}: {control}" for event in done.events("Noticed"))


def test_a_bare_base_tells_of_its_scored_rows(tmp_path: Path) -> None:
    asked = write(tmp_path / "asked.jsonl", [{"instruction": "</s> ?", "answer": "yes"}, {"instruction": "a", **YES}])
    done = run(RunSpec.parse({"eval": {"tasks": [asked], "max_new_tokens": 8}}), root=tmp_path / "runs")
    assert row_remarks(done.summary)[-1].endswith("1 of 2 rows have a control token written out, read as text.")


YES = {"answer": "<s>"}  # a gold answer is not part of a prompt


def test_a_dry_run_refuses_what_a_run_would(tmp_path: Path) -> None:
    learnt = write(tmp_path / "learnt.jsonl", [{"instruction": "is it ?", "answer": "yes"}, *[LONG] * 19])
    with pytest.raises(BadSpec, match="Under 10 % of the training rows are usable"):
        dry_run(RunSpec.parse({"adapter": "lora", "data": {"task": learnt, "max_tokens": 64}}), tmp_path)


def test_a_dry_run_says_how_much_it_has_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_adapters_lab.runs.preview.ROWS", 8)
    found = dry_run(RunSpec.parse({"adapter": "lora", "data": {"rows": 40, "validation": 4}}), tmp_path)
    assert found.rows == 40
    assert any("from the first 8 of 40 training rows" in note for note in found.notes)


def test_a_tokenizer_that_cannot_read_a_control_token_as_text_is_refused() -> None:
    class Careless:
        """A tokenizer that ignores split_special_tokens."""

        def __init__(self, tokenizer: Any) -> None:
            self.tokenizer = tokenizer

        def __call__(self, texts: list[str], add_special_tokens: bool, split_special_tokens: bool) -> Any:
            return self.tokenizer(texts, add_special_tokens=add_special_tokens)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.tokenizer, name)

    tokenizer = Blueprint("nano").tokenizer
    rows = [Example("own, row 2", "what is <s> ?", "", "", "1")]
    assert count_control_rows(tokenizer, rows, "qa") == 1
    with pytest.raises(BadRow, match="own, row 2: the tokenizer reads '<s>' in its text as a control token"):
        count_control_rows(Careless(tokenizer), rows, "qa")


def test_a_study_that_checks_its_rows_for_every_run_notes_them_once(tmp_path: Path) -> None:
    asked = write(tmp_path / "asked.jsonl", [{"instruction": "<s> ?", "answer": "yes"}])
    fields = {"data": {"rows": 10_000, "validation": 4}, "eval": {"tasks": [asked], "max_new_tokens": 8}}
    rows, base = read_rows(spec := RunSpec.parse({"adapter": "lora", **fields})), Blueprint("nano")
    for _ in range(2):
        check_rows(spec, rows, base)
    assert ["data.rows asks for 10,000" in note for note in rows.notes] == [True, False]
