"""The benchmark files of LLM-Adapters are read completely; errors name file, row and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from llm_adapters_lab.errors import BadRow, BadSpec, DataUnavailable
from llm_adapters_lab.evaluation.statistics import chance, majority, options
from llm_adapters_lab.tasks import paper_datasets
from llm_adapters_lab.tasks.answers import ANSWERS, LETTERS, parse_options
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.paper_datasets import BENCHMARKS, Benchmark
from llm_adapters_lab.tasks.prompts import prompt
from llm_adapters_lab.tasks.registry import all_tasks, get_task

DATA = Path(__file__).parents[3] / "shared" / "data"
NAMES = ["gsm8k", "svamp", "aqua", "mathqa", "mawps", "addsub", "multiarith", "singleeq", "boolq", "piqa", "siqa"]
NAMES += ["hellaswag", "winogrande", "arc-e", "arc-c", "obqa"]
SPLITS = [(b, split) for b in BENCHMARKS for split in get_task(b.name).splits]
# The output of a math test row is a stored rationale, right or wrong.
TARGETS = [(b, split) for b, split in SPLITS if split == "train" or get_task(b.name).max_new_tokens == 32]
GOOD = {"instruction": "How many?", "input": "", "output": "The answer is 12.", "answer": "12.0"}


def real_rows(benchmark: Benchmark, split: str) -> list[Example]:
    """Return real rows, or skip if the file is not beside the checkout."""
    try:
        return get_task(benchmark.name).load(split, DATA)
    except DataUnavailable:
        pytest.skip(f"no real {benchmark.name} {split} file beside the checkout")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes rows as the file of a set and returns the root."""

    def write(content: object, folder: str = "gsm8k", file: str = "test.json") -> Path:
        path = tmp_path / folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return tmp_path

    return write


def test_all_sixteen_sets_are_registered() -> None:
    assert [b.name for b in BENCHMARKS] == NAMES
    assert set(NAMES) <= set(all_tasks())
    for name in NAMES:
        task = get_task(name)
        assert task.summary
        assert task.source
        assert task.template == "alpaca"
    assert get_task("aqua").max_new_tokens == get_task("mawps").max_new_tokens == 256
    assert get_task("boolq").max_new_tokens == 32


@pytest.mark.parametrize(("benchmark", "split"), SPLITS, ids=lambda v: v if isinstance(v, str) else v.name)
def test_real_files_are_read_whole(benchmark: Benchmark, split: str) -> None:
    task, rows = get_task(benchmark.name), real_rows(benchmark, split)
    assert len(rows) == (benchmark.test if split == "test" else benchmark.train)
    assert len({row.id for row in rows}) == len(rows)
    assert rows[-1].id == f"{benchmark.name}/{split}/{len(rows) - 1}"
    assert all(row.instruction in prompt(row, task.template) for row in rows)
    for row in rows:
        if task.labels:
            assert row.answer in options(replace(row, options=()), task.labels)
            assert tuple(label for label, _ in row.options) == options(replace(row, options=()), task.labels)
            assert all(text and text in row.instruction for _, text in row.options)
        else:
            assert row.options == ()
            assert not row.answer.endswith(".0")
            assert task.same(row.answer, str(float(row.answer)))


@pytest.mark.parametrize(("benchmark", "split"), TARGETS, ids=lambda v: v if isinstance(v, str) else v.name)
def test_training_targets_are_read_back(benchmark: Benchmark, split: str) -> None:
    task = get_task(benchmark.name)
    for row in real_rows(benchmark, split):
        for rule in ("lab", "original"):
            found = task.extract(row.output, rule)
            assert found is not None
            assert task.same(found, row.answer), (row, rule)


