"""Validation rows are also learnt, and choose the step that has memorised them.

Area: data
Elsewhere: parameter-golf#2127: repeated rows fall on both sides of the split.
Before: of 16 validation rows, all 16 were learnt too.
Here: the split is by distinct question; rows that repeat a validation question are left out of training and counted.
Verdict: silent → right
"""

import json
from pathlib import Path

from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec


def test_validation_rows_are_also_learnt(tmp_path: Path) -> None:
    file, sums = tmp_path / "sums.jsonl", [(a, b) for a in range(4) for b in range(4)] * 6
    lines = [
        {"instruction": f"{a} plus  {b} ?" if n % 2 else f"{a} Plus {b} ?", "answer": str(a + b)}
        for n, (a, b) in enumerate(sums)
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    data = {"task": f"own:{file}", "validation": 8}
    rows = read_rows(spec := RunSpec.parse({"adapter": "lora", "data": data}))
    samples, left_out = rows.samples(Blueprint("nano").tokenizer, spec.data)
    texts = [" ".join(row.instruction.lower().split()) for row in rows.train]
    assert len(samples) == len(texts) == 96 - left_out.held_out
    assert not set(texts[:8]) & set(texts[8:])
    assert left_out.held_out == 6 * len(set(texts[:8])) - 8
    assert "with a validation question, dropped" in left_out.text
