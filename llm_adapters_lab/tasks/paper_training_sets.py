"""The training sets of LLM-Adapters, read from the folder ``ft-training_set/`` of that repository.

Each is a JSON list of ``{instruction, input, output, answer}``; they have a train split alone. A clone of the
repository serves as it stands; without a folder the file is fetched once from GitHub.

===============  ========================  ============  =====================================================
Name             File                      Rows          What it holds
===============  ========================  ============  =====================================================
math10k          math_10k.json             about 9,920   GSM8K, MAWPS and 1,000 AQuA questions; rationales of
                                                         ChatGPT, those with a wrong result dropped
math7k           math_7k.json              about 7,000   math10k without MAWPS
math14k          math_14k.json             about 14,000  math7k, with rationales of ChatGPT and of GPT-4
commonsense170k  commonsense_170k.json     170,420       the eight commonsense training files in a row
commonsense15k   commonsense_15k.json      about 15,000  a sample of it, meant for trying things out
alpaca           alpaca_data_cleaned.json  about 52,000  Alpaca instructions, cleaned; no short answers
===============  ========================  ============  =====================================================

Licence of the files: LLM-Adapters repository, ODC-By 1.0; of the questions: `llm_adapters_lab.tasks.paper_benchmarks`. The
Alpaca texts are CC BY-NC 4.0.

How a row looks, made up but for the form:

- math: ``Tom has 3 pens and buys 4. How many has he?`` → ``3 + 4 = 7. The answer is 7.``, answer ``7``
- commonsense: ``Please choose the correct answer to the question: ...`` → ``the correct answer is answer2``
- alpaca: ``Name three colours.`` → ``Red, green and blue.``, answer empty

MAWPS is made of AddSub, MultiArith, SingleEq and others: who learns math10k must not be scored on these three. The
commonsense files hold the WinoGrande rows up to six times.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.tasks import readers
from llm_adapters_lab.tasks.answers import ANSWERS, TRUTH, Form, form
from llm_adapters_lab.tasks.base import Example, Rule, Task, register_task
from llm_adapters_lab.tasks.extraction import letter, number, same_number, same_text
from llm_adapters_lab.tasks.options import offered
from llm_adapters_lab.tasks.paper_benchmarks import RAW, REPOSITORY

FOLDER = "ft-training_set"
FAMILIES = (
    TRUTH,
    ("solution1", "solution2"),
    ANSWERS,
    tuple(f"ending{i}" for i in range(1, 5)),
    ("option1", "option2"),
)
"""The labels of the commonsense sets, one tuple for each kind of question."""
COMMONSENSE = tuple(name for family in FAMILIES for name in family)
FAMILY = {name: family for family in FAMILIES for name in family}


@dataclass(frozen=True)
class TrainingSet:
    """One row of the table above.

    Attributes:
        name: as written in a spec.
        file: name of the file.
        rows: how many there are.
        holds: what the rows are, for the summary line.
        answer: ``"math"``, ``"label"`` or ``"text"``.
        source: origin and licence.
    """

    name: str
    file: str
    rows: str
    holds: str
    answer: str
    source: str = "file: LLM-Adapters repository, ODC-By 1.0"


SETS = (
    TrainingSet("math10k", "math_10k.json", "about 9,920", "GSM8K, MAWPS and AQuA with rationales", "math"),
    TrainingSet("math7k", "math_7k.json", "about 7,000", "GSM8K and AQuA with rationales", "math"),
    TrainingSet("math14k", "math_14k.json", "about 14,000", "math7k with two rationales a question", "math"),
    TrainingSet("commonsense170k", "commonsense_170k.json", "170,420", "the eight commonsense sets", "label"),
    TrainingSet("commonsense15k", "commonsense_15k.json", "about 15,000", "a sample of commonsense170k", "label"),
    TrainingSet(
        "alpaca",
        "alpaca_data_cleaned.json",
        "about 52,000",
        "instructions of Alpaca, cleaned",
        "text",
        "Alpaca, CC BY-NC 4.0; file: LLM-Adapters repository, ODC-By 1.0",
    ),
)


def load(training_set: TrainingSet, split: str, root: Path | None = None) -> list[Example]:
    """Read the rows, in file order.

    Args:
        training_set: the set.
        split: ``"train"``.
        root: folder that holds ``ft-training_set/``, that folder itself, or a parent with ``llm_adapters/``. None: the
            folder named by LAB_DATA, else the file on GitHub.

    Returns:
        One example a row; the answer stands as in the file, and is empty where the file has none: in training only
        the output counts.

    Raises:
        BadSpec: another split is asked for.
        DataUnavailable: the file was not found; the message names every place looked at.
        BadRow: the file is not a JSON list, a row lacks a field, or its label is none of the commonsense sets'.
    """
    if split != "train":
        raise BadSpec(f"{training_set.name} has no {split!r} split; it has 'train' alone.")
    name = f"{FOLDER}/{training_set.file}"
    places = [name, training_set.file, f"llm_adapters/{name}"]
    path = readers.find(name, places, root, f"{RAW}/{name}", REPOSITORY)
    return [
        _read(training_set, f"{training_set.name}/train/{index}", row, where)
        for index, (where, row) in enumerate(readers.read(path, ".json"))
    ]


def _read(training_set: TrainingSet, name: str, row: object, where: str) -> Example:
    """Check one row."""
    instruction = readers.text(row, "instruction", where)
    output = readers.text(row, "output", where, empty=training_set.answer == "text")
    given = {key: isinstance(row, dict) and row.get(key) is not None for key in ("input", "answer")}
    text = readers.text(row, "input", where, empty=True) if given["input"] else ""
    answer = readers.plain(row, "answer", where, empty=True).strip() if given["answer"] else ""
    if training_set.answer != "label":
        return Example(name, instruction, text, output, answer)
    answer = readers.one_of(COMMONSENSE, answer, "answer", where)
    return Example(name, instruction, text, output, answer, offered(instruction, FAMILY[answer]))


def extract_math(text: str, rule: Rule = "lab") -> str | None:
    """Return the number or, where there is none, the letter of `text`.

    Args:
        text: generated text.
        rule: see `llm_adapters_lab.tasks.extraction`.
    """
    return number(text, rule) or letter(text, rule)


def same_math(a: str, b: str) -> bool:
    """Say whether two answers are the same number, or the same letter."""
    try:
        return same_number(a, b)
    except ValueError:
        return same_text(a, b)


def _task(training_set: TrainingSet) -> Task:
    labels = COMMONSENSE if training_set.answer == "label" else ()
    forms = {"math": Form(extract_math, same_math, 256), "label": form("label", labels), "text": form("text")}
    read = forms[training_set.answer]
    spoken = {"math": "number | A | B | C | D | E", "label": "as in the eight sets", "text": "any text"}
    return Task(
        name=training_set.name,
        summary=f"{training_set.holds}; {training_set.rows} training rows of LLM-Adapters",
        load=partial(load, training_set),
        extract=read.extract,
        same=read.same,
        labels=labels,
        max_new_tokens=read.max_new_tokens,
        splits=("train",),
        source=training_set.source,
        extra={"answer": spoken[training_set.answer]},
    )


for _set in SETS:
    register_task(_task(_set))
