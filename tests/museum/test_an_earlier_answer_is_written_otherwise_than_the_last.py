"""An earlier answer of a chat is written otherwise than the last, so that its mask covers the next question.

Area: tokens
Elsewhere: Automodel#3024, slime#1742, axolotl#2089: labels end where a chat up to that answer would.
Before: chats were not read.
Here: the start of an answer must be a prefix of the row, and its end is where another answer would be followed by the
    same text. Qwen3 drops the thoughts of earlier answers: they are neither learnt nor counted.
Verdict: refused → right
"""

import chat_templates as chat

from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import get_format
from llm_adapters_lab.tasks.tokens import IGNORED


def test_an_earlier_answer_is_written_otherwise_than_the_last() -> None:
    tokenizer = chat.tokenizer("qwen3")
    turns = [
        {"role": "user", "content": "Two plus 3?"},
        {"role": "assistant", "content": "5.", "reasoning_content": "Two and three, which is the sum that is asked."},
        {"role": "user", "content": "And 4?"},
        {"role": "assistant", "content": "9.", "reasoning_content": "Five and four."},
    ]
    alone = tokenizer.apply_chat_template(turns[:2], tokenize=True, return_dict=False)
    written = get_format(tokenizer, "chat").row(Example("x", "", "", "", "", messages=tuple(turns)))
    learnt = [token for token, label in zip(written.ids, written.labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(learnt) == "5.<|im_end|><think>\nFive and four.\n</think>\n\n9.<|im_end|>"
    question = tokenizer.decode(written.ids[: len(alone)])  # what a mask by the length of the first two turns covers
    assert "<|im_end|>\n<|im_start|>user\nAnd" in question
