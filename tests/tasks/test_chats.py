"""Rows of chats, preferences and documents: every form is read, and what cannot be is named with row and turn."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from llm_adapters_lab.errors import BadRow, BadSpec
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.models.loading import load_base
from llm_adapters_lab.tasks.encoding import encode, encode_text
from llm_adapters_lab.tasks.formats import get_format
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import IGNORED, documents
from llm_adapters_lab.training.loss import FastPaths, Objective

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
    asked = read(tmp_path, {"instruction": "Add.", "input": "2, 2", "chosen": "4", "rejected": "5"})
    assert (asked.instruction, asked.input, asked.output, asked.rejected) == ("Add.", "2, 2", "4", "5")
    unlearnt = read(tmp_path, {"messages": [TURNS[0], {**TURNS[1], "train": False}]})
    assert unlearnt.messages[1]["weight"] == 0
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
        ([{**TURNS[0], "name": "\ud800"}], "turn 1 holds an unpaired surrogate"),
        ([{"role": "user", "content": 0}], r"turn 1 \(user\) holds 0, a int; give text"),
        ([TURNS[0], {**TURNS[1], "weight": "0"}], "turn 2 has the weight '0'; give 1, or 0"),
        ([TURNS[0], {**TURNS[1], "weight": 0.5}], "turn 2 has the weight 0.5; give 1, or 0"),
        (
            [TURNS[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{a"}]}],
            "calls f with '{a'; give",
        ),
        ([TURNS[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": 5}]}], "calls f with 5; give"),
    ],
)
def test_malformed_turns_are_named(tmp_path, turns, message):
    with pytest.raises(BadRow, match=message):
        read(tmp_path, {"messages": turns})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": TURNS, "tools": [{"name": "\ud800"}]}, "field 'tools' holds an unpaired surrogate"),
        ({"prompt": "a", "completion": ""}, "field 'completion' is empty; give text"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "field 'rejected' is None"),
        ({"messages": None}, "field 'messages' is None; give a list of turns"),
        ({"messages": TURNS, "system": 5}, "field 'system' is 5, a int; give text"),
    ],
)
def test_malformed_columns_are_named(tmp_path, row, message):
    with pytest.raises(BadRow, match=message):
        read(tmp_path, row)


def test_a_column_with_a_system_prompt_is_its_first_turn(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    assert read(tmp_path, {"conversations": SHARE, "system": "Be brief."}).messages == (system, *TURNS)
    assert read(tmp_path, {"messages": [system, *TURNS], "system": "other"}).messages == (system, *TURNS)
    assert read(tmp_path, {"messages": TURNS, "system": ""}).messages == tuple(TURNS)


def test_a_prompt_that_both_answers_repeat_stands_there_once(tmp_path):
    other = [TURNS[0], {"role": "assistant", "content": "5"}]
    for prompt in ("2 + 2 ?", TURNS[:1]):
        row = read(tmp_path, {"prompt": prompt, "chosen": TURNS, "rejected": other})
        assert (row.messages, row.rejected) == (tuple(TURNS), "5")
        assert read(tmp_path, {"prompt": prompt, "completion": TURNS[1:]}).messages == tuple(TURNS)


def test_calls_in_the_older_forms_are_read(tmp_path):
    call = {"name": "add", "arguments": '{"a": 2}'}
    expected = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    for said in ({"content": None}, {"content": "I add."}):
        turn = read(tmp_path, {"messages": [TURNS[0], {"role": "assistant", **said, "function_call": call}]}).messages[
            1
        ]
        assert turn == {"role": "assistant", "content": said["content"] or "", "tool_calls": [expected]}
    several = {"from": "function_call", "value": json.dumps([call, call])}
    assert read(tmp_path, {"conversations": [SHARE[0], several]}).messages[1]["tool_calls"] == [expected, expected]


def test_rows_with_nothing_to_learn_are_dropped_and_counted(tmp_path):
    tokenizer, quiet = Blueprint("nano").tokenizer, {**TURNS[1], "weight": 0}
    (tmp_path / "one").mkdir()
    silent = read(tmp_path / "one", {"messages": [TURNS[0], quiet]})
    rows = [silent, read(tmp_path, {"messages": [TURNS[0], quiet, *TURNS]})]
    (sample,), left_out = encode(tokenizer, rows, ASKED, 64, "answer")
    assert (sample.id, left_out.empty) == (rows[1].id, 1)
    with pytest.raises(BadSpec, match="of 1, 1 have no output to learn"):
        encode(tokenizer, rows[:1], ASKED, 64, "answer")


def test_chats_that_are_too_long_are_dropped_without_a_proof_of_every_turn(tmp_path, monkeypatch):
    tokenizer = Blueprint("nano").tokenizer
    (tmp_path / "one").mkdir()
    rows = [read(tmp_path / "one", {"messages": TURNS * 500}), read(tmp_path, {"messages": TURNS})]
    form, rendered = get_format(tokenizer, ASKED), []
    render = form._render
    monkeypatch.setattr(form, "_render", lambda turns, *args: rendered.append(len(turns)) or render(turns, *args))
    (sample,), left_out = encode(tokenizer, rows, form, 64, "answer")
    assert (sample.id, left_out.too_long) == (rows[1].id, 1)
    assert rendered.count(1000) == 1


def test_control_tokens_in_any_turn_are_counted(tmp_path):
    tokenizer = Blueprint("nano").tokenizer
    row = read(tmp_path, {"messages": [{"role": "system", "content": "a </s> b"}, *TURNS]})
    (sample,), left_out = encode(tokenizer, [row], ASKED, 64, "answer")
    assert left_out.control == 1
    assert sample.ids.count(tokenizer.eos_token_id) == 3
    (as_token,), told = encode(tokenizer, [row], get_format(tokenizer, ASKED, control_tokens="allow"), 64, "answer")
    assert as_token.ids.count(tokenizer.eos_token_id) == 4
    assert (told.control, told.allowed, "read as a token" in told.text) == (0, 1, True)


def test_a_plain_template_refuses_several_turns(tmp_path):
    tokenizer = Blueprint("nano").tokenizer
    (tmp_path / "one").mkdir()
    one, many = read(tmp_path / "one", {"messages": TURNS}), read(tmp_path, {"messages": [*TURNS, *TURNS]})
    assert get_format(tokenizer, "qa").row(one).text == "question : 2 + 2 ? answer : 4"
    with pytest.raises(BadRow, match=r"has 4 turns \(user, assistant, user, assistant\), but 'qa' asks one question"):
        get_format(tokenizer, "qa").row(many)
    (tmp_path / "two").mkdir()
    ruled = read(tmp_path / "two", {"messages": [{"role": "system", "content": "rule"}, TURNS[1]]})
    with pytest.raises(BadRow, match=r"has 2 turns \(system, assistant\), but 'qa' asks one question"):
        get_format(tokenizer, "qa").row(ruled)


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


@pytest.mark.parametrize("name", ["nano", "tiny:gpt2"])  # rotary and learned positions
@pytest.mark.parametrize(
    "paths", [(), (True,), (True, True), (True, True, True)], ids=["plain", "head", "packed", "shared"]
)
def test_packed_documents_have_the_loss_of_documents_one_by_one(tmp_path, name, paths):
    tokenizer, model = Blueprint("nano").tokenizer, load_base(name).model.float().eval()
    size = model.config.vocab_size  # that of the tiny model is smaller
    texts = ["anna owns 12 eggs", "anna owns 5 eggs and 7 shells", "eggs", "anna owns 12 eggs " * 5]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    samples, _ = encode_text(tokenizer, get_task(f"own:{tmp_path}/text.jsonl").load("train"), 16)
    assert any(sample.starts for sample in samples)
    for i, sample in enumerate(samples):
        ids, labels = (tuple(n if n == IGNORED else n % size for n in part) for part in (sample.ids, sample.labels))
        samples[i] = replace(sample, ids=ids, labels=labels)
    expected = 0.0
    for piece in documents(samples):
        ids = torch.tensor([piece.ids])
        expected += cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
    with Objective(model, FastPaths(*paths)).loss(model, samples) as loss:
        assert loss.item() == pytest.approx(expected, rel=1e-5)


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
