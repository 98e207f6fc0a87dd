"""The mask of a chat is empty, and the training learns nothing.

Area: tokens
Elsewhere: transformers#34172, trl#4147, #4201, marin#7237: no published template but a few marks its answers.
Before: chats were not read.
Here: where a template marks no answers, they are found by proof on the row; marks that leave an answer out are refused
    with row and turn.
Verdict: refused → right
"""

import chat_templates as chat
import pytest

from llm_adapters_lab.errors import BadRow
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import get_format
from llm_adapters_lab.tasks.tokens import IGNORED

TURNS = ({"role": "user", "content": "Two plus 3?"}, {"role": "assistant", "content": "5."})


def test_the_mask_of_a_chat_is_empty() -> None:
    row = Example("row 7", "", "", "", "", messages=TURNS)
    for name, end in (("llama3_1", "<|eot_id|>"), ("gemma3", "<end_of_turn>"), ("qwen2_5", "<|im_end|>")):
        tokenizer = chat.tokenizer(name)
        options = {"return_assistant_tokens_mask": True, "return_dict": True}
        assert not any(tokenizer.apply_chat_template([*TURNS], **options)["assistant_masks"])
        written = get_format(tokenizer, "chat").row(row)
        learnt = [token for token, label in zip(written.ids, written.labels, strict=True) if label != IGNORED]
        assert tokenizer.decode(learnt) == f"5.{end}"
    body = "<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n"
    wrong = f"{{% for m in messages %}}{{% if m.role == 'user' %}}{body}{{% else %}}{{{{ m.content }}}}<|im_end|>\n"
    with pytest.raises(BadRow, match="row 7, turn 2 .*marks of the chat template leave it out"):
        get_format(chat.tokenizer("qwen2_5", wrong + "{% endif %}{% endfor %}"), "chat").row(row)
