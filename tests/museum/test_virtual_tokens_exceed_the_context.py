"""A row fits the model's context, but not together with the virtual tokens of a prefix or a soft prompt.

Area: tokens
Elsewhere: found here
Before: training rows were measured without virtual tokens; with rotary positions nothing was said.
Here: virtual tokens count, in training as in scoring. Rows that do not fit beside them are refused before weights load.
Verdict: silent → refused
"""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.preflight import preflight
from llm_adapters_lab.runs.spec import RunSpec


@pytest.mark.parametrize("kind", ["prefix", "prompt-tuning", "p-tuning", "lora"])
def test_virtual_tokens_take_part_of_the_context(kind: str, tmp_path: Path) -> None:
    file, base = tmp_path / "rows.jsonl", Blueprint("nano")
    assert base.context is not None
    file.write_text(json.dumps({"instruction": "a " * (base.context - 30), "answer": "b"}))
    data = {"task": f"own:{file}?template=qa", "max_tokens": base.context}

    def check(virtual: int) -> None:
        adapter: dict[str, Any] = {"type": kind} | ({"virtual_tokens": virtual} if kind != "lora" else {})
        preflight(RunSpec.parse({"base": "nano", "adapter": adapter, "data": data}), base)

    check(8)
    if kind == "lora":
        check(40)
        return
    with pytest.raises(BadSpec, match=rf"takes {base.context - 40} beside the 40 virtual tokens of the adapter"):
        check(40)
