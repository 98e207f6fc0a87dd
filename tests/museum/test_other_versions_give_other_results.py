"""Other versions of the libraries give other results, and nobody knows which were used.

Area: training
Elsewhere: LLM-Adapters#26 and #45 (another peft: 3 %), #63 (gibberish), #70.
Here: versions, threads and machine are in the record; `rerun` names what differs of them before any result, as its
cause.
Verdict: right → told
"""

from pathlib import Path

from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.reproduce import compare
from llm_adapters_lab.runs.spec import RunSpec


def test_a_difference_in_versions_comes_first(tmp_path: Path) -> None:
    plan = {"data": {"rows": 8}, "train": {"max_steps": 2, "batch": 4}}
    spec = RunSpec.parse({"base": "nano", "adapter": "lora", **plan})
    before, now = (run(spec, root=tmp_path / name) for name in "ab")
    assert compare(before, now) == []
    environment = before.summary["environment"]
    assert {"python", "torch", "transformers", "tokenizers", "threads", "device", "dtype"} <= set(environment)
    before.write("summary.json", {**before.summary, "environment": {**environment, "transformers": "4.9"}})
    log = (before.folder / "events.jsonl").read_text(encoding="utf-8")
    (before.folder / "events.jsonl").write_text(log.replace('"loss": ', '"loss": 1'), encoding="utf-8")
    first, *others = compare(before, now)
    assert (first.field, first.before, first.cause) == ("environment.transformers", "4.9", "version of transformers")
    assert {other.field for other in others} == {"Step 1.loss", "Step 2.loss"}
    assert {other.cause for other in others} == {"version of transformers"}
