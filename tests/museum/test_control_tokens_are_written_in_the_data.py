"""Control tokens that are written in the data act as control tokens.

Area: tokens
Elsewhere: Soup#781, open-r1#462, DeepSeek-R1#151, llama-cpp-python#1439, vllm#27486: the begin token comes twice.
Before: `<s>` and `</s>` in a row became begin and end tokens, in training and in scoring.
Here: text is text; the tokenizer alone adds one begin token. Rows that name a control token are counted, in training
and in scoring.
Verdict: silent → right
"""

import pytest

from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.encoding import encode
from llm_adapters_lab.tasks.prompts import prompt
from llm_adapters_lab.tasks.tokens import prompt_ids


@pytest.mark.parametrize("written", ["<s>", "</s>", "<pad>", "<unk>", "<s></s><s>"])
def test_control_tokens_are_written_in_the_data(written: str) -> None:
    tokenizer = Blueprint("nano").tokenizer
    row = Example("x", f"{written} two plus 3 ? {written}", written, f"5 {written}", "5")
    (sample,), left_out = encode(tokenizer, [row], "qa", 256, "answer")
    assert sample.ids[0] == tokenizer.bos_token_id
    assert sample.ids[-1] == tokenizer.eos_token_id
    assert not set(sample.ids[1:-1]) & set(tokenizer.all_special_ids)
    assert left_out.control == 1
    head = prompt_ids(tokenizer, prompt(row, "qa"))
    assert sample.ids[: len(head)] == tuple(head)
    assert prompt_ids(tokenizer, f"{tokenizer.bos_token}two").count(tokenizer.bos_token_id) == 1
    assert encode(tokenizer, [Example("x", "two", "", "5", "5")], "qa", 256, "answer")[1].control == 0
