"""Official releases are converted to the rows of LLM-Adapters, character by character."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llm_adapters_lab.errors import BadRow, BadSpec, DataUnavailable
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.paper_datasets import RELEASES
from llm_adapters_lab.tasks.readers import Row
from llm_adapters_lab.tasks.registry import get_task

DATA = Path(__file__).parents[3] / "shared" / "data"
WORD = {"arc-e": "Answer", "arc-c": "Answer", "obqa": "Answer", "siqa": "Answer", "piqa": "Solution"}
WORD |= {"hellaswag": "Ending", "winogrande": "Option"}
HERE = [
    (name, split)
    for name in ("arc-e", "arc-c", "obqa", "boolq", "piqa", "siqa", "hellaswag", "winogrande", "aqua", "mathqa")
    for split in get_task(name).splits
]

# An invented row of each release, and its conversion.
ROWS: dict[str, tuple[dict[str, object], str, str, str]] = {
    "gsm8k": (
        {"question": "Tom has 3 pens and buys 1,497 more?", "answer": "He has <<3+1497=1500>>1500 pens.\n#### 1,500"},
        "Tom has 3 pens and buys 1,497 more?",
        "He has 1500 pens.\nThe answer is 1500.",
        "1500",
    ),
    "aqua": (
        {
            "question": " 2+3? ",
            "options": ["A)4", "B)(5)", "C)6", "D)7", "E)8"],
            "rationale": "It is 5.",
            "correct": "B",
        },
        "2+3? Answer Choices: (A) 4 (B)  (5)  (C) 6 (D) 7 (E) 8",
        "It is 5.\nThe answer is B.",
        "B",
    ),
    "mathqa": (
        {
            "Problem": "what is 2 + 3 ?",
            "options": "a ) 4 , b ) bad 5 , c ) 6 , d ) 7 , e ) none",
            "Rationale": "5",
            "correct": "b",
        },
        "what is 2 + 3 ? The options: A ) 4 , B ) bad 5 , C ) 6 , D ) 7 , E ) none",
        "5\nThe answer is B.",
        "B",
    ),
    "boolq": (
        {"question": "is ice cold", "passage": "Ice is cold.", "answer": True},
        "Please answer the following question with true or false, question: is ice cold?\n\nAnswer format: true/false",
        "the correct answer is true",
        "true",
    ),
    "piqa": (
        {"goal": "Open a jar.", "sol1": "Kick it.", "sol2": "Turn the lid.", "label": 1},
        "Please choose the correct solution to the question: Open a jar.\n\nSolution1: Kick it.\n\n"
        "Solution2: Turn the lid.\n\nAnswer format: solution1/solution2",
        "the correct answer is solution2",
        "solution2",
    ),
    "siqa": (
        {"context": "Al fell.", "question": "Why?", "answerA": "ice", "answerB": "joy", "answerC": "tea", "label": "1"},
        "Please choose the correct answer to the question: Al fell. Why?\n\nAnswer1: ice Answer2: joy Answer3: tea"
        "\n\nAnswer format: answer1/answer2/answer3",
        "the correct answer is answer1",
        "answer1",
    ),
    "hellaswag": (
        {
            "activity_label": "Cooking",
            "ctx": "A man boils",
            "endings": ["an egg.", "a car.", "sky.", "it."],
            "label": "3",
        },
        "Please choose the correct ending to complete the given sentence: Cooking: A man boils\n\nEnding1: an egg. "
        "Ending2: a car. Ending3: sky. Ending4: it.\n\nAnswer format: ending1/ending2/ending3/ending4",
        "the correct answer is ending4",
        "ending4",
    ),
    "winogrande": (
        {"sentence": "Ann thanked Eve as _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"},
        "Please choose the correct answer to fill in the blank to complete the given sentence: Ann thanked Eve as _ "
        "had helped.\n\nOption1: Ann Option2: Eve Answer format: option1/option2",
        "the correct answer is option2",
        "option2",
    ),
    "arc-e": (
        {
            "question": "What melts?",
            "choices": {"text": ["ice", "fog", "air"], "label": ["1", "2", "3"]},
            "answerKey": "1",
        },
        "Please choose the correct answer to the question: What melts?\n\nAnswer1: ice Answer2: fog Answer3: air\n\n"
        "Answer format: answer1/answer2/answer3",
        "the correct answer is answer1",
        "answer1",
    ),
    "obqa": (
        {"question_stem": "Ice is", "choices": {"text": ["hot", "cold"], "label": ["A", "B"]}, "answerKey": "B"},
        "Please choose the correct answer to the question: Ice is\n\nAnswer1: hot Answer2: cold\n\n"
        "Answer format: answer1/answer2",
        "the correct answer is answer2",
        "answer2",
    ),
}
ROWS["arc-c"] = ROWS["arc-e"]


def stored(name: str, split: str) -> list[Example]:
    """Return the rows of LLM-Adapters, or skip if they are not beside the checkout."""
    try:
        return get_task(name).load(split, DATA)
    except DataUnavailable:
        pytest.skip(f"no real {name} {split} file beside the checkout")


def official_gsm8k(split: str, name: str = "gsm8k-official") -> list[Example]:
    if not (DATA / "gsm8k_official" / f"{split}.jsonl").is_file():
        pytest.skip("no official GSM8K file beside the checkout")
    return get_task(name).load(split, DATA)


def published(name: str, row: Example) -> dict[str, object]:
    """Invert the conversion: return the published columns of a row of LLM-Adapters."""
    body = row.instruction.partition(": ")[2]
    if name == "boolq":
        question = body.removeprefix("question: ").removesuffix("?\n\nAnswer format: true/false")
        return {"question": question, "answer": row.answer == "true"}
    if name == "aqua":
        question, _, listed = row.instruction.partition(" Answer Choices:")
        parts = re.split(r" \(([A-E])\) ", listed)[1:]
        texts = [text.replace(" (", "(").replace(") ", ")") for text in parts[1::2]]
        options = [f"{letter}){text}" for letter, text in zip(parts[::2], texts, strict=True)]
        return {"question": question, "options": options, "rationale": "", "correct": row.answer}
    question, _, listed = body.partition(f"\n\n{WORD[name]}1: ")
    listed = re.split(r"\s+Answer format:", listed)[0]
    texts = re.split(rf"(?: |\n\n){WORD[name]}[2-9]: ", listed)
    gold = int(row.answer[-1]) - 1
    if name in ("arc-e", "arc-c", "obqa"):
        keys = list("ABCDE"[: len(texts)])
        stem = "question_stem" if name == "obqa" else "question"
        return {stem: question, "choices": {"text": texts, "label": keys}, "answerKey": keys[gold]}
    if name == "piqa":
        return {"goal": question, "sol1": texts[0], "sol2": texts[1], "label": gold}
    if name == "winogrande":
        return {"sentence": question, "option1": texts[0], "option2": texts[1], "answer": str(gold + 1)}
    context, _, rest = question.partition(" ")
    if name == "siqa":
        answers = {f"answer{letter}": text for letter, text in zip("ABC", texts, strict=True)}
        return {"context": context, "question": rest, "label": str(gold + 1), **answers}
    activity, _, ctx = question.partition(": ")
    return {"activity_label": activity, "ctx": ctx, "endings": texts, "label": str(gold)}


@pytest.mark.parametrize("name", RELEASES)
def test_a_published_row_is_converted(name: str) -> None:
    row, instruction, output, answer = ROWS[name]
    parts = RELEASES[name].convert(Row(row, "row 1"))
    assert (parts.instruction, parts.output, parts.answer) == (instruction, output, answer)
    labels = get_task(name).labels
    if labels:
        assert answer in dict(parts.options)
        assert all(label in labels for label, _ in parts.options)


@pytest.mark.parametrize(("name", "split"), HERE)
def test_conversion_of_published_columns_gives_the_stored_rows(name: str, split: str) -> None:
    """Not all published files are here, so the columns are recovered from the rows of LLM-Adapters."""
    rows = stored(name, split)
    if name == "mathqa":
        pytest.skip("the conversion of mathqa cannot be undone")
    for row in rows:
        parts = RELEASES[name].convert(Row(published(name, row), row.id))
        assert parts.instruction == row.instruction
        assert (parts.answer, parts.options) == (row.answer, row.options)
        assert name == "aqua" or parts.output == row.output


def test_gsm8k_is_the_same_from_both_places() -> None:
    official = {row.instruction: row.answer for row in official_gsm8k("test")}
    adapters = {row.instruction: row.answer for row in stored("gsm8k", "test")}
    assert official == adapters
    assert len(official) == 1319


def test_the_gsm8k_training_split() -> None:
    task, rows = get_task("gsm8k-official"), official_gsm8k("train")
    assert len(rows) == 7473
    short = official_gsm8k("train", "gsm8k-official-short")
    for row, brief in zip(rows, short, strict=True):
        assert not re.search("<<|>>|####", row.output)
        assert row.output.endswith(f"\nThe answer is {row.answer}.")
        for rule in ("lab", "original"):
            assert task.same(str(task.extract(row.output, rule)), row.answer)
        assert (brief.instruction, brief.output) == (row.instruction, f"The answer is {row.answer}.")


@pytest.mark.parametrize("name", RELEASES)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_downloaded_release_is_read(name: str, suffix: str, tmp_path: Path) -> None:
    (row, instruction, _, answer), release = ROWS[name], RELEASES[name]
    name = f"{name}-official"
    folder = tmp_path / release.hub / (release.config or "data")
    for split, theirs in release.splits.items():
        write(folder / f"{theirs}-00000-of-00001{suffix}", [row] * (1 if split == "test" else 2))
    if release.config:  # another configuration, and a split with a longer name
        for theirs in release.splits.values():
            write(tmp_path / release.hub / "other" / f"{theirs}-00000-of-00001{suffix}", [row] * 9)
            write(folder / f"{theirs}ing{suffix}", [row] * 9)
    (example,) = get_task(name).load("test", tmp_path)
    assert (example.id, example.instruction, example.answer) == (f"{name}/test/0", instruction, answer)
    assert len(get_task(name).load("train", tmp_path)) == 2


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def test_without_files_the_error_names_the_hub(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"'test' of allenai/ai2_arc could not be downloaded from the hub"):
        get_task("arc-e-official").load("test", tmp_path)


def test_a_missing_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="gsm8k-official has no 'validation' split"):
        get_task("gsm8k-official").load("validation", tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gsm8k", {"answer": "5 pens"}, "does not end in '####' and a number"),
        ("gsm8k", {"question": None}, "'question' is None"),
        ("aqua", {"correct": "F"}, "'correct' is 'F'; give one of A, B"),
        ("aqua", {"options": "A)1"}, "'options' is 'A.1'; give a list of texts"),
        ("boolq", {"answer": "maybe"}, "'answer' is 'maybe'; give one of true, false"),
        ("piqa", {"label": -1}, "'label' is -1; give one of 0, 1"),
        ("piqa", {"label": True}, "'label' is True; give one of 0, 1"),
        ("siqa", {"label": "0"}, "'label' is '0'; give one of 1, 2, 3"),
        ("hellaswag", {"endings": ["one"]}, "'endings' is"),
        ("winogrande", {"answer": ""}, "'answer' is ''; give one of 1, 2"),
        ("arc-e", {"answerKey": "4"}, "'answerKey' is '4'; give one of 1, 2, 3"),
        ("arc-c", {"choices": None}, "a JSON NoneType; give an object"),
    ],
)
def test_a_damaged_row_is_named(name: str, change: dict[str, object], message: str) -> None:
    with pytest.raises(BadRow, match=f"^file, row 3: .*{message}"):
        RELEASES[name].convert(Row({**ROWS[name][0], **change}, "file, row 3"))


def test_a_missing_column_is_named() -> None:
    with pytest.raises(BadRow, match="row 1: field 'goal' is missing; the row has 'label'"):
        RELEASES["piqa"].convert(Row({"label": 0}, "row 1"))


def test_options_keep_their_order() -> None:
    parts = RELEASES["obqa"].convert(Row(ROWS["obqa"][0], "row 1"))
    assert parts.options == (("answer1", "hot"), ("answer2", "cold"))
