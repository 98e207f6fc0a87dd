"""What is read and what is learnt under the chat templates of published models; expected masks are written by hand."""

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import chat_templates as chat
import pytest

from llm_adapters_lab.errors import BadRow, BadSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.formats import Written, get_format
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import IGNORED

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Bonn"}}}


def turns(*said: str) -> list[dict[str, Any]]:
    """Turns from ``role: text``."""
    return [dict(zip(("role", "content"), text.split(":", 1), strict=True)) for text in said]


def example(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> Example:
    return Example("row 7", "", "", "", "", messages=tuple(messages), tools=tuple(tools or ()))


def learnt(tokenizer: Any, written: Written) -> list[str]:
    """The runs of labels, decoded."""
    assert len(written.ids) == len(written.labels)
    runs: list[list[int]] = [[]]
    for token, label in zip(written.ids, written.labels, strict=True):
        if label == IGNORED:
            runs.append([])
        else:
            assert label == token
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs if run]


def rendered(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> tuple[int, ...]:
    return tuple(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))


ONE = turns("user:Two plus 3?", "assistant:5.")
FOUR = turns("user:Two plus 3?", "assistant:5.", "user:And 4?", "assistant:9.")
BRIEF = turns("system:Be brief.") + FOUR
UNICODE = turns("user:Größe: 12 °C, 日本 🙂\n\n  two e\u0301", "assistant:Ärger – naïve 🙂\n\n日本\t9.")
SPACES = turns("user:  Hi \n", "assistant:yes  \nno  ", "user:\n\nAnd 4? ", "assistant:9. \n")
THOUGHT = [{**FOUR[0]}, {**FOUR[1], "reasoning_content": "Two and three."}]
THOUGHTS = [*THOUGHT, {**FOUR[2]}, {**FOUR[3], "reasoning_content": "Five and four."}]
TOOLS = [
    {"role": "user", "content": "Weather in Bonn?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": "12 °C"},
    {"role": "assistant", "content": "It is 12 °C."},
]

NAMES = sorted(chat.KINDS)
NO_SYSTEM = {"gemma", "mistral_nemo"}
"""Templates that refuse or lose a system prompt."""
THINKS = {"qwen3", "qwen3_marked", "gpt_oss", "lfm2_5"}
CALLS = {"llama3_1", "mistral_nemo", "mistral_small", "qwen2_5", "qwen3", "qwen3_marked", "gpt_oss", "lfm2_5"}

END = {
    "smollm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "mistral_nemo": "</s>",
    "mistral_small": "</s>",
    "phi3_5": "<|end|>",
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_marked": "<|im_end|>",
    "gpt_oss": "<|return|>",
    "granite3_3": "<|end_of_text|>",
    "lfm2_5": "<|im_end|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
}

ANSWERS = {  # the answers 5. and 9. of FOUR and of BRIEF
    "smollm2": ["5.<|im_end|>", "9.<|im_end|>"],
    "llama3": ["5.<|eot_id|>", "9.<|eot_id|>"],
    "llama3_1": ["5.<|eot_id|>", "9.<|eot_id|>"],
    "gemma": ["5.<end_of_turn>", "9.<end_of_turn>"],
    "gemma3": ["5.<end_of_turn>", "9.<end_of_turn>"],
    "mistral_nemo": ["5.</s>", "9.</s>"],
    "mistral_small": ["5.</s>", "9.</s>"],
    "phi3_5": ["5.<|end|>", "9.<|end|>"],
    "qwen2_5": ["5.<|im_end|>", "9.<|im_end|>"],
    "qwen3": ["5.<|im_end|>", "<think>\n\n</think>\n\n9.<|im_end|>"],  # thoughts are kept in the last answer only
    "qwen3_marked": ["<think>\n\n</think>\n\n5.<|im_end|>", "<think>\n\n</think>\n\n9.<|im_end|>"],
    "gpt_oss": ["<|channel|>final<|message|>5.<|end|>", "<|channel|>final<|message|>9.<|return|>"],
    "granite3_3": ["5.<|end_of_text|>", "9.<|end_of_text|>"],
    "lfm2_5": ["5.<|im_end|>", "9.<|im_end|>"],
}

