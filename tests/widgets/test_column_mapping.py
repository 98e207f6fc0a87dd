"""The columns of a file: what is guessed, what is chosen, what is read, and what is wrong, row by row."""

import csv
import json

import pytest

from llm_adapters_lab.tasks.custom import raw_rows
from llm_adapters_lab.tasks.registry import get_task
from widgets.forms.column_mapping import AS_NAMED, CHATS, QUESTIONS, ColumnMapping, guess, join_name, split_name

HOSTILE = "<img src=x onerror=alert(1)>"
TURNS = [{"role": "user", "content": "two plus 3"}, {"role": "assistant", "content": "5"}]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(rows, name="x.jsonl"):
    with open(name, "w", newline="") as file:
        if name.endswith(".csv"):
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return f"own:{name}"


def opened(rows, name="x.jsonl", keys=""):
    mapping, heard = ColumnMapping(), []
    mapping.observe(lambda each: heard.append(each.name))
    mapping.open(write(rows, name) + keys)
    return mapping, heard


GUESSES = [
    ([{"instruction": "a", "answer": "b"}], ""),
    (
        [{"question": "2?", "solution": 2}, {"question": "3?", "solution": 3.5}],
        "instruction=question&answer=solution&form=number",
    ),
    (
        [{"Text": str(n), "sentiment": "bad" if n % 2 else "good"} for n in range(9)],
        "instruction=Text&answer=sentiment&labels=bad|good",
    ),
    ([{"question": "?", "answer": letter} for letter in "ABC"], "instruction=question&form=letter"),
    ([{"problem": "?", "context": "c", "answer": "x"}], "instruction=problem&input=context"),
    ([{"a": "?", "b": "c"}], "instruction=a&answer=b"),
    ([{"a": "?"}], "instruction=a"),
    ([{"messages": TURNS}], ""),
    ([{"talk": TURNS, "n": 1}], "messages=talk"),
    ([{"prompt": "a", "completion": "b"}], ""),
    ([{"prompt": "a", "chosen": "b", "rejected": "c"}], ""),
    ([{"text": "a document"}], ""),
]


@pytest.mark.parametrize(("rows", "keys"), GUESSES, ids=[" ".join(rows[0]) for rows, _ in GUESSES])
def test_columns_are_guessed(rows, keys):
    name = write(rows)
    assert join_name("x.jsonl", guess(list(raw_rows(name, "train", None).values()))) == name + ("?" * bool(keys)) + keys
    mapping, heard = opened(rows)
    assert mapping.name == heard[-1] == name + ("?" * bool(keys)) + keys
    if keys != "instruction=a":  # no column for the answer
        assert len(get_task(mapping.name).load("train")) == len(rows) and "lab-mapped" in mapping.told.value


def test_a_choice_changes_the_name_and_what_is_read():
    rows = [{"a": f"ask {n}", "b": "x", "c": str(n % 2), "d": HOSTILE} for n in range(8)]
    mapping, heard = opened(rows, "x.csv", keys="?instruction=a")
    assert "Choose the column with the answer" in mapping.problem.value and not mapping.told.value
    mapping.form.value, mapping.columns["answer"].value = "number", "b"
    assert "8 of 8 rows cannot be read" in mapping.told.value and "and 4 more" in mapping.told.value
    mapping.form.value = "text"
    mapping.columns["answer"].value = "c"
    mapping.columns["input"].value = "d"
    assert heard[-1] == "own:x.csv?instruction=a&input=d&answer=c"
    assert mapping.told.value.count("lab-mapped") == 3 and "<img" not in mapping.told.value
    assert "50.0 %" in mapping.told.value  # the shares of the answers
    mapping.form.value = "label"
    assert heard[-1].endswith("answer=c&labels=0|1") and not mapping.problem.value
    mapping.labels.value = ""
    assert "labels" in mapping.problem.value and heard[-1].endswith("form=label")
    mapping.form.value = "text"
    mapping.columns["instruction"].value = ""
    assert "missing" in mapping.told.value


def test_the_keys_of_a_task_are_shown_and_kept():
    rows = [{"q": "2?", "a": "2", "key": "one", "why": "because: 2"}]
    mapping, heard = opened(rows, keys="?instruction=q&answer=a&form=number&id=key&template=qa")
    assert not heard  # it is only looked at
    assert (mapping.kind.value, mapping.columns["instruction"].value, mapping.form.value) == (QUESTIONS, "q", "number")
    mapping.columns["output"].value = "why"
    place, given = split_name(heard[-1])
    assert place == "x.jsonl" and given == {
        "id": "key",
        "template": "qa",
        "instruction": "q",
        "output": "why",
        "answer": "a",
        "form": "number",
    }


def test_kinds_of_rows():
    mapping, heard = opened([{"prompt": "a", "completion": "b"}])
    assert mapping.kind.value == AS_NAMED and mapping.columns["instruction"].layout.display == "none"
    mapping.kind.value = QUESTIONS
    mapping.columns["instruction"].value, mapping.columns["answer"].value = "prompt", "completion"
    assert heard[-1] == "own:x.jsonl?instruction=prompt&answer=completion"
    mapping, heard = opened([{"talk": TURNS}])
    assert mapping.kind.value == CHATS and "two plus 3" in mapping.told.value
    mapping.columns["messages"].value = ""
    assert mapping.name == "own:x.jsonl"


def test_faults_are_told_with_their_row():
    rows = [{"question": "?", "answer": "2"}, {"question": "", "answer": "3"}, {"question": "?", "answer": HOSTILE}]
    mapping, _ = opened(rows, keys="?instruction=question&form=number")
    assert "2 of 3 rows cannot be read" in mapping.told.value
    assert "row 2" in mapping.told.value and "row 3" in mapping.told.value and "<img" not in mapping.told.value


@pytest.mark.parametrize("content", ["", "[1, 2", "[]", "[1, 2]"])
def test_a_file_that_cannot_be_read_is_told(content):
    with open("x.json", "w") as file:
        file.write(content)
    mapping = ColumnMapping()
    mapping.open("own:x.json")
    assert "✗" in mapping.problem.value + mapping.told.value
    mapping.open("own:missing.csv")
    assert "no data file" in mapping.problem.value
