"""The stored answers of a run are no longer those that were scored, and the paired test uses them.

Area: comparison
Elsewhere: found here
Before: with lines missing from `predictions.jsonl`, or `correct` edited, `compare` tested what was left.
Here: number and sum of the answers are checked against the summary, before a paired test and before a rescore.
Verdict: silent → refused
"""

import json
from pathlib import Path

import pytest
from records import make_run

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.results.paired_tests import disagreements, pairs
from llm_adapters_lab.results.rescoring import rescore


@pytest.mark.parametrize("damage", ["lines gone", "correct edited"])
def test_stored_answers_are_not_those_that_were_scored(damage: str, tmp_path: Path) -> None:
    first, second = (make_run(tmp_path, {"type": "lora"}, {"mini-addsub": 10}, seed=seed) for seed in (0, 1))
    assert pairs([first, second])[0]["items"] == 20
    file = second.folder / "predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    if damage == "lines gone":
        del rows[:5]
    else:
        rows[-1]["correct"] = True
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    counts = "15 of 20 answers to mini-addsub, 5" if damage == "lines gone" else "20 of 20 answers to mini-addsub, 11"
    for call in (lambda: pairs([first, second]), lambda: disagreements(first, second), lambda: rescore(second, "lab")):
        with pytest.raises(BadSpec, match=f"{second.id}: predictions.jsonl holds {counts} of them right; .* 10 right"):
            call()
