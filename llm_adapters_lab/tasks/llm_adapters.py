"""The fifteen benchmarks of LLM-Adapters, read from the files of that repository.

Each set is a JSON list of ``{instruction, input, output, answer}``. The rows come from ``<root>/<folder>/test.json``
and ``train.json``, laid out as in the original's ``dataset/``, so a clone of it serves as it stands; without a folder
the file is fetched once from GitHub and kept in the `datasets` cache.

============  =============  =====================  ======  ======  ==========================================
Name          Folder         Answer                 Train   Test    Origin and its licence
============  =============  =====================  ======  ======  ==========================================
gsm8k         gsm8k          number                 -       1,319   GSM8K (arXiv:2110.14168), MIT
svamp         SVAMP          number                 -       1,000   SVAMP (arXiv:2103.07191), MIT
aqua          AQuA           letter A to E          -       254     AQuA-RAT (arXiv:1705.04146), Apache-2.0
mawps         mawps          number                 1,898   238     MAWPS (N16-1136), split of MWPToolkit
addsub        AddSub         number                 -       395     AddSub (D14-1058)
multiarith    MultiArith     number                 -       600     MultiArith (D15-1202)
singleeq      SingleEq       number                 -       508     SingleEq (Q15-1042)
boolq         boolq          true, false            9,427   3,270   BoolQ (arXiv:1905.10044), CC BY-SA 3.0
piqa          piqa           solution1, 2           16,113  1,838   PIQA (arXiv:1911.11641)
siqa          social_i_qa    answer1 to 3           33,410  1,954   Social IQa (arXiv:1904.09728)
hellaswag     hellaswag      ending1 to 4           39,905  10,042  HellaSwag (arXiv:1905.07830), MIT
winogrande    winogrande     option1, 2             63,238  1,267   WinoGrande (arXiv:1907.10641), CC BY
arc-e         ARC-Easy       answer1 to 4, or 3, 5  2,251   2,376   ARC (arXiv:1803.05457), CC BY-SA 4.0
arc-c         ARC-Challenge  answer1 to 4, or 3, 5  1,119   1,172   ARC (arXiv:1803.05457), CC BY-SA 4.0
obqa          openbookqa     answer1 to 4           4,957   500     OpenBookQA (arXiv:1809.02789)
============  =============  =====================  ======  ======  ==========================================

The files themselves: LLM-Adapters repository, ODC-By 1.0. Where no licence stands, the origin's was not established.

What to know before comparing numbers:

- BoolQ is asked without its passage. The WinoGrande training file joins six nested subsets, so rows repeat.
- `output` of a math test row is a stored GPT-3.5 rationale, right or wrong, or empty, and no training target. So these
  sets have no training split; MAWPS has.
- A MAWPS training target is the stored equation and the stored answer: ``X=7+5`` and ``The answer is 12.`` Forty of the
  equations evaluate to something else than the answer, mostly by rounding; they are served as they stand.
- Over 80 % of AddSub, MultiArith and SingleEq, and 27 MAWPS test questions, are also in the MAWPS training file: do not
  score a model on them that has seen MAWPS or Math10K.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llm_adapters_lab.errors import BadRow, BadSpec, DataUnavailable, choices
from llm_adapters_lab.tasks import Example, Rule, Task, register
from llm_adapters_lab.tasks.extraction import label, letter, number, same_number, same_text, shortest

REPOSITORY = "https://github.com/AGI-Edgerunners/LLM-Adapters"
RAW = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/main/dataset"

NUMBER: tuple[str, ...] = ()
LETTERS = tuple("ABCDE")
ANSWERS = tuple(f"answer{i}" for i in range(1, 6))


@dataclass(frozen=True)
class Benchmark:
    """One row of the table above.

    Attributes:
        name: as written in a spec.
        folder: folder below ``dataset/``.
        labels: the allowed answers; empty for numbers.
        train: rows of the training file, None where there is none to learn from.
        test: rows of the test file.
        origin: where the questions come from.
        asks: what is asked, for the summary line.
        train_file: name of the training file.
    """

    name: str
    folder: str
    labels: tuple[str, ...]
    train: int | None
    test: int
    origin: str
    asks: str
    train_file: str = "train.json"


BENCHMARKS = (
    Benchmark("gsm8k", "gsm8k", NUMBER, None, 1319, "GSM8K, MIT", "multi-step word problem"),
    Benchmark("svamp", "SVAMP", NUMBER, None, 1000, "SVAMP, MIT", "word problem with a distractor"),
    Benchmark("aqua", "AQuA", LETTERS, None, 254, "AQuA-RAT, Apache-2.0", "algebra problem with five choices"),
    Benchmark("mawps", "mawps", NUMBER, 1898, 238, "MAWPS", "one- or two-step word problem", "trainset.json"),
    Benchmark("addsub", "AddSub", NUMBER, None, 395, "AddSub", "addition or subtraction"),
    Benchmark("multiarith", "MultiArith", NUMBER, None, 600, "MultiArith", "two-step word problem"),
    Benchmark("singleeq", "SingleEq", NUMBER, None, 508, "SingleEq", "one-equation word problem"),
    Benchmark("boolq", "boolq", ("true", "false"), 9427, 3270, "BoolQ, CC BY-SA 3.0", "yes-no question, no passage"),
    Benchmark("piqa", "piqa", ("solution1", "solution2"), 16113, 1838, "PIQA", "everyday physical goal"),
    Benchmark("siqa", "social_i_qa", ANSWERS[:3], 33410, 1954, "Social IQa", "social situation"),
    Benchmark(
        "hellaswag",
        "hellaswag",
        tuple(f"ending{i}" for i in range(1, 5)),
        39905,
        10042,
        "HellaSwag, MIT",
        "continuation of a scene",
    ),
    Benchmark("winogrande", "winogrande", ("option1", "option2"), 63238, 1267, "WinoGrande, CC BY", "fill the blank"),
    Benchmark("arc-e", "ARC-Easy", ANSWERS, 2251, 2376, "ARC, CC BY-SA 4.0", "science question"),
    Benchmark("arc-c", "ARC-Challenge", ANSWERS, 1119, 1172, "ARC, CC BY-SA 4.0", "harder science question"),
    Benchmark("obqa", "openbookqa", ANSWERS, 4957, 500, "OpenBookQA", "elementary science question"),
)


def load(benchmark: Benchmark, split: str, root: Path | None = None) -> list[Example]:
    """Read the rows of one split, in file order.

    Args:
        benchmark: the set.
        split: ``"train"`` or ``"test"``.
        root: folder that holds the dataset folders, or a parent with ``dataset/`` or ``llm_adapters/dataset/``. None:
            the folder named by the environment variable LAB_DATA, else the file on GitHub.

    Returns:
        One example a row; numbers are written in their shortest form (``12`` for ``12.0``).

    Raises:
        BadSpec: the set has no such split.
        DataUnavailable: the file was not found; the message names every place looked at.
        BadRow: the file is not a JSON list, or a row lacks a field or holds an answer the set does not allow.
    """
    if split not in _splits(benchmark):
        raise BadSpec(f"{benchmark.name} has no {split!r} split. {choices(split, _splits(benchmark))}")
    path = _find(benchmark.folder, "test.json" if split == "test" else benchmark.train_file, root)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadRow(f"{path} is not JSON: {error}. Fetch the file again from {REPOSITORY}.") from error
    if not isinstance(rows, list):
        raise BadRow(f"{path} holds a JSON {type(rows).__name__}; give a list of rows.")
    return [
        Example(f"{benchmark.name}/{split}/{index}", *_read(benchmark, split, row, f"{path}, row {index + 1}"))
        for index, row in enumerate(rows)
    ]


def _splits(benchmark: Benchmark) -> tuple[str, ...]:
    return ("test",) if benchmark.train is None else ("train", "test")


def _find(folder: str, file: str, root: Path | None) -> Path:
    """Return the path of a dataset file, fetching it where no folder is named."""
    root = root or (Path(os.environ["LAB_DATA"]) if os.environ.get("LAB_DATA") else None)
    advice = f"Run `git clone {REPOSITORY}` and set LAB_DATA, or `--set data.root=...`, to its folder."
    if root:
        places = [root / below / folder / file for below in (".", "dataset", "llm_adapters/dataset")]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise DataUnavailable(f"No {folder}/{file}. Looked at {', '.join(map(str, places))}. {advice}")
        return found
    url = f"{RAW}/{folder}/{file}"
    try:
        from datasets import DownloadManager  # type: ignore[import-untyped]

        return Path(DownloadManager().download(url))
    except Exception as error:  # the file systems behind a download share no error class
        raise DataUnavailable(
            f"No {folder}/{file}. No folder was given, LAB_DATA is not set, and {url} could not be fetched "
            f"({type(error).__name__}: {error}). {advice}"
        ) from error


def _read(benchmark: Benchmark, split: str, row: object, where: str) -> tuple[str, str, str, str]:
    """Check one row and return its instruction, input, output and answer."""
    if split == "train" and benchmark.train_file == "trainset.json":  # MAWPS: an equation in place of an output
        answer = _number(row, "ans", where)
        output = f"{_text(row, 'equation', where)}\nThe answer is {answer}."
        return _text(row, "original_text", where), "", output, answer
    answer = _text(row, "answer", where) if benchmark.labels else _number(row, "answer", where)
    if benchmark.labels and answer not in benchmark.labels:
        raise BadRow(f"{where}: field 'answer' is {answer!r}; give one of {', '.join(benchmark.labels)}.")
    output = _text(row, "output", where, empty=split == "test")
    return _text(row, "instruction", where), _text(row, "input", where, empty=True), output, answer


def _field(row: object, key: str, where: str) -> object:
    if not isinstance(row, dict):
        raise BadRow(f"{where}: a JSON {type(row).__name__}; give an object with named fields.")
    if key not in row:
        raise BadRow(f"{where}: field {key!r} is missing; the row has {', '.join(map(repr, row)) or 'none'}.")
    value: object = row[key]
    return value


def _text(row: object, key: str, where: str, *, empty: bool = False) -> str:
    value = _field(row, key, where)
    if not isinstance(value, str):
        raise BadRow(f"{where}: field {key!r} is {value!r:.60}, a {type(value).__name__}; give text.")
    if not (empty or value.strip()):
        raise BadRow(f"{where}: field {key!r} is empty; give text.")
    return value


def _number(row: object, key: str, where: str) -> str:
    value = _field(row, key, where)
    try:
        result = float(str(value).replace(",", "")) if isinstance(value, str | int | float) else math.nan
    except ValueError:  # "True" and "False" end here too
        result = math.nan
    if not math.isfinite(result):
        raise BadRow(f"{where}: field {key!r} is {value!r:.60}; give a number.")
    return shortest(result)


def _read_label(labels: tuple[str, ...], text: str, rule: Rule) -> str | None:
    return label(text, labels, rule)


def _reader(benchmark: Benchmark) -> Callable[[str, Rule], str | None]:
    """Return the function that reads an answer of this set."""
    if not benchmark.labels:
        return number
    if benchmark.labels == LETTERS:
        return letter
    # The original looks for answer1 to answer5 in every set of answers, Social IQa with its three included.
    return partial(_read_label, ANSWERS if benchmark.labels[0] in ANSWERS else benchmark.labels)


def _task(benchmark: Benchmark) -> Task:
    math_set = not benchmark.labels or benchmark.labels == LETTERS
    answer = f"answer {benchmark.labels[0]} to {benchmark.labels[-1]}" if benchmark.labels else "answer a number"
    return Task(
        name=benchmark.name,
        summary=f"{benchmark.asks}; {answer}; {benchmark.test:,} test rows of LLM-Adapters",
        load=partial(load, benchmark),
        extract=_reader(benchmark),
        same=same_text if benchmark.labels else same_number,
        labels=benchmark.labels,
        max_new_tokens=256 if math_set else 32,
        splits=_splits(benchmark),
        source=f"{benchmark.origin}; file: LLM-Adapters repository, ODC-By 1.0",
        extra={"train_rows": str(benchmark.train or 0), "test_rows": str(benchmark.test)},
    )


for _benchmark in BENCHMARKS:
    register(_task(_benchmark))
