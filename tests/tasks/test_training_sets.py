"""The training sets of LLM-Adapters, from files in their format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_adapters_lab.errors import BadRow, BadSpec, DataUnavailable
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks import paper_datasets
from llm_adapters_lab.tasks.paper_datasets import SETS, TrainingSet
from llm_adapters_lab.tasks.registry import get_task

DATA = Path(__file__).parents[3] / "shared" / "data"
MATH = {"instruction": "2 + 3?", "input": "", "output": "It is 5. The answer is 5.", "answer": "5.0"}
CHOICE = {
    "instruction": "Please choose the correct answer to the question: What melts?\n\nAnswer1: ice Answer2: fog\n\n"
    "Answer format: answer1/answer2",
    "input": "",
    "output": "the correct answer is answer1",
    "answer": "answer1",
}
PLAIN = {"instruction": "Name a colour.", "input": "", "output": "Red."}
GOOD = {"math": MATH, "label": CHOICE, "text": PLAIN}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes rows as the file of a set and returns the root."""

    def write(training_set: TrainingSet, rows: object, below: str = paper_datasets.FOLDER) -> Path:
        path = tmp_path / below / training_set.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows), encoding="utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize("training_set", SETS, ids=lambda s: s.name)
@pytest.mark.parametrize("below", [".", paper_datasets.FOLDER, f"llm_adapters/{paper_datasets.FOLDER}"])
def test_every_set_is_read(training_set: TrainingSet, below: str, write: Callable[..., Path]) -> None:
    row = GOOD[training_set.answer]
    task = get_task(training_set.name)
    (example,) = task.load("train", write(training_set, [row], below))
    assert task.splits == ("train",)
    assert (example.id, example.instruction) == (f"{training_set.name}/train/0", row["instruction"])
    assert example.output == row["output"]
    assert example.answer == {"math": "5.0", "label": "answer1", "text": ""}[training_set.answer]
    assert example.options == ((("answer1", "ice"), ("answer2", "fog")) if training_set.answer == "label" else ())
    if training_set.answer != "text":
        assert task.same(str(task.extract(example.output, "lab")), example.answer)
    assert RunSpec.parse({"data": {"task": training_set.name}}).data.task == training_set.name
    with pytest.raises(BadSpec, match="has no test split"):
        RunSpec.parse({"eval": {"tasks": [training_set.name]}})


def test_a_letter_is_an_answer_of_a_math_set(write: Callable[..., Path]) -> None:
    row = {**MATH, "output": "So the answer is (B).", "answer": "B"}
    (example,) = get_task("math10k").load("train", write(SETS[0], [row]))
    assert example.answer == "B"
    task = get_task("math10k")
    assert task.extract(row["output"], "lab") == "B"
    assert task.same("B", "B")
    assert not task.same("5", "B")


def test_only_the_output_is_needed(write: Callable[..., Path]) -> None:
    rows = [{"instruction": "2 + 3?", "output": "5"}, {"instruction": "2 + 3?", "output": "5", "answer": 5.0}]
    found = get_task("math14k").load("train", write(SETS[2], rows))
    assert [row.answer for row in found] == ["", "5"]
    assert get_task("alpaca").load("train", write(SETS[5], [{**PLAIN, "output": ""}]))[0].output == ""


def test_the_real_commonsense_rows_are_read_as_a_mixture(write: Callable[..., Path]) -> None:
    rows = []
    for folder in ("boolq", "ARC-Easy", "ARC-Challenge", "openbookqa"):
        path = DATA / "llm_adapters" / "dataset" / folder / "train.json"
        if not path.is_file():
            pytest.skip(f"no real {folder} train file beside the checkout")
        rows += json.loads(path.read_text(encoding="utf-8"))
    task = get_task("commonsense170k")
    found = task.load("train", write(SETS[3], rows))
    assert len(found) == 9427 + 2251 + 1119 + 4957
    for example in found:
        assert example.answer in dict(example.options)
        assert task.extract(example.output, "lab") == example.answer


def test_without_a_root_the_set_is_downloaded(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_datasets, "RAW", str(write(SETS[0], [MATH])))
    assert len(get_task("math10k").load("train", None)) == 1


def test_other_splits_and_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="math7k has no 'test' split"):
        get_task("math7k").load("test", tmp_path)
    with pytest.raises(DataUnavailable, match=r"No ft-training_set/math_7k.json.*Looked at .*git clone"):
        get_task("math7k").load("train", tmp_path)


@pytest.mark.parametrize(
    ("training_set", "change", "message"),
    [
        (SETS[0], {"output": ""}, "field 'output' is empty"),
        (SETS[3], {"answer": "answer6"}, "field 'answer' is 'answer6'; give one of true, false, solution1"),
        (SETS[5], {"instruction": None}, "field 'instruction' is None"),
        (SETS[5], {"input": 3}, "field 'input' is 3"),
    ],
)
def test_a_damaged_row_is_named(
    training_set: TrainingSet, change: dict[str, object], message: str, write: Callable[..., Path]
) -> None:
    good = GOOD[training_set.answer]
    root = write(training_set, [good, {**good, **change}])
    with pytest.raises(BadRow, match=rf"{training_set.file}, row 2: {message}"):
        get_task(training_set.name).load("train", root)
