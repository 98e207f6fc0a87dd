"""The prompt of the training is lost with an exported adapter.

Area: export
Elsewhere: lm-eval#1841, LlamaFactory#3096, #5517, #10596, #2771, Qwen-VL#302: another template gives other answers.
Before: the card gave the name of the template, if the spec did.
Here: the card has the exact prompts as Python strings, down to the last line break, and says if the base has a chat
template that was not used.
Verdict: silent → told
"""

import ast
import re
from pathlib import Path

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.results.model_card import card
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.prompts import prompt


def test_the_card_has_the_exact_prompt(tmp_path: Path) -> None:
    plan = {"data": {"rows": 8, "template": "alpaca"}, "train": {"max_steps": 1, "batch": 4}}
    record = run(RunSpec.parse({"base": "nano", "adapter": "lora", **plan}), root=tmp_path)
    text = card("nano", LoRAConfig(at="q,v"), "lab", record, "out")
    found = {name: ast.literal_eval(value) for name, value in re.findall(r"^(with\w*_input) = (.*)$", text, re.M)}
    given = {"with_input": "{input}", "without_input": ""}
    rows = {name: Example(name, "{instruction}", more, "", "") for name, more in given.items()}
    assert found == {name: prompt(row, "alpaca") for name, row in rows.items()}
    assert "chat template" not in text
    record.write("summary.json", {**record.summary, "hashes": {**record.summary["hashes"], "template": "0" * 64}})
    assert "The chat template of the base was not used." in card("nano", LoRAConfig(at="q,v"), "lab", record, "out")