OSS_SYSTEM = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
    "Current date: TODAY\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be "
    "included for every message.<|end|>"
)
WHOLE = {  # FOUR with the system prompt where the template has a place for one
    "smollm2": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTwo plus 3?<|im_end|>\n"
    "<|im_start|>assistant\n5.<|im_end|>\n<|im_start|>user\nAnd 4?<|im_end|>\n<|im_start|>assistant\n9.<|im_end|>\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>"
    "user<|end_header_id|>\n\nTwo plus 3?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n5.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd 4?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "9.<|eot_id|>",
    "llama3_1": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nTwo plus 3?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n5.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd 4?"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n9.<|eot_id|>",
    "gemma": "<bos><start_of_turn>user\nTwo plus 3?<end_of_turn>\n<start_of_turn>model\n5.<end_of_turn>\n"
    "<start_of_turn>user\nAnd 4?<end_of_turn>\n<start_of_turn>model\n9.<end_of_turn>\n",
    "gemma3": "<bos><start_of_turn>user\nBe brief.\n\nTwo plus 3?<end_of_turn>\n<start_of_turn>model\n5.<end_of_turn>\n"
    "<start_of_turn>user\nAnd 4?<end_of_turn>\n<start_of_turn>model\n9.<end_of_turn>\n",
    "mistral_nemo": "<s>[INST]Two plus 3?[/INST]5.</s>[INST]And 4?[/INST]9.</s>",
    "mistral_small": "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Two plus 3?[/INST]5.</s>[INST]And 4?"
    "[/INST]9.</s>",
    "phi3_5": "<|system|>\nBe brief.<|end|>\n<|user|>\nTwo plus 3?<|end|>\n<|assistant|>\n5.<|end|>\n<|user|>\nAnd 4?"
    "<|end|>\n<|assistant|>\n9.<|end|>\n<|endoftext|>",
    "gpt_oss": f"{OSS_SYSTEM}<|start|>developer<|message|># Instructions\n\nBe brief.\n\n<|end|><|start|>user"
    "<|message|>Two plus 3?<|end|><|start|>assistant<|channel|>final<|message|>5.<|end|><|start|>user<|message|>And 4?"
    "<|end|><|start|>assistant<|channel|>final<|message|>9.<|return|>",
    "granite3_3": "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>"
    "Two plus 3?<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>5.<|end_of_text|>\n<|start_of_role|>user"
    "<|end_of_role|>And 4?<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>9.<|end_of_text|>\n",
    "deepseek_r1_distill": "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Two plus 3?<｜Assistant｜>5.<｜end▁of▁sentence｜>"
    "<｜User｜>And 4?<｜Assistant｜>9.<｜end▁of▁sentence｜>",
}
WHOLE["qwen2_5"] = WHOLE["smollm2"]
WHOLE["lfm2_5"] = "<|startoftext|>" + WHOLE["smollm2"]
WHOLE["qwen3"] = WHOLE["smollm2"].replace("9.", "<think>\n\n</think>\n\n9.")
WHOLE["qwen3_marked"] = WHOLE["qwen3"].replace("5.", "<think>\n\n</think>\n\n5.")


def conversations() -> list[Any]:
    """Every template with every conversation that it can write."""
    found = []
    for name in NAMES:
        own: dict[str, tuple[Any, Any]] = {"one": (ONE, None), "four": (FOUR, None), "unicode": (UNICODE, None)}
        if name != "phi3_5":  # there, control tokens take the white space that follows
            own["spaces"] = (SPACES, None)
        if name not in NO_SYSTEM:
            own["system"] = (BRIEF, None)
        if name in CALLS:
            own["tools"] = (TOOLS, [WEATHER])
            own["calls without a list of tools"] = (TOOLS, None)
        if name in THINKS:
            own |= {"thought": (THOUGHT, None), "thoughts": (THOUGHTS, None)}
        found += [pytest.param(name, *value, id=f"{name}-{kind}") for kind, value in own.items()]
    return found


