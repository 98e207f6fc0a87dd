"""A chat ends with a token that is not learnt, or that does not end the answer.

Area: tokens
Elsewhere: torchtune#949, ArcticTraining#339, axolotl#2089, trl#1623, alignment-handbook#127
Before: chats were not read, and an answer ended with the tokenizer's end token alone.
Here: each answer is learnt with the token that the template puts after it, tool calls included; that token ends an
    answer in scoring, beside those of base and tokenizer. A template without one is refused with row and turn.
Verdict: refused → right
"""

from types import SimpleNamespace

import chat_templates as chat
import pytest

from llm_adapters_lab.errors import BadRow
from llm_adapters_lab.evaluation.decoding import StopRule
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import get_format

ENDS = {"gemma3": "<end_of_turn>", "phi3_5": "<|end|>", "gpt_oss": "<|return|>", "llama3_1": "<|eot_id|>"}


@pytest.mark.parametrize("name", ENDS)
def test_a_chat_ends_with_a_token_that_is_not_learnt(name: str) -> None:
    tokenizer, row = chat.tokenizer(name), Example("row 7", "Two plus 3?", "", "5.", "5")
    number, stated = tokenizer.convert_tokens_to_ids(ENDS[name]), tokenizer.convert_tokens_to_ids("5")
    written = get_format(tokenizer, "chat").row(row)
    assert [label for label in written.labels if label >= 0][-1] == number
    rule = StopRule(SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[stated])), tokenizer, "chat")
    ids = [tokenizer.convert_tokens_to_ids("4")]
    assert [rule([*ids, end]) for end in (number, stated, tokenizer.eos_token_id, *ids)] == [True, True, True, False]
    bare = chat.template("smollm2").replace("message['content'] + '<|im_end|>'", "message['content']")
    with pytest.raises(BadRow, match="row 7, turn 2 .*no end token"):
        get_format(chat.tokenizer("smollm2", bare), "chat").row(row)
