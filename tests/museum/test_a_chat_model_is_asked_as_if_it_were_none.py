"""A model that is trained on chats is trained and asked with another template than its own.

Area: tokens
Elsewhere: LlamaFactory#3096, #5517, #10596, #2771, Qwen-VL#302, lm-eval#1841
Before: a base's chat template was not used, and only the card said so.
Here: `template: chat` uses it, in training and scoring; a run that writes rows otherwise says so by name, and another
    chat template has another name in the record.
Verdict: silent → told
"""

import chat_templates as chat

from llm_adapters_lab.runs.preflight import template_notes
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import get_format


def test_a_chat_model_is_asked_as_if_it_were_none() -> None:
    tokenizer, row = chat.tokenizer("smollm2"), Example("x", "Two plus 3?", "", "5.", "5")
    plain, own = get_format(tokenizer, "alpaca"), get_format(tokenizer, "chat")
    other = get_format(tokenizer, chat.template("qwen2_5"))
    assert len({tuple(form.prompts([row])[0][1]) for form in (plain, own, other)}) == 3
    for form in (plain, own, other):
        head = tuple(form.prompts([row])[0][1])
        assert form.row(row).ids[: len(head)] == head
    (told,) = template_notes("smollm2-135m", plain)
    assert "smollm2-135m has a chat template, but rows are written with the plain prompt 'alpaca'" in told
    assert template_notes("smollm2-135m", own) == []
    (told,) = template_notes("smollm2-135m", other)
    assert f"by the chat template {other.name} for smollm2-135m, whose own is another" in told
    assert own.name == "chat" != other.name == get_format(tokenizer, chat.template("qwen2_5")).name
