"""Most rows are left out, and the training learns from the few that remain.

Area: data
Elsewhere: found here
Before: with 499 of 500 rows too long it trained on one, and a script that the tokenizer lacks became `<unk>`.
Here: rows that are too long, empty, repeated, unknown to the tokenizer or also scored are counted in an event, in
    `show`, card and panel; if under 10 % are left, the run is refused, unless `data.allow_dropped` is set.
Verdict: silent → refused
"""

import json
from pathlib import Path

import pytest

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import row_remarks
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec


def test_most_rows_are_left_out(tmp_path: Path) -> None:
    def spec(rows: list[str], **fields: object) -> RunSpec:
        file = tmp_path / f"{len(list(tmp_path.glob('*.jsonl')))}.jsonl"
        file.write_text("\n".join(json.dumps({"instruction": text, "answer": "yes"}) for text in rows))
        data = {"task": f"own:{file}?template=qa", "max_tokens": 32, **fields}
        return RunSpec.parse({"adapter": {"type": "lora", "rank": 2}, "data": data, "train": {"max_steps": 1}})

    long = ["a " * 99] * 19
    with pytest.raises(BadSpec, match="Under 10 % of the training rows are usable.*19 longer than data.max_tokens"):
        run(spec(["is it ?", *long]), root=tmp_path / "runs")
    with pytest.raises(BadSpec, match="10 with characters that the tokenizer does not know"):
        run(spec(["\u4f60\u597d"] * 10), root=tmp_path / "runs")
    done = run(spec(["is it ?", *long], allow_dropped=True), root=tmp_path / "runs")
    assert done.summary["train"]["rows"] == 1
    (event,) = done.events("LeftOut")
    assert (event["rows"], event["too_long"], event["repeated"]) == (20, 19, 18)
    assert row_remarks(done.summary)[0].startswith("Of 20 training rows: 19 longer than data.max_tokens, dropped; 18")
