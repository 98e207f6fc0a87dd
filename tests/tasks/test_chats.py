"""Rows of chats, preferences and documents: every form is read, and what cannot be is named with row and turn."""

import csv
import json

import pytest

from llm_adapters_lab.errors import BadRow, BadSpec
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.tasks.encoding import encode, encode_text
from llm_adapters_lab.tasks.formats import get_format
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import IGNORED, documents

TURNS = [{"role": "user", "content": "2 + 2 ?"}, {"role": "assistant", "content": "4"}]
SHARE = [{"from": "human", "value": "2 + 2 ?"}, {"from": "gpt", "value": "4"}]
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
PLAIN = "{% for m in messages %}{{ m.role }} : {{ m.content }}{{ eos_token }}{% endfor %}"
ASKED = PLAIN + "{% if add_generation_prompt %}assistant : {% endif %}"


def read(tmp_path, row, suffix="jsonl", query=""):
    file = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        with file.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerows([row, [v if isinstance(v, str) else json.dumps(v) for v in row.values()]])
    elif suffix == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    else:
        file.write_text(json.dumps([row] if suffix == "json" else row))
    return get_task(f"own:{file}{query}").load("train")[0]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"conversations": SHARE},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"messages": TURNS[:1], "answer": "4"},
        {"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in TURNS]},
    ],
    ids=["messages", "sharegpt", "completion", "answer", "parts"],
)
def test_the_forms_of_a_chat(tmp_path, row, suffix):
    example = read(tmp_path, row, suffix)
    assert (example.instruction, example.output, example.answer) == ("2 + 2 ?", "4", "4")
    assert [dict(turn) for turn in example.messages] == TURNS
    assert example.template == "chat"


def test_text_pairs_preferences_and_documents(tmp_path):
    pair = read(tmp_path, {"prompt": "2 + 2 =", "completion": " 4"})
    assert (pair.instruction, pair.output, pair.template, pair.messages) == ("2 + 2 =", " 4", "plain", ())
    as_json = read(tmp_path, {"prompt": "two", "completion": '[1, {"a": 2}]'})
    assert (as_json.output, as_json.template) == ('[1, {"a": 2}]', "plain")
    better = read(tmp_path, {"prompt": "2 + 2 =", "chosen": "4", "rejected": "5"})
    assert (better.output, better.rejected) == ("4", "5")
    chats = {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "5"}]}
    assert (read(tmp_path, chats).output, read(tmp_path, chats).rejected) == ("4", "5")
    with pytest.raises(BadRow, match="row 1: field 'rejected' and 'chosen' must be the same turns"):
        read(tmp_path, {"chosen": TURNS, "rejected": [{"role": "user", "content": "other"}, TURNS[1]]})
    assert read(tmp_path, {"text": "Once."}).output == "Once."


def test_calls_and_tools(tmp_path):
    said = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    example = read(
        tmp_path, {"messages": [TURNS[0], said], "tools": [{"type": "function", "function": {"name": "add"}}]}
    )
    assert example.messages[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2}}
    assert example.output == json.dumps([{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}])
    assert example.tools[0]["function"] == {"name": "add"}
    share = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'}
    turn = read(tmp_path, {"conversations": [SHARE[0], share]}).messages[1]
    assert turn["role"] == "assistant"
    assert turn["tool_calls"][0]["function"]["arguments"] == {"a": 2}


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([TURNS[0], {"role": "assistant", "content": " "}], r"row 1: field 'messages' turn 2 \(assistant\) is empty"),
        ([{"role": "oracle", "content": "a"}], "row 1: field 'messages' turn 1 has the role 'oracle'. Known: system"),
        (["hello"], "turn 1 is 'hello'; give an object with role and content"),
        ([], "is \\[\\]; give a list of turns"),
        (TURNS[:1], "row 1: field 'messages' ends without an answer. Add a turn of the assistant"),
        (
            [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
            r"turn 1 \(user\) has parts that are not text",
        ),
        ([{"role": "user", "content": 5}], r"turn 1 \(user\) holds 5, a int; give text"),
        ([TURNS[0], {"role": "assistant", "tool_calls": [5]}], "turn 2 calls 5; give a function with name"),
        ([{"role": "user", "content": "\ud800"}], "turn 1 holds an unpaired surrogate"),
    ],
)
def test_malformed_turns_are_named(tmp_path, turns, message):
    with pytest.raises(BadRow, match=message):
        read(tmp_path, {"messages": turns})


