"""A chat begins twice, since template and tokenizer both write the begin token.

Area: tokens
Elsewhere: Soup#781, open-r1#462, DeepSeek-R1#151, llama-cpp-python#1439, vllm#27486
Before: chats were not read.
Here: a chat begins as its template says, once, in training as in scoring; if the template writes no begin token though
    the tokenizer puts one before plain text, the run says so.
Verdict: refused → right
"""

import chat_templates as chat

from llm_adapters_lab.runs.preflight import template_notes
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import get_format


def test_a_chat_begins_twice() -> None:
    row = Example("x", "Two plus 3?", "", "5.", "5")
    for name in ("llama3", "gemma3", "mistral_small"):
        for begins in (True, False):
            tokenizer = chat.tokenizer(name, begins=begins)
            first, form = tokenizer.bos_token_id, get_format(tokenizer, "chat")
            assert tokenizer(form.row(row).text)["input_ids"][:2].count(first) == 1 + begins
            for ids in (form.row(row).ids, form.prompts([row])[0][1]):
                assert ids[0] == first
                assert ids.count(first) == 1
    bare = chat.template("llama3").replace("bos_token + content", "content")
    form = get_format(chat.tokenizer("llama3", bare), "chat")
    assert form.tokenizer.bos_token_id not in form.row(row).ids
    assert "The chat template writes no begin token" in " ".join(template_notes("x", form))
    assert not template_notes("x", get_format(chat.tokenizer("llama3"), "chat"))
