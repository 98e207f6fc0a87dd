"""Runs that were asked with different prompts, rules or rows are compared item by item.

Area: comparison
Elsewhere: hira#7, lm-eval#2294; found here.
Before: "lora is better, p = 0.00012" of an adapter asked with one prompt and a base asked with another.
Here: only items that were asked alike are paired; otherwise the verdict is "asked differently", with what differs.
Verdict: silent → told
"""

import json
from pathlib import Path
from typing import Any

from llm_adapters_lab.results.paired_tests import pairs
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec


def test_only_what_was_asked_alike_is_paired(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"

    def ran(shift: int = 0, gold: int = 7, scoring: dict[str, Any] | None = None, **fields: Any) -> Run:
        rows = [{"instruction": f"what is {n + shift} ?", "answer": f"{gold}"} for n in range(6)]
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        asked = {"tasks": [f"own:{file}?form=number"], "max_new_tokens": 3, **(scoring or {})}
        return run(RunSpec.parse({"base": "nano", "eval": asked, **fields}), root=tmp_path / f"{shift}-{gold}")

    first, alike = ran(), ran(dtype="fp32")
    (row,) = pairs([first, alike])
    assert (row["items"], row["differs"], row["verdict"]) == (6, "", "not distinguishable")
    for other, words in (
        (ran(data={"template": "qa"}), "prompts alpaca and qa of 6 of 6 items"),
        (ran(scoring={"extraction": "original"}), "rule lab and original"),
        (ran(scoring={"max_new_tokens": 2}), "limit of tokens 3 and 2"),
        (ran(shift=500, dtype="fp32"), "prompt of 6 of 6 items"),
        (ran(gold=8, dtype="fp32"), "gold answer of 6 of 6 items"),
    ):
        (row,) = pairs([first, other])
        assert (row["items"], row["p"], row["differs"], row["verdict"]) == (0, None, words, "asked differently")
