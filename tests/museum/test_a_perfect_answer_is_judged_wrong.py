"""A perfect answer is judged wrong, because the tokenizer or the rule changes it.

Area: scoring
Elsewhere: found here; LLM-Adapters#58
Before: on `nano`, 126 of 395 AddSub rows and all of AQuA could not be answered; gold answers of two lines never.
Here: before training and scoring, every gold answer and training output makes the round trip through tokenizer and
    rule. From 1 % the rows are named, above 50 % the run is refused; the lab rule reads "9 . 8" and "is b .".
Verdict: silent → told
"""

import json
from pathlib import Path

import pytest

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec


def test_a_perfect_answer_is_judged_wrong(tmp_path: Path) -> None:
    def spec(answers: list[str], **fields: object) -> RunSpec:
        file = tmp_path / f"{len(list(tmp_path.glob('*.jsonl')))}.jsonl"
        rows = [{"instruction": f"say {n} ?", "answer": text} for n, text in enumerate(answers)]
        file.write_text("\n".join(map(json.dumps, rows)))
        scored = {"tasks": [f"own:{file}"], "max_new_tokens": 8}
        return RunSpec.parse({"data": {"task": f"own:{file}", "template": "qa"} | fields, "eval": scored})

    half = [*["one"] * 4, *["U.S."] * 5]
    with pytest.raises(BadSpec, match=r"wrong in 5 of 9 rows \(56 %\), such as .*/4: 'U.S.' is read as 'u . s .'"):
        run(spec(half), root=tmp_path / "runs")
    allowed = run(spec(half, allow_dropped=True), root=tmp_path / "runs")
    told = allowed.summary["rows"]["unreadable"][0]
    assert (told["count"], told["total"], len(told["examples"])) == (5, 9, 3)
    noticed = run(spec(["one", "a question : answer", "two"]), root=tmp_path / "runs")
    (event,) = noticed.events("Noticed")
    assert "wrong in 1 of 3 rows" in event["text"]
    assert not run(spec(["one", "two"]), root=tmp_path / "runs").summary["rows"]["unreadable"]
