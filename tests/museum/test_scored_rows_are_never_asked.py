"""Scored rows are too long for the model, or in a script it does not know, and a score of zero looks like a result.

Area: scoring
Elsewhere: found here
Before: with the default limit of 256 new tokens no row fitted `nano`: accuracy 0.0 %, "finished", and no event.
Here: such rows are counted before anything is loaded, and told; if under 10 % can be answered, the run is refused,
    unless `data.allow_dropped` is set.
Verdict: silent → refused
"""

import json
from pathlib import Path

import pytest

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import row_remarks
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec


def test_scored_rows_are_never_asked(tmp_path: Path) -> None:
    def spec(questions: list[str], data: dict[str, object] | None = None, **asked: object) -> RunSpec:
        file = tmp_path / f"{len(list(tmp_path.glob('*.jsonl')))}.jsonl"
        file.write_text("\n".join(json.dumps({"instruction": text, "answer": "1"}) for text in questions))
        scored = {"tasks": [f"own:{file}?form=number&template=qa"], "max_new_tokens": 6} | asked
        return RunSpec.parse({"base": "nano", "eval": scored, "data": data or {}})

    known, long, strange = ["1 plus 1 ?"] * 4, ["a " * 300] * 4, ["\u8fd9\u662f\u4ec0\u4e48"] * 4
    for bad, words in (
        (spec(known, max_new_tokens=1000), "4 of 4 rows exceed the 256 tokens of nano with an answer of eval.max_new"),
        (spec([*known, *known], max_new_tokens=None), "8 of 8 rows exceed"),
        (spec(known, tasks=["mini-bool"], max_new_tokens=1000, rows=4), "4 of 4 rows exceed"),
        (spec(strange), "4 of 4 rows have characters that the tokenizer does not know"),
    ):
        with pytest.raises(BadSpec, match=f"Under 10 % of the rows can be answered.*{words}"):
            run(bad, root=tmp_path / "runs")
    done = run(spec([*known, *long, *strange]), root=tmp_path / "runs")
    assert len(row_remarks(done.summary)) == len(list(done.events("Noticed"))) == 2
    assert run(spec(strange, {"allow_dropped": True}), root=tmp_path / "runs").done
