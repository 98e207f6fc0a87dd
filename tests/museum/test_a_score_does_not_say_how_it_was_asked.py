"""A score does not say with which prompt, limit and precision it was made.

Area: scoring
Elsewhere: trl#1623, alignment-handbook#127 (answers that never end), lm-eval#2294, LLM-Adapters#16, #21, #38, #59.
Before: answers that were cut off at the limit, and an adapter asked with a prompt it was not trained with, went unsaid.
Here: both stand beside the score, in `show`, `compare`, report and card; a run warns of the second.
Verdict: silent → told
"""

from pathlib import Path

from llm_adapters_lab.events import Event, Noticed
from llm_adapters_lab.results.comparison import compare, notes, remarks
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec


def test_a_score_says_what_could_move_it(tmp_path: Path) -> None:
    told: list[Event] = []
    asked = {"tasks": ["mini-addsub"], "rows": 8, "max_new_tokens": 1, "protocol": "paper", "batch": 4}
    data = {"rows": 8, "template": "qa", "allow_dropped": True}  # nothing fits into one token
    fields = {"base": "nano", "adapter": "lora", "data": data, "dtype": "fp32", "eval": asked}
    record = run(RunSpec.parse({**fields, "train": {"max_steps": 1, "batch": 4}}), root=tmp_path, on_event=told.append)
    score = record.summary["scores"]["mini-addsub"]
    found = {key: score[key] for key in ("template", "trained_with", "dtype", "batch", "max_new_tokens", "by_limit")}
    assert found == {
        **{"template": "original", "trained_with": "qa", "dtype": "float32", "batch": 4, "max_new_tokens": 1},
        "by_limit": sum(p["cut"] for p in record.predictions()) / 8,
    }
    assert score["by_limit"] > 0.5
    warned = [event.text for event in told if isinstance(event, Noticed)]
    assert any("asked with the prompt 'original', but the adapter is trained with 'qa'" in text for text in warned)
    assert "asked with the prompt original, trained with qa." in " ".join(remarks(compare([record])))
    assert {"prompt original, float32, batch 4"} <= set(notes(score, None))