@pytest.mark.parametrize(("name", "messages", "tools"), conversations())
def test_rows_and_prompts_are_those_of_transformers(
    name: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    tokenizer = chat.tokenizer(name)
    form = get_format(tokenizer, "chat")
    row = example(messages, tools)
    if name != "deepseek_r1_distill":
        for loss_on in ("answer", "last"):
            assert form.row(row, loss_on=loss_on).ids == rendered(tokenizer, messages, tools=tools)
    whole = form.row(row, loss_on="all")
    assert whole.ids == rendered(tokenizer, messages, tools=tools)
    assert whole.text == tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    ((text, ids),) = form.prompts([row])
    assert tuple(ids) == rendered(tokenizer, messages[:-1], tools=tools, add_generation_prompt=True)
    assert text == tokenizer.apply_chat_template(messages[:-1], tools=tools, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_learnt_with_their_end_tokens(name: str) -> None:
    tokenizer = chat.tokenizer(name)
    form = get_format(tokenizer, "chat")
    row = example(FOUR if name in NO_SYSTEM else BRIEF)
    for loss_on, expected in (("answer", ANSWERS[name]), ("last", ANSWERS[name][-1:])):
        found = learnt(tokenizer, form.row(row, loss_on=loss_on))
        if name == "phi3_5":  # SentencePiece puts a space before a text, which it removes only at the start
            found = [text.lstrip() for text in found]
        assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_with_loss_on_all_every_token_is_learnt(name: str) -> None:
    tokenizer = chat.tokenizer(name)
    written = get_format(tokenizer, "chat").row(example(FOUR if name in NO_SYSTEM else BRIEF), loss_on="all")
    whole = WHOLE[name].replace("TODAY", date.today().isoformat())
    assert written.text == whole
    assert written.labels == written.ids
    if name != "phi3_5":
        assert learnt(tokenizer, written) == [whole]


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"deepseek_r1_distill"}))
def test_every_turn_is_told_by_its_tokens(name: str) -> None:
    tokenizer = chat.tokenizer(name)
    written = get_format(tokenizer, "chat").row(example(FOUR))
    assert [role for role, _, _ in written.turns] == ["user", "assistant", "user", "assistant"]
    texts = [tokenizer.decode(written.ids[first:end]) for _, first, end in written.turns]
    for text, said in zip(texts, ("Two plus 3?", "5.", "And 4?", "9."), strict=True):
        assert said in text
    assert "5." not in texts[0] + texts[2] + texts[3]
    ends = [end for _, _, end in written.turns]
    assert [first for _, first, _ in written.turns][1:] == ends[:-1]
    assert ends[-1] == len(written.ids)


CALLED = {
    "llama3_1": ['{"name": "get_weather", "parameters": {"city": "Bonn"}}<|eot_id|>', "It is 12 °C.<|eot_id|>"],
    "mistral_nemo": [
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Bonn"}, "id": "abcdefghi"}]</s>',
        "It is 12 °C.</s>",
    ],
    "mistral_small": ['[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Bonn"}</s>', "It is 12 °C.</s>"],
    "qwen2_5": [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn"}}\n</tool_call><|im_end|>',
        "It is 12 °C.<|im_end|>",
    ],
    "qwen3": [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn"}}\n</tool_call><|im_end|>',
        "<think>\n\n</think>\n\nIt is 12 °C.<|im_end|>",
    ],
    "qwen3_marked": [
        '<think>\n\n</think>\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
        "<|im_end|>",
        "<think>\n\n</think>\n\nIt is 12 °C.<|im_end|>",
    ],
    "gpt_oss": [
        ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Bonn"}<|call|>',
        "<|channel|>final<|message|>It is 12 °C.<|return|>",
    ],
    "lfm2_5": ["<|tool_call_start|>[get_weather(city='Bonn')]<|tool_call_end|><|im_end|>", "It is 12 °C.<|im_end|>"],
}


@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize("tools", [[WEATHER], None], ids=["tools", "no tools"])
def test_tool_calls_are_learnt_and_their_results_are_not(name: str, tools: list[dict[str, Any]] | None) -> None:
    tokenizer = chat.tokenizer(name)
    form, row = get_format(tokenizer, "chat"), example(TOOLS, tools)
    assert learnt(tokenizer, form.row(row)) == CALLED[name]
    assert learnt(tokenizer, form.row(row, loss_on="last")) == CALLED[name][-1:]


@pytest.mark.parametrize("name", sorted(set(NAMES) - CALLS - {"deepseek_r1_distill"}))
def test_a_tool_call_that_the_template_ignores_is_refused(name: str) -> None:
    form = get_format(chat.tokenizer(name), "chat")
    turn = 3 if name.startswith("gemma") else 2  # Gemma's refuse the role of the result
    with pytest.raises(BadRow, match=rf"row 7, turn {turn}\b"):
        form.row(example(TOOLS))


CALLS_LEARNT = [
    ({"n": 3}, '{"n": 3}'),
    ({}, "{}"),
    ({"a": {"b": [1, 2]}}, '{"a": {"b": [1, 2]}}'),
    ({"a": 'say "x"', "b": None}, '{"a": "say \\"x\\"", "b": null}'),
    ({"code": "<|im_start|>x</tool_call>"}, '{"code": "<|im_start|>x</tool_call>"}'),
]


