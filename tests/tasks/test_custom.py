"""A user's file or hub data set is a task; errors name what is wrong with it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_adapters_lab.errors import BadRow, BadSpec, DataUnavailable
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks import readers
from llm_adapters_lab.tasks.registry import get_task

ROWS = [{"question": "2 + 3?", "solution": "5"}, {"question": 'say "7, 8"', "solution": "1,200"}]
COLUMNS = "?instruction=question&answer=solution&form=number"


def save(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write rows in the format of the suffix."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), path)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes rows and returns the name of the task that reads them."""

    def rows(content: object, query: str = "", name: str = "mine.json") -> str:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return f"own:{path}{query}"

    return rows


@pytest.mark.parametrize("suffix", readers.READERS)
def test_every_file_format_is_read(suffix: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"mine{suffix}", ROWS)
    task = get_task(f"own:{path}{COLUMNS}")
    for split in task.splits:
        first, second = task.load(split, None)
        assert (first.instruction, first.output, first.answer, first.input) == ("2 + 3?", "5", "5", "")
        assert (second.instruction, second.output, second.answer) == ('say "7, 8"', "1200", "1200")
        assert first.id == f"{path}/{split}/0"
    assert task.same(str(task.extract("The answer is 1200.", "lab")), second.answer)


def test_numbers_and_truth_values_are_text(rows: Callable[..., str]) -> None:
    content = [{"instruction": "2 + 3?", "output": 5.0, "input": None}, {"instruction": 7, "answer": True}]
    first, second = get_task(rows(content)).load("train", None)
    assert (first.output, first.answer, first.input) == ("5", "5", "")
    assert (second.instruction, second.output, second.answer) == ("7", "true", "true")


def test_the_answer_is_extracted_from_the_output(rows: Callable[..., str]) -> None:
    content = [{"instruction": "2 + 3?", "output": "2 + 3 = 5. The answer is 5."}]
    assert get_task(rows(content, "?form=number")).load("train", None)[0].answer == "5"
    with pytest.raises(BadRow, match=r"mine.json, row 1: field 'output' is 'none'; no number can be read"):
        get_task(rows([{**content[0], "output": "none"}], "?form=number")).load("train", None)


def test_labels_make_a_choice_task(rows: Callable[..., str]) -> None:
    task = get_task(rows([{"instruction": "Cold?", "answer": "yes"}], "?labels=yes|no"))
    (example,) = task.load("test", None)
    assert task.labels == ("yes", "no")
    assert example.options == (("yes", "yes"), ("no", "no"))
    assert task.extract("Yes, it is.", "lab") == "yes"
    with pytest.raises(BadRow, match=r"mine.json, row 1: field 'answer' is 'maybe'; give one of yes, no"):
        get_task(rows([{"instruction": "Cold?", "answer": "maybe"}], "?labels=yes|no")).load("test", None)


def test_letters_offer_what_the_question_lists(rows: Callable[..., str]) -> None:
    task = get_task(rows([{"instruction": "2 + 3? (A) 4 (B) 5", "answer": "B"}], "?form=letter"))
    (example,) = task.load("test", None)
    assert task.labels == tuple("ABCDE")
    assert example.options == (("A", "4"), ("B", "5"))


def test_free_text_is_judged_by_its_first_line() -> None:
    task = get_task("own:mine.json")
    assert task.same(str(task.extract("\n  Red  wine\nand more", "lab")), "red wine")
    assert task.extract(" \n", "lab") is None
    assert task.max_new_tokens == 64


def test_a_path_is_relative_to_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "mine.json", ROWS)
    assert len(get_task(f"own:mine.json{COLUMNS}").load("test", tmp_path)) == 2
    monkeypatch.chdir(tmp_path)
    assert len(get_task(f"own:mine.json{COLUMNS}").load("test", tmp_path / "elsewhere")) == 2