@pytest.mark.parametrize(
    ("labels", "instruction", "texts"),
    [
        (("true", "false"), "Is ice hot?", ["true", "false"]),
        (("solution1", "solution2"), "Go.\n\nSolution1: a b\n\nSolution2: c.\n\nAnswer format: x", ["a b", "c."]),
        (("option1", "option2"), "A _.\n\nOption1: a Option2: b Answer format: option1/option2", ["a", "b"]),
        (ANSWERS, "Q?\n\nAnswer1: a Answer2: b Answer3: c\n\nAnswer format: answer1/answer2/answer3", ["a", "b", "c"]),
        (LETTERS, "A) is? Answer Choices: (A) D (B)  (x, y)  (C) 3 (D) 4 (E) A", ["D", "(x, y)", "3", "4", "A"]),
        (
            LETTERS,
            "5 A ) ? The options: A ) 38 , B ) rs . 7 , C ) BAD , D ) 2 , E ) 1",
            ["38", "rs . 7", "BAD", "2", "1"],
        ),
        (ANSWERS, "No options.", []),
        ((), "Answer1: a Answer2: b", []),
    ],
)
def test_the_options_are_read_from_the_question(labels: tuple[str, ...], instruction: str, texts: list[str]) -> None:
    assert parse_options(instruction, labels) == tuple(zip(labels, texts, strict=False))


def test_every_question_of_mini_bool_has_both_options() -> None:
    assert {row.options for row in get_task("mini-bool").load("test", None)} == {(("true", "true"), ("false", "false"))}


def test_real_chance_and_majority() -> None:
    rows = real_rows(next(b for b in BENCHMARKS if b.name == "arc-e"), "test")
    assert chance(get_task("arc-e"), rows) == pytest.approx((2365 / 4 + 7 / 3 + 4 / 5) / 2376)
    assert majority([row.answer for row in rows]) == pytest.approx(633 / 2376)
    assert chance(get_task("aqua"), rows[:0]) is None


def test_letters_are_guessed_at_one_in_five() -> None:
    rows = real_rows(next(b for b in BENCHMARKS if b.name == "aqua"), "test")
    assert chance(get_task("aqua"), rows) == pytest.approx(0.2)


def test_numbers_take_their_shortest_form(write: Callable[..., Path]) -> None:
    answers = ["12.0", "12", 12, 12.0, "1,200.50", "-3.0", "0.625", "-0.0"]
    rows = get_task("gsm8k").load("test", write([{**GOOD, "answer": a} for a in answers]))
    assert [row.answer for row in rows] == ["12", "12", "12", "12", "1200.5", "-3", "0.625", "0"]
    assert rows[3].id == "gsm8k/test/3"


@pytest.mark.parametrize("below", [".", "dataset", "llm_adapters/dataset"])
def test_root_may_be_a_parent(write: Callable[..., Path], tmp_path: Path, below: str) -> None:
    write([GOOD], f"{below}/gsm8k")
    assert len(get_task("gsm8k").load("test", tmp_path)) == 1