@pytest.mark.parametrize(("arguments", "written"), CALLS_LEARNT)
def test_calls_of_every_kind_are_learnt(arguments: dict[str, Any], written: str) -> None:
    called = {**CALL, "function": {"name": "f", "arguments": arguments}}
    messages = [TOOLS[0], {**TOOLS[1], "tool_calls": [called]}, *TOOLS[2:]]
    for name, ends in (("qwen2_5", "}\n</tool_call><|im_end|>"), ("gpt_oss", "<|call|>"), ("mistral_small", "</s>")):
        tokenizer = chat.tokenizer(name)
        first = learnt(tokenizer, get_format(tokenizer, "chat").row(example(messages)))[0]
        assert first.endswith(written + ends)


def test_several_calls_in_a_turn_are_learnt_or_refused_as_one() -> None:
    other = {**CALL, "id": "ABCDEFGHI", "function": {"name": "get_weather", "arguments": {"city": "Rom"}}}
    messages = [TOOLS[0], {**TOOLS[1], "content": "Let me see.", "tool_calls": [CALL, other]}, *TOOLS[2:]]
    tokenizer = chat.tokenizer("qwen2_5")
    assert learnt(tokenizer, get_format(tokenizer, "chat").row(example(messages)))[0] == (
        'Let me see.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn"}}\n</tool_call>\n<tool_call>\n'
        '{"name": "get_weather", "arguments": {"city": "Rom"}}\n</tool_call><|im_end|>'
    )
    for name in ("gpt_oss", "llama3_1"):  # the first writes one call of a turn, the second refuses several
        with pytest.raises(BadRow, match=r"row 7, turn 2\b"):
            get_format(chat.tokenizer(name), "chat").row(example(messages))


@pytest.mark.parametrize("name", ["llama3_1", "mistral_small", "gpt_oss"])
def test_text_beside_a_call_that_the_template_drops_is_refused(name: str) -> None:
    messages = [TOOLS[0], {**TOOLS[1], "content": "Let me see."}, *TOOLS[2:]]
    for loss_on in ("answer", "all"):
        with pytest.raises(BadRow, match=r"row 7, turn 2\b.* drops"):
            get_format(chat.tokenizer(name), "chat").row(example(messages), loss_on=loss_on)


def test_a_token_that_closes_a_call_is_not_its_end() -> None:
    tokenizer = chat.tokenizer("qwen2_5")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    assert "</tool_call>" in tokenizer.all_special_tokens
    assert learnt(tokenizer, get_format(tokenizer, "chat").row(example(TOOLS))) == CALLED["qwen2_5"]


THINKING = {
    "qwen3": (
        ["<think>\nTwo and three.\n</think>\n\n5.<|im_end|>"],
        ["5.<|im_end|>", "<think>\nFive and four.\n</think>\n\n9.<|im_end|>"],
    ),
    "qwen3_marked": (
        ["<think>\nTwo and three.\n</think>\n\n5.<|im_end|>"],
        ["<think>\nTwo and three.\n</think>\n\n5.<|im_end|>", "<think>\nFive and four.\n</think>\n\n9.<|im_end|>"],
    ),
    "gpt_oss": (
        [
            "<|channel|>analysis<|message|>Two and three.<|end|><|start|>assistant<|channel|>final<|message|>5."
            "<|return|>"
        ],
        [
            "<|channel|>final<|message|>5.<|end|>",
            "<|channel|>analysis<|message|>Five and four.<|end|><|start|>assistant<|channel|>final<|message|>9."
            "<|return|>",
        ],
    ),
    "lfm2_5": (
        ["<think>Two and three.</think>5.<|im_end|>"],
        ["5.<|im_end|>", "<think>Five and four.</think>9.<|im_end|>"],
    ),
}


@pytest.mark.parametrize("name", THINKING)
def test_thoughts_are_learnt_where_the_template_keeps_them(name: str) -> None:
    tokenizer = chat.tokenizer(name)
    form = get_format(tokenizer, "chat")
    one, two = THINKING[name]
    assert learnt(tokenizer, form.row(example(THOUGHT))) == one
    assert learnt(tokenizer, form.row(example(THOUGHTS))) == two