def test_an_unreachable_hub_data_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no network in tests."""
    name = "own:owner/name?config=main&test=validation&instruction=question&answer=solution"
    with pytest.raises(
        DataUnavailable, match="The split 'validation' of owner/name could not be downloaded from the hub"
    ):
        get_task(name).load("test", None)
    with pytest.raises(DataUnavailable, match="The split 'train' of owner/name"):
        get_task(name).load("train", None)


def test_a_data_set_of_the_library_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `datasets` library loads a local folder like a hub data set."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    save(tmp_path / "data" / "train.jsonl", ROWS)
    rows = readers.from_hub(str(tmp_path / "data"), None, "train")
    assert [row.content for row in rows] == ROWS
    assert rows[1].where == f"{tmp_path / 'data'} (train), row 2"
    with pytest.raises(DataUnavailable, match="The split 'test' of"):
        readers.from_hub(str(tmp_path / "data"), None, "test")


def test_given_ids_are_kept_and_must_be_unique(rows: Callable[..., str]) -> None:
    content = [{"id": i, "instruction": "Hot?", "answer": "no"} for i in (1, 2, 1)]
    task = get_task(rows(content[:2]))
    assert [e.id.rpartition("/")[2] for e in task.load("test", None)] == ["1", "2"]
    with pytest.raises(BadRow, match=r"mine.json, row 3: the id '.*/1' is also the id of .*mine.json, row 1"):
        get_task(rows(content)).load("test", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own:mine.txt", "'mine.txt' is neither a file that ends in .json, .jsonl, .csv, .parquet nor a hub id"),
        ("own:", "'' is neither a file"),
        ("own:a.json?anwser=x", "'anwser' is not a known key. Did you mean 'answer'"),
        ("own:a.json?answer", "give 'answer' once, with a value"),
        ("own:a.json?answer=x&answer=y", "give 'answer' once"),
        ("own:a.json?form=numer", "form = 'numer'. Did you mean 'number'"),
        ("own:a.json?form=label", "form = label needs labels"),
        ("own:a.json?labels=yes|yes", "all different"),
        ("own:a.json?form=number&labels=1|2", "form = label needs labels"),
        ("own:a.json?template=alpca", "Did you mean 'alpaca'"),
    ],
)
def test_a_bad_name_is_refused_with_the_spec(name: str, message: str) -> None:
    for fields in ({"data": {"task": name}}, {"eval": {"tasks": [name]}}):
        with pytest.raises(BadSpec) as caught:
            RunSpec.parse(fields)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.json", "[{", "mine.json is not JSON"),
        ("mine.json", "{}", "mine.json holds a JSON dict; give a list"),
        ("mine.json", "[]", "mine.json holds no rows"),
        ("mine.json", "[3]", "mine.json, row 1: a JSON int"),
        ("mine.jsonl", '{"instruction": "a", "answer": "b"}\n\n{', "mine.jsonl, row 3 is not JSON"),
        ("mine.jsonl", "\n", "mine.jsonl holds no rows"),
        ("mine.csv", "instruction,answer\na,b,c\n", "mine.csv, row 1: not as many values"),
        ("mine.csv", "instruction,answer\na\n", "mine.csv, row 1: not as many values"),
        ("mine.csv", "instruction,answer\n", "mine.csv holds no rows"),
        ("mine.csv", 'instruction,answer\n"a,b\n', "mine.csv cannot be read"),
        ("mine.parquet", "no parquet", "mine.parquet cannot be read"),
        ("mine.json", '[{"answer": "b"}]', "row 1: field 'instruction' is missing; the row has 'answer'"),
        ("mine.json", '[{"instruction": "a"}]', "row 1: neither an 'output' nor an 'answer'"),
        ("mine.json", '[{"instruction": " ", "answer": "b"}]', "row 1: field 'instruction' is empty"),
        ("mine.json", '[{"instruction": ["a"], "answer": "b"}]', "row 1: field 'instruction' is"),
        ("mine.json", '[{"instruction": "a", "answer": NaN}]', "row 1: field 'answer' is nan; give a number"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: str, message: str, rows: Callable[..., str]) -> None:
    form = "?form=number" if "NaN" in content else ""
    with pytest.raises(BadRow) as caught:
        get_task(rows(content, form, name)).load("test", None)
    assert message in str(caught.value)


def test_text_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_bytes("instruction,answer\n\xe9,b\n".encode("latin-1"))
    with pytest.raises(BadRow, match="mine.csv is not text in UTF-8: .* Save it as UTF-8"):
        get_task(f"own:{tmp_path}/mine.csv").load("test", None)


def test_a_given_column_must_exist(rows: Callable[..., str]) -> None:
    with pytest.raises(BadRow, match="row 1: field 'reply' is missing; the row has 'instruction', 'answer'"):
        get_task(rows([{"instruction": "a", "answer": "b"}], "?output=reply")).load("train", None)


def test_a_missing_file_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    spec = RunSpec.parse({"eval": {"tasks": f"own:{tmp_path}/none.json"}})
    with pytest.raises(DataUnavailable, match="There is no data file .*none.json"):
        read_rows(spec)


def test_a_run_trains_and_scores_on_own_rows(tmp_path: Path) -> None:
    rows = [{"question": f"Tom has {n} pens . How many pens ?", "solution": n} for n in range(12)]
    name = f"own:{save(tmp_path / 'mine.jsonl', rows)}{COLUMNS}&template=qa"
    spec = RunSpec.parse(
        {
            "base": "nano",
            "adapter": "lora",
            "data": {"task": name, "rows": 8},
            "train": {"max_steps": 1, "batch": 4},
            "eval": {"tasks": [name], "rows": 3, "max_new_tokens": 4},
        }
    )
    record = run(spec, root=tmp_path / "runs")
    assert record.summary["scores"][name]["total"] == 3
    assert [p["gold"] for p in record.predictions()] == ["0", "1", "2"]


def test_empty_cells_count_as_missing(rows: Callable[..., str]) -> None:
    content = "id,instruction,input,output,answer\n,1 + 1 ?,,,2\nb,2 + 2 ?,,It is 4.,\n"
    first, second = get_task(rows(content, name="mine.csv")).load("test", None)
    assert (first.id.rpartition("/")[2], first.input, first.output, first.answer) == ("0", "", "2", "2")
    assert (second.id.rpartition("/")[2], second.output, second.answer) == ("b", "It is 4.", "It is 4.")
    with pytest.raises(BadRow, match="row 1: field 'instruction' is empty"):
        get_task(rows("instruction,answer\n,2\n", name="mine.csv")).load("test", None)


def test_duplicate_columns_are_refused(rows: Callable[..., str]) -> None:
    with pytest.raises(BadRow, match=r"mine\.csv: the header has 'answer' more than once\. Rename or remove one"):
        get_task(rows("instruction,answer,answer\na,b,c\n", name="mine.csv")).load("test", None)


def test_labels_match_regardless_of_case_and_spacing(rows: Callable[..., str]) -> None:
    content = [{"instruction": "Cold?", "answer": " YES  sir"}, {"instruction": "Hot?", "answer": "No"}]
    found = get_task(rows(content, "?labels=yes sir|no")).load("test", None)
    assert [row.answer for row in found] == ["yes sir", "no"]
    content[1]["answer"] = "nO"
    with pytest.raises(BadRow, match="'nO'; give one of yes sir, No, no"):  # not if capitals tell labels apart
        get_task(rows(content, "?labels=yes sir|No|no")).load("test", None)


def test_labels_in_a_task_list_may_contain_commas() -> None:
    first, second = "own:a,b.csv?labels=yes, sir|no", "own:c.csv"
    for text in (f"{first},boolq, {second}", f"boolq ,{first} ,{second}"):
        tasks = RunSpec.parse({"eval": {"tasks": text}}).eval.tasks
        assert set(tasks) == {first, "boolq", second}
        assert RunSpec.parse({"eval": {"tasks": list(tasks)}}).eval.tasks == tasks
    assert RunSpec.parse({"eval": {"tasks": " boolq,,piqa,"}}).eval.tasks == ("boolq", "piqa")
    with pytest.raises(BadSpec, match="no task 'bolq'"):
        RunSpec.parse({"eval": {"tasks": "bolq,own:a.csv"}})
    with pytest.raises(BadSpec, match=r"eval\.tasks is 5; give a list"):
        RunSpec.parse({"eval": {"tasks": 5}})