def test_control_tokens_in_any_turn_are_counted(tmp_path):
    tokenizer = Blueprint("nano").tokenizer
    row = read(tmp_path, {"messages": [{"role": "system", "content": "a </s> b"}, *TURNS]})
    (sample,), left_out = encode(tokenizer, [row], ASKED, 64, "answer")
    assert left_out.control == 1
    assert sample.ids.count(tokenizer.eos_token_id) == 3
    (as_token,), _ = encode(tokenizer, [row], get_format(tokenizer, ASKED, control_tokens="allow"), 64, "answer")
    assert as_token.ids.count(tokenizer.eos_token_id) == 4


def test_a_plain_template_refuses_several_turns(tmp_path):
    tokenizer = Blueprint("nano").tokenizer
    (tmp_path / "one").mkdir()
    one, many = read(tmp_path / "one", {"messages": TURNS}), read(tmp_path, {"messages": [*TURNS, *TURNS]})
    assert get_format(tokenizer, "qa").row(one).text == "question : 2 + 2 ? answer : 4"
    with pytest.raises(BadRow, match="has 4 turns, but 'qa' asks one question. Set the template to chat"):
        get_format(tokenizer, "qa").row(many)


def test_a_base_without_a_chat_template_says_what_to_do():
    with pytest.raises(BadSpec, match="The base has no chat template. Give one as a .jinja file"):
        get_format(Blueprint("nano").tokenizer, "chat")


def test_documents_are_packed_and_see_only_themselves(tmp_path):
    tokenizer = Blueprint("nano").tokenizer
    texts = ["anna owns 12 eggs", "ruth owns 5 eggs and 7 shells", "eggs", "anna owns 12 eggs " * 9]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    examples = get_task(f"own:{tmp_path}/text.jsonl").load("train")
    samples, left_out = encode_text(tokenizer, examples, 16)
    pieces = documents(samples)
    assert max(len(sample.ids) for sample in samples) <= 16
    assert sum(len(piece.ids) for piece in pieces) == sum(len(tokenizer(text)["input_ids"]) + 1 for text in texts)
    assert left_out.split == 1
    whole = [tokenizer.decode(piece.ids, skip_special_tokens=True) for piece in pieces]
    assert set(texts[:3]) < set(whole)
    for piece in pieces:  # all but the first token, which nothing predicts
        assert piece.labels[1:] == piece.ids[1:]
    assert sum(sample.counted for sample in samples) == sum(len(piece.ids) - 1 for piece in pieces)
    held_out, _ = encode_text(tokenizer, examples, 16, validation=2)
    assert [sample.id for sample in held_out[:2]] == [example.id for example in examples[:2]]


def test_a_preference_row_becomes_two_documents(tmp_path):
    tokenizer = Blueprint("nano").tokenizer
    row = read(tmp_path, {"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5 5"})
    (sample,), _ = encode(tokenizer, [row], "plain", 64, "answer")
    chosen, rejected = documents([sample])
    assert tokenizer.decode(chosen.ids, skip_special_tokens=True).split()[-1] == "4"
    assert [label for label in rejected.labels if label != IGNORED] == [*tokenizer("5 5")["input_ids"][1:], 2]


def test_few_shots_are_earlier_turns(tmp_path):
    tokenizer = Blueprint("nano").tokenizer
    form = get_format(tokenizer, ASKED, system="be short")
    (row,) = [read(tmp_path, {"messages": TURNS})]
    ((text, ids),) = form.prompts([row], shots=[row])
    assert text == "system : be short</s>user : 2 + 2 ?</s>assistant : 4</s>user : 2 + 2 ?</s>assistant : "
    assert ids.count(tokenizer.eos_token_id) == 4
    with pytest.raises(BadSpec, match="'qa' has no place for a system prompt"):
        get_format(tokenizer, "qa", system="be short")