def test_root_may_be_in_the_environment(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_DATA", str(write([GOOD])))
    assert len(get_task("gsm8k").load("test", None)) == 1


def test_without_a_root_the_file_is_downloaded(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAB_DATA", raising=False)
    monkeypatch.setattr(paper_datasets, "RAW", str(write([GOOD], "dataset/gsm8k")))
    assert len(get_task("gsm8k").load("test", None)) == 1


def test_a_file_is_downloaded_over_http(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The raw files are plain files on a web server; here a local one."""
    monkeypatch.delenv("LAB_DATA", raising=False)
    for switch in ("datasets.config.HF_DATASETS_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
        monkeypatch.setattr(switch, False)
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", tmp_path / "cache")
    folder = write([GOOD], "dataset/gsm8k")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(paper_datasets, "RAW", f"http://127.0.0.1:{server.server_port}")
        (example,) = get_task("gsm8k").load("test", None)
        server.shutdown()
    assert example.instruction == GOOD["instruction"]


def test_an_unreachable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAB_DATA", raising=False)
    monkeypatch.setattr(paper_datasets, "RAW", str(tmp_path / "nowhere"))
    with pytest.raises(DataUnavailable, match=r"No dataset/boolq/train.json.*nowhere.*git clone.*LAB_DATA.*data.root"):
        get_task("boolq").load("train", None)


def test_the_error_names_every_place_searched(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable) as caught:
        get_task("arc-c").load("test", tmp_path)
    for place in ("ARC-Challenge", "dataset/ARC-Challenge", "llm_adapters/dataset/ARC-Challenge"):
        assert str(tmp_path / place / "test.json") in str(caught.value)
    assert "git clone" in str(caught.value)


@pytest.mark.parametrize(("name", "split"), [("gsm8k", "train"), ("boolq", "validation")])
def test_a_missing_split_is_refused(name: str, split: str) -> None:
    with pytest.raises(BadSpec, match=f"{name} has no '{split}' split"):
        get_task(name).load(split, DATA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "field 'answer' is missing"),
        ({"output": None}, "field 'output' is missing"),
        ({"instruction": " "}, "field 'instruction' is empty"),
        ({"instruction": 7}, "field 'instruction' is 7, a int"),
        ({"input": ["x"]}, "field 'input' is"),
        ({"answer": "twelve"}, "field 'answer' is 'twelve'; give a number"),
        ({"answer": "nan"}, "field 'answer' is 'nan'; give a number"),
        ({"answer": True}, "field 'answer' is True; give a number"),
        ({"answer": ["12"]}, "field 'answer' is .*; give a number"),
    ],
)
def test_a_damaged_number_row_is_named(write: Callable[..., Path], change: dict[str, object], message: str) -> None:
    row = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(BadRow, match=rf"gsm8k.test\.json, row 2: {message}"):
        get_task("gsm8k").load("test", write([GOOD, row]))


@pytest.mark.parametrize(
    ("name", "answer"), [("boolq", "maybe"), ("siqa", "answer4"), ("arc-e", "answer6"), ("aqua", "F")]
)
def test_a_label_outside_the_set_is_named(write: Callable[..., Path], name: str, answer: str) -> None:
    benchmark = next(b for b in BENCHMARKS if b.name == name)
    rows = [{**GOOD, "answer": benchmark.labels[0]}, {**GOOD, "answer": answer}]
    with pytest.raises(BadRow, match=rf"row 2: field 'answer' is '{answer}'; give one of {benchmark.labels[0]}"):
        get_task(name).load("test", write(rows, benchmark.folder))


def test_a_training_row_needs_an_output(write: Callable[..., Path]) -> None:
    row = {**GOOD, "answer": "true", "output": ""}
    assert len(get_task("boolq").load("test", write([row], "boolq"))) == 1
    with pytest.raises(BadRow, match="row 1: field 'output' is empty"):
        get_task("boolq").load("train", write([row], "boolq", "train.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rows": []}, "holds a JSON dict; give a list"),
        ("[{", "is not JSON"),
        ([GOOD, "text"], "row 2: a JSON str; give an object"),
    ],
)
def test_a_damaged_file_is_named(write: Callable[..., Path], content: object, message: str) -> None:
    with pytest.raises(BadRow, match=rf"test\.json.* {message}"):
        get_task("gsm8k").load("test", write(content))


def test_a_mawps_training_target_is_equation_and_answer(write: Callable[..., Path]) -> None:
    row = {"id": 3, "original_text": "7 and 5 ?", "segmented_text": "7 and 5 ?", "equation": "X=7+5", "ans": 12.0}
    (example,) = get_task("mawps").load("train", write([row], "mawps", "trainset.json"))
    assert (example.instruction, example.output, example.answer) == ("7 and 5 ?", "X=7+5\nThe answer is 12.", "12")
    with pytest.raises(BadRow, match=r"trainset\.json, row 1: field 'ans' is 'x'"):
        get_task("mawps").load("train", write([{**row, "ans": "x"}], "mawps", "trainset.json"))
