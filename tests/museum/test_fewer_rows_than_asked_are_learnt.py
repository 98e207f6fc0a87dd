"""A spec asks for more rows than there are, and a smaller training passes for the one that was asked for.

Area: data
Elsewhere: found here
Before: `data.rows: 100` of a file with 12 trained on 12 without a word.
Here: an event, dry run, `show`, card and report say how many were asked for, and how many there are.
Verdict: silent → told
"""

import json
from pathlib import Path

import pytest

from llm_adapters_lab.events import row_remarks
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.preview import dry_run
from llm_adapters_lab.runs.spec import RunSpec


@pytest.mark.parametrize(("asked", "validation", "there"), [(100, 0, 12), (12, 4, 8), (12, 0, None), (8, 4, None)])
def test_a_row_that_is_missing_is_told(asked: int, validation: int, there: int | None, tmp_path: Path) -> None:
    file, text = tmp_path / "rows.jsonl", f"data.rows asks for {asked} training rows, but there are only {there}."
    file.write_text("\n".join(json.dumps({"instruction": f"{n} plus 1 ?", "answer": str(n + 1)}) for n in range(12)))
    data = {"task": f"own:{file}", "rows": asked, "validation": validation}
    plan = {"max_steps": 1, "batch": 2, "evaluate_every": 1 if validation else None}
    spec = RunSpec.parse({"adapter": "lora", "data": data, "train": {k: v for k, v in plan.items() if v}})
    told = [text] if there else []
    assert [note for note in dry_run(spec, tmp_path).notes if "asks for" in note] == told
    done = run(spec, root=tmp_path / "runs")
    assert [event["text"] for event in done.events("Noticed") if "asks for" in event["text"]] == told
    assert [note for note in row_remarks(done.summary) if "asks for" in note] == told