@pytest.mark.parametrize("name", ["qwen3", "qwen3_marked"])
def test_thoughts_written_in_the_answer_are_those_of_the_template(name: str) -> None:
    tokenizer = chat.tokenizer(name)
    messages = turns("user:Two plus 3?", "assistant:<think>\nTwo and three.\n</think>\n\n5.")
    written = get_format(tokenizer, "chat").row(example(messages))
    assert learnt(tokenizer, written) == ["<think>\nTwo and three.\n</think>\n\n5.<|im_end|>"]
    assert written.ids == rendered(tokenizer, messages)
    short = turns("user:Two plus 3?", "assistant:<think>Two and three.</think>5.")  # the template adds line breaks
    assert get_format(tokenizer, "chat").row(example(short)) == written


@pytest.mark.parametrize("name", sorted(set(NAMES) - THINKS - {"deepseek_r1_distill"}))
def test_thoughts_that_the_template_drops_are_refused(name: str) -> None:
    for loss_on in ("answer", "all"):
        with pytest.raises(BadRow, match=r"row 7, turn 2 .*drops its reasoning"):
            get_format(chat.tokenizer(name), "chat").row(example(THOUGHT), loss_on=loss_on)


@pytest.mark.parametrize("name", NAMES)
def test_the_end_tokens_are_those_after_a_last_answer(name: str) -> None:
    tokenizer = chat.tokenizer(name)
    ends = {tokenizer.convert_ids_to_tokens(token) for token in get_format(tokenizer, "chat").ends}
    assert END[name] in ends
    assert "<|end|>" not in ends or name == "phi3_5"  # in harmony it ends a thought, before the answer


def test_deepseek_r1_is_refused_since_its_prompt_is_in_no_row() -> None:
    form = get_format(chat.tokenizer("deepseek_r1_distill"), "chat")
    for loss_on in ("answer", "last"):
        with pytest.raises(BadRow, match=r"row 7.*turn 2.*<think>"):
            form.row(example(ONE), loss_on=loss_on)


def test_mistral_nemo_is_refused_with_a_system_prompt_since_the_answer_would_remove_it() -> None:
    tokenizer = chat.tokenizer("mistral_nemo")
    assert "Be brief." not in tokenizer.apply_chat_template(BRIEF, tokenize=False)  # its own template loses it
    for loss_on in ("answer", "last", "all"):
        with pytest.raises(BadRow, match=r"row 7.*turn 1"):
            get_format(tokenizer, "chat").row(example(BRIEF), loss_on=loss_on)


def test_a_list_of_tools_that_moves_lets_only_the_last_answer_be_learnt() -> None:
    tokenizer = chat.tokenizer("mistral_small")
    form, row = get_format(tokenizer, "chat"), example(BRIEF, [WEATHER])
    with pytest.raises(BadRow, match=r"row 7.*turn 3"):
        form.row(row)
    assert learnt(tokenizer, form.row(row, loss_on="last")) == ["9.</s>"]


@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral_small", "lfm2_5"])
@pytest.mark.parametrize("begins", [True, False])
def test_there_is_one_begin_token_if_the_template_writes_it(name: str, begins: bool) -> None:
    tokenizer = chat.tokenizer(name, begins=begins)
    form = get_format(tokenizer, "chat")
    written, ((_, head),) = form.row(example(FOUR)), form.prompts([example(FOUR)])
    for ids in (written.ids, head):
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_there_is_none_if_neither_writes_it() -> None:
    tokenizer = chat.tokenizer("gpt_oss")
    form = get_format(tokenizer, "chat")
    assert tokenizer.bos_token_id not in form.row(example(FOUR)).ids
    assert tokenizer.bos_token_id not in form.prompts([example(FOUR)])[0][1]


# Templates that are wrong.

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LOOP = "{% for m in messages %}"


def test_the_two_templates_of_the_tests_below_are_right() -> None:
    for text in (CHATML, MARKED):
        tokenizer = chat.tokenizer("qwen2_5", text)
        assert learnt(tokenizer, get_format(tokenizer, "chat").row(example(BRIEF))) == ["5.<|im_end|>", "9.<|im_end|>"]


