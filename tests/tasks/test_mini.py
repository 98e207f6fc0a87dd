"""The embedded tasks, the corpus and the packaged model folder."""

from __future__ import annotations

import hashlib
import re
from itertools import islice, pairwise
from pathlib import Path

import corpus
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoTokenizer

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models.source import FOLDERS
from llm_adapters_lab.models.source import NANO as FOLDER
from llm_adapters_lab.tasks import mini, mini_phrases
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.prompts import prompt, target
from llm_adapters_lab.tasks.registry import get_task

NUMBER_TASKS = [name for name in mini.ROWS if name != "mini-bool"]
SIGNS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], list[Example]]:
    """Every row of every embedded task."""
    return {(name, split): get_task(name).load(split, None) for name in mini.ROWS for split in ("train", "test")}


@pytest.fixture(scope="module")
def tokenizer():
    """The tokenizer of `nano`, as a user gets it."""
    return AutoTokenizer.from_pretrained(FOLDER)


def steps_of(output: str) -> list[tuple[int, str, int, int]]:
    """Parse ``12 + 7 = 19 , 19 - 4 = 15``."""
    found = [re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", part) for part in output.split(" , ")]
    assert all(found), output
    return [(int(m[1]), m[2], int(m[3]), int(m[4])) for m in found]


def forms_of(text: str) -> list[str]:
    """Return sentences with names, objects, containers and numbers blanked out."""
    units = [word for pair in mini_phrases.UNITS for word in pair]
    blank = {"NAME": mini_phrases.NAMES, "OBJECT": mini_phrases.OBJECTS, "UNIT": units}
    for mark, known in blank.items():
        text = re.sub(rf"\b({'|'.join(known)})\b", mark, text)
    text = re.sub(r"\d+", "N", text)
    return [part.strip() for part in re.split(r"(?<=[.?])", text) if part.strip()]


def test_sizes_ids_and_splits(rows) -> None:
    for (name, split), examples in rows.items():
        assert len(examples) == (4000 if split == "train" else 200)
        assert len({e.instruction for e in examples}) == len(examples)
        assert examples[7].id == f"{name}/{split}/7"
    assert len(get_task("mini-math").load("train", None)) == 4000
    with pytest.raises(BadSpec, match="mini-math.*'test'"):
        get_task("mini-math").load("test", None)
    with pytest.raises(BadSpec, match="'dev'"):
        get_task("mini-bool").load("dev", None)


def test_rows_are_the_same_everywhere(rows) -> None:
    assert get_task("mini-multi").load("test", Path("ignored")) == rows["mini-multi", "test"]
    every = "\n".join(f"{e.id}|{e.instruction}|{e.output}" for examples in rows.values() for e in examples)
    assert hashlib.sha256(every.encode()).hexdigest()[:16] == "2aa38014fd1911a6"


def test_the_mix_holds_every_task_and_no_test_question(rows) -> None:
    mix = get_task("mini-math").load("train", None)
    kinds = [e.id.split("/")[0] for e in mix]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == dict.fromkeys(mini.ROWS, 800)
    assert len(set(kinds[:50])) == 5
    tested = {e.instruction for name in mini.ROWS for e in rows[name, "test"]}
    assert not tested & {e.instruction for e in mix}


def test_train_and_test_share_no_form_name_object_or_pair(rows) -> None:
    for attribute in (mini_phrases.NAMES, mini_phrases.OBJECTS, mini_phrases.UNITS):
        flat = [str(word) for word in attribute]
        used = {split: set() for split in ("train", "test")}
        for (_, split), examples in rows.items():
            words = {word for e in examples for word in e.instruction.split()}
            used[split] |= {entry for entry, word in zip(attribute, flat, strict=True) if words & {*_words(entry)}}
        assert used["train"] and used["test"] and not used["train"] & used["test"]
    forms = {split: set() for split in ("train", "test")}
    pairs = {split: set() for split in ("train", "test")}
    for (name, split), examples in rows.items():
        for e in examples:
            forms[split] |= {(name, form) for form in forms_of(e.instruction)}
            if name == "mini-bool":
                pairs[split].add(tuple(sorted(int(n) for n in re.findall(r"\d+", e.instruction))))
                continue
            for a, sign, b, r in steps_of(e.output):
                pairs[split].add(tuple(sorted((b, r) if sign == "/" else (a, b))))
    assert not pairs["train"] & pairs["test"]
    assert not {form for _, form in forms["train"]} & {form for _, form in forms["test"]}
    assert min(len(found) for found in forms.values()) > 20


def _words(entry: str | tuple[str, str]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry


def test_every_digit_is_seen_in_training() -> None:
    digits = set("".join(e.instruction + e.output for e in get_task("mini-math").load("train", None)))
    assert set("0123456789") <= digits


@pytest.mark.parametrize("name", NUMBER_TASKS)
def test_every_number_answer_is_right(rows, name) -> None:
    for e in rows[name, "train"] + rows[name, "test"]:
        steps = steps_of(e.output)
        for a, sign, b, r in steps:
            assert SIGNS[sign](a, b) == r
            assert sign != "/" or a % b == 0
        assert all(before[3] == after[0] for before, after in pairwise(steps))
        assert str(steps[-1][3]) == e.answer
        said = [int(n) for n in re.findall(r"\d+", e.instruction)]
        needed = [steps[0][0], *(step[2] for step in steps)]
        for number in needed:
            said.remove(number)
        assert len(said) == (name == "mini-distract")


def test_every_truth_value_is_right(rows) -> None:
    for e in rows["mini-bool", "train"] + rows["mini-bool", "test"]:
        first, second = (int(n) for n in re.findall(r"\d+", e.instruction))
        owners = [w for w in e.instruction.split() if w in mini_phrases.NAMES][:2]
        fewer = "fewer" in e.instruction
        claimed = re.split("says that|thinks that|false that|say that", e.instruction)[1].split()
        assert [w for w in claimed if w in mini_phrases.NAMES] == owners
        assert e.answer == str((first < second) if fewer else (first > second)).lower()
        assert e.output == f"{first} is {'more' if first > second else 'less'} than {second} , {e.answer}"
    for split in ("train", "test"):
        held = sum(e.answer == "true" for e in rows["mini-bool", split]) / len(rows["mini-bool", split])
        assert 0.4 < held < 0.6


@given(st.integers(0, 999), st.integers(0, 999))
def test_the_last_number_is_the_answer(a, b) -> None:
    extract = get_task("mini-addsub").extract
    assert extract(f" {a} + {b} = {a + b}", "lab") == str(a + b)
    assert extract(f"{a} + {b} = {a + b} .", "original") == str(a + b)
    assert extract("no idea", "lab") is None


def test_the_first_truth_value_is_the_answer() -> None:
    task = get_task("mini-bool")
    assert task.extract(" true . false", "lab") == "true" and task.extract("It is False.", "lab") == "false"
    assert task.extract("untrue", "lab") is None
    assert task.same("true", "true") and not task.same("true", "false")
    assert get_task("mini-math").extract("false", "lab") == "false"


def test_the_corpus_never_answers_a_question() -> None:
    texts = list(islice(corpus.documents(0), 5000))
    assert texts == list(islice(corpus.documents(0), 5000)) != list(islice(corpus.documents(1), 5000))
    whole = "\n".join(texts)
    assert "question :" not in whole and "answer :" not in whole
    for word in ("question", "answer", "true", "false"):
        assert re.search(rf"\b{word}\b", whole)
    # What follows a question mark in a document never holds a number, nor a verdict.
    assert not re.search(r"\?.*(\d|true|false)", whole)


def test_rows_have_no_unknown_tokens_and_round_trip(rows, tokenizer) -> None:
    unknown = tokenizer.unk_token_id
    spelt = {at for piece, at in tokenizer.get_vocab().items() if re.fullmatch(r"##[a-z]", piece)}
    for (name, _), examples in rows.items():
        for e in examples[:400]:
            text = prompt(e, get_task(name).template) + target(e, "qa")
            ids = tokenizer(text)["input_ids"]
            assert unknown not in ids and not spelt & set(ids)
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


@given(st.text(max_size=40))
def test_any_text_encodes(text) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer(text)["input_ids"][0] == tokenizer.bos_token_id


def test_tokens_and_numbers(tokenizer) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("Tom has 19 apples .")["input_ids"]) == (
        ["<s>", "tom", "has", "1", "##9", "apples", "."]
    )
    assert tokenizer.decode(tokenizer("12 + 7 = 19", add_special_tokens=False)["input_ids"]) == "12 + 7 = 19"
    assert tokenizer.decode(tokenizer("do lions purr?", add_special_tokens=False)["input_ids"]) == "do lions purr ?"
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert special == (0, 1, 2, 3)


@pytest.mark.parametrize("name", ("nano", "nano-moe"))
def test_the_card_names_these_weights(name: str) -> None:
    card = (FOLDERS[name] / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256((FOLDERS[name] / "model.safetensors").read_bytes()).hexdigest() in card
    assert f"# {name}\n" in card and "license: apache-2.0\n" in card


@pytest.mark.parametrize(("name", "most"), [("nano", 8_000_000), ("nano-moe", 3_000_000)])
def test_the_folder_is_small_and_complete(name: str, most: int) -> None:
    files = {path.name: path.stat().st_size for path in FOLDERS[name].iterdir() if path.is_file()}
    assert sum(files.values()) <= most
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (FOLDERS[name] / file).read_bytes() == (FOLDER / file).read_bytes()
    with safe_open(FOLDERS[name] / "model.safetensors", "pt") as weights:
        count = sum(weights.get_tensor(key).numel() for key in weights.keys())  # noqa: SIM118
    assert 1_000_000 <= count <= 3_000_000
