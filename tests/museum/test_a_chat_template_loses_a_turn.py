"""A chat template loses a turn, a tool call or the system prompt.

Area: tokens
Elsewhere: trl#5517, axolotl#3824, Megatron-Bridge#4072: calls and tools vanish, the rest is learnt without a word.
Before: chats were not read.
Here: everything a row says must be in what the model reads, else row and turn are named. Mistral Nemo's template drops
    the system prompt as soon as the row has its answer.
Verdict: refused → refused
"""

from typing import Any

import chat_templates as chat
import pytest

from llm_adapters_lab.errors import BadRow
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import get_format

CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
ASKED, ANSWER = {"role": "user", "content": "Weather in Bonn?"}, {"role": "assistant", "content": "It is 12 °C."}
CALLED = [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "12"}, ANSWER]


@pytest.mark.parametrize(
    ("name", "turns", "turn", "lost"),
    [
        ("mistral_nemo", [{"role": "system", "content": "Be brief."}, ASKED, ANSWER], 1, "Be brief."),
        ("llama3", CALLED, 2, "weather"),
        ("granite3_3", CALLED, 2, "weather"),
        ("phi3_5", [ASKED, {"role": "tool", "content": "12 degrees"}, ANSWER], 2, "degrees"),
    ],
)
def test_a_chat_template_loses_a_turn(name: str, turns: list[dict[str, Any]], turn: int, lost: str) -> None:
    tokenizer = chat.tokenizer(name)
    assert lost not in tokenizer.apply_chat_template(turns, tokenize=False)
    for loss_on in ("answer", "last", "all"):
        with pytest.raises(BadRow, match=f"row 7, turn {turn} .*(drops|ignores)"):
            get_format(tokenizer, "chat").row(Example("row 7", "", "", "", "", messages=tuple(turns)), loss_on)