WRONG = {
    "raises": (CHATML.replace(LOOP, LOOP + "{% if m.content == 'And 4?' %}{{ raise_exception('no') }}{% endif %}"), 4),
    "raises another error": (CHATML.replace(LOOP, LOOP + "{{ m.content + 1 if m.content == 'And 4?' }}"), 4),
    "drops the system prompt": (CHATML.replace("messages %}", "messages if m.role != 'system' %}"), 1),
    "drops an earlier answer": (CHATML.replace("messages %}", "messages if m.role != 'assistant' or loop.last %}"), 3),
    "drops the first turns": (CHATML.replace("in messages", "in messages[-3:]"), 1),
    "empties an answer": (CHATML.replace("m.content", "('' if m.role == 'assistant' else m.content)"), 3),
    "has no end token": (CHATML.replace("<|im_end|>", ""), 3),
    "has an end token in words": (CHATML.replace("<|im_end|>", "###"), 3),
    "ends only questions": (CHATML.replace("'<|im_end|>\n'", "('' if m.role == 'assistant' else '<|im_end|>\n')"), 3),
    "sorts by role": (CHATML.replace("in messages", "in messages|sort(attribute='role')"), 3),
    "writes backwards": (CHATML.replace("in messages", "in messages[::-1]"), 3),
    "writes another header": (CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>bot\n'"), 3),
    "repeats the answer": (CHATML.replace("{% endfor %}", "{{ m.content }}{% endfor %}"), 3),
    "counts characters": (CHATML.replace("{% endfor %}", "{{ m.content|length }}{% endfor %}"), 3),
    "marks the question": (MARKED.replace("== 'assistant'", "== 'user'"), 3),
    "marks the system prompt": (MARKED.replace("== 'assistant'", "== 'system'"), 3),
    "marks nothing": (MARKED.replace("== 'assistant'", "== 'model'"), 3),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_template_is_refused_with_row_and_turn(kind: str) -> None:
    text, turn = WRONG[kind]
    tokenizer = chat.tokenizer("qwen2_5", text)
    with pytest.raises(BadRow, match=rf"row 7\b.*turn {turn}\b"):
        get_format(tokenizer, "chat").row(example(BRIEF))


def test_an_end_token_that_is_not_marked_is_learnt_all_the_same_or_refused() -> None:
    text = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    tokenizer = chat.tokenizer("qwen2_5", text)
    assert learnt(tokenizer, get_format(tokenizer, "chat").row(example(FOUR))) == ["5.<|im_end|>", "9.<|im_end|>"]


def test_a_call_without_an_end_token_is_refused() -> None:
    own = chat.template("qwen2_5")
    text = re.sub(r"(\}\\n</tool_call>' \}\}\s*\{%- endfor %\}\s*\{\{- ')<\|im_end\|>", r"\1", own)
    assert text != own
    with pytest.raises(BadRow, match=r"row 7, turn 2\b.*no end token"):
        get_format(chat.tokenizer("qwen2_5", text), "chat").row(example(TOOLS))


def test_marks_without_any_end_token_are_refused() -> None:
    tokenizer = chat.tokenizer(
        "qwen2_5", MARKED.replace("{{ m.content }}<|im_end|>{% endgeneration", "5.{% endgeneration")
    )
    with pytest.raises(BadRow, match=r"row 7\b.*turn 2\b"):
        get_format(tokenizer, "chat").row(example(FOUR))


def test_a_template_that_writes_the_time_is_the_same_in_training_and_scoring_or_refused() -> None:
    tokenizer = chat.tokenizer("qwen2_5", "{{ strftime_now('%B %Y') + '\n' }}" + CHATML)
    form = get_format(tokenizer, "chat")
    written = form.row(example(FOUR))
    assert learnt(tokenizer, written) == ["5.<|im_end|>", "9.<|im_end|>"]
    ((_, head),) = form.prompts([example(FOUR)])
    assert written.ids[: len(head)] == tuple(head)
    tokenizer = chat.tokenizer("qwen2_5", "{{ strftime_now('%H:%M:%S.%f') + '\n' }}" + CHATML)
    with pytest.raises(BadRow, match=r"row 7, turn 2\b"):
        get_format(tokenizer, "chat").row(example(FOUR))


# Rows that are wrong.


@pytest.mark.parametrize(
    ("name", "said", "turn"),
    [
        ("gemma", ["system:Be brief.", "user:Hi", "assistant:Hello"], 1),
        ("gemma", ["user:Hi", "user:there", "assistant:Hello"], 2),
        ("gemma3", ["user:Hi", "assistant:Hello", "assistant:there"], 3),
        ("mistral_small", ["user:Hi", "system:Be brief.", "assistant:Hello"], 3),
        ("mistral_small", ["assistant:Hello", "user:Hi", "assistant:Hello"], 1),
        ("phi3_5", ["user:Hi", "tool:12", "assistant:Hello"], 2),
        ("phi3_5", ["user:Is 12 right?", "tool:12", "assistant:Hello"], 2),
    ],
)
def test_a_wrong_row_is_refused_with_row_and_turn(name: str, said: list[str], turn: int) -> None:
    with pytest.raises(BadRow, match=rf"row 7\b.*turn {turn}\b"):
        get_format(chat.tokenizer(name), "chat").row(example(turns(*said)))


@pytest.mark.parametrize(
    ("said", "turn"),
    [
        (["user:Hi", "robot:Hello"], 2),
        (["user:Hi", "robot:beep", "assistant:Hello"], 2),
        (["user:", "assistant:Hello"], 1),
        (["user: \n", "assistant:Hello"], 1),
        (["user:Hi", "assistant:"], 2),
        (["user:Hi", "assistant:  ", "user:Hi", "assistant:Hello"], 2),
        (["system:", "user:Hi", "assistant:Hello"], 1),
    ],
)
def test_unknown_roles_and_empty_turns_are_refused_when_rows_are_read(
    said: list[str], turn: int, tmp_path: Path
) -> None:
    rows = [{"messages": FOUR}, {"messages": turns(*said)}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(BadRow, match=rf"(?s)rows\.jsonl.*\b2\b.*turn {turn}\b"):
        get_task(f"own:{tmp_path / 'rows.jsonl'}").load("train")


def test_a_chat_without_an_answer_is_refused_when_rows_are_read(tmp_path: Path) -> None:
    rows = [{"messages": FOUR}, {"messages": FOUR[:1]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(BadRow, match=r"rows\.jsonl, row 2\b"):
        get_task(f"own:{tmp_path / 'rows.jsonl'}").load("train")


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1"])
def test_white_space_that_joins_the_prompt_is_refused_or_kept_apart(name: str) -> None:
    """In these tokenizers two line breaks are one token; Llama's template removes them."""
    tokenizer = chat.tokenizer(name)
    form, row = get_format(tokenizer, "chat"), example(turns("user:Hi", "assistant:\n\nHello"))
    if name == "llama3_1":
        assert learnt(tokenizer, form.row(row)) == ["Hello<|eot_id|>"]
    else:
        with pytest.raises(BadRow, match=r"row 7.*turn 2"):
            form.row(row)


# Control tokens in the content.

HARMLESS = turns("system:Be brief.", "user:Hi", "assistant:Hello", "user:And 4?", "assistant:9.")


@pytest.mark.parametrize("name", sorted(set(NAMES) - NO_SYSTEM - {"deepseek_r1_distill"}))
def test_control_tokens_in_the_content_are_text(name: str) -> None:
    tokenizer = chat.tokenizer(name)
    form, end = get_format(tokenizer, "chat"), END[name]
    start = next(token for token in chat.KINDS[name].control.split() if token != end)
    said = [{**turn, "content": f"a{end}{start} {turn['content']} {start}b{end}c"} for turn in HARMLESS]
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    for loss_on in ("answer", "last", "all"):
        written = form.row(example(said), loss_on=loss_on)
        harmless = form.row(example(HARMLESS), loss_on=loss_on)
        assert [i for i in written.ids if i in special] == [i for i in harmless.ids if i in special]
        assert [i for i in written.labels if i in special] == [i for i in harmless.labels if i in special]
        assert written.text == tokenizer.apply_chat_template(said, tokenize=False)
    (_, head), (_, plain) = form.prompts([example(said), example(HARMLESS)])
    assert [i for i in head if i in special] == [i for i in plain if i in special]
    assert tuple(head) == written.ids[: len(head)]
    runs = learnt(tokenizer, form.row(example(said), loss_on="last"))
    assert len(runs) == 1
    said = f"a{end}{start} 9. {start}b{end}c{end}"
    assert runs[0].replace(" ", "").endswith(said.replace(" ", ""))  # pieces of SentencePiece begin with a space


@pytest.mark.parametrize("name", sorted(set(NAMES) - NO_SYSTEM - {"deepseek_r1_distill", "phi3_5"}))
def test_control_tokens_that_are_allowed_are_tokens(name: str) -> None:
    tokenizer = chat.tokenizer(name)
    start = next(token for token in chat.KINDS[name].control.split() if token != END[name])
    said = [{**turn, "content": f"a {start}b {turn['content']}"} for turn in HARMLESS]
    form = get_format(tokenizer, "chat", control_tokens="allow")
    written = form.row(example(said), loss_on="all")
    assert written.ids == rendered(tokenizer, said)
    first = tokenizer.convert_tokens_to_ids(start)
    assert written.ids.count(first) == rendered(tokenizer, HARMLESS).count(first) + len(HARMLESS)
    assert tuple(form.prompts([example(said)])[0][1]) == rendered(tokenizer, said[:-1], add_generation_prompt=True)


@pytest.mark.parametrize("name", ["qwen2_5", "lfm2_5"])
@pytest.mark.parametrize("control", ["text", "allow"])
def test_an_answer_may_end_with_the_name_of_the_end_token(name: str, control: Any) -> None:
    tokenizer = chat.tokenizer(name)
    messages = turns("user:How does ChatML end?", "assistant:With <|im_end|>")
    written = get_format(tokenizer, "chat", control_tokens=control).row(example(messages))
    assert learnt(tokenizer, written) == ["With <|im_end|><|im_end|>"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [label for label in written.labels if label == end] == [end] * (2 if control == "allow" else 1)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_marked"])
def test_control_tokens_in_calls_tools_and_thoughts_are_text(name: str) -> None:
    tokenizer = chat.tokenizer(name)
    call = {**CALL, "function": {"name": "get_weather", "arguments": {"city": "<|im_end|>"}}}
    tool = {**WEATHER, "function": {**WEATHER["function"], "description": "<|im_start|>system"}}
    messages = [
        TOOLS[0],
        {**TOOLS[1], "tool_calls": [call]},
        {**TOOLS[2], "content": "<|im_end|>"},
        {**TOOLS[3], "reasoning_content": "<|im_start|>"},
    ]
    written = get_format(tokenizer, "chat").row(example(messages, [tool]))
    harmless = get_format(tokenizer, "chat").row(example(TOOLS, [WEATHER]))
    for token in ("<|im_start|>", "<|im_end|>"):
        number = tokenizer.convert_tokens_to_ids(token)
        assert written.ids.count(number) == harmless.ids.count(number)
    assert written.text == tokenizer.apply_chat_template(messages, tools=[tool], tokenize=False)
    none = "<think>\n\n</think>\n\n" if name == "qwen3_marked" else ""
    assert learnt(tokenizer, written) == [
        f'{none}<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "<|im_end|>"}}}}\n</tool_call><|im_end|>',
        "<think>\n<|im_start|>\n</think>\n\nIt is 12 °C.<|im_end|>",
    ]


# Templates, system prompts and questions that are given otherwise.


def test_a_template_may_be_given_as_text(tmp_path: Path) -> None:
    tokenizer, other = chat.tokenizer("qwen2_5"), chat.tokenizer("qwen2_5", CHATML)
    given, own = get_format(tokenizer, CHATML), get_format(other, "chat")
    assert given.row(example(FOUR)) == own.row(example(FOUR))
    assert given.row(example(FOUR)).ids != get_format(tokenizer, "chat").row(example(FOUR)).ids
    assert given.ends == own.ends
    assert given.prompts([example(FOUR)]) == own.prompts([example(FOUR)])


def test_a_base_without_a_template_is_told() -> None:
    tokenizer = chat.tokenizer("qwen2_5")
    tokenizer.chat_template = None
    with pytest.raises(BadSpec, match="chat template"):
        get_format(tokenizer, "chat")


def test_a_system_prompt_is_for_rows_that_have_none() -> None:
    tokenizer = chat.tokenizer("qwen2_5")
    form = get_format(tokenizer, "chat", system="Be brief.")
    assert form.row(example(FOUR)).ids == form.row(example(BRIEF)).ids
    own = turns("system:Be long.") + FOUR
    assert "Be brief." not in form.row(example(own)).text
    with pytest.raises(BadRow, match=r"row 7, the system prompt"):
        get_format(chat.tokenizer("gemma"), "chat", system="Be brief.").row(example(FOUR))


def test_a_question_without_turns_is_asked_as_one() -> None:
    tokenizer = chat.tokenizer("qwen2_5")
    form = get_format(tokenizer, "chat")
    row = Example("row 7", "Two plus 3?", "", "5.", "5")
    assert form.row(row).ids == form.row(example(ONE)).ids
    assert form.prompts([row]) == form.prompts([example(ONE)])
    ((text, _),) = form.prompts([row], shots=[Example("s", "One plus 1?", "", "2.", "2")])
    assert re.findall(r"One plus 1\?|2\.|Two plus 3\?", text) == ["One plus 1?", "2.", "Two plus 3?"]
