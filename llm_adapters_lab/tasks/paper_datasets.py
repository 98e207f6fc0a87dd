"""The benchmarks and training sets of LLM-Adapters.

``gsm8k``, ``boolq``, ... and ``math10k``, ``commonsense170k``, ... are the files of the LLM-Adapters repository, JSON
lists of ``{instruction, input, output, answer}``. The root is a clone of it, one of its folders ``dataset/`` and
``ft-training_set/``, or a parent with the clone in ``llm_adapters/``. Without a root, a file is downloaded once into
the `datasets` cache.

``gsm8k-official``, ``boolq-official``, ... are the releases of the benchmarks' authors, converted to the same wording,
character by character (`llm_adapters_lab.tasks.conversions`): from ``<root>/<hub repository>/`` as downloaded, e.g.
``<root>/allenai/ai2_arc/ARC-Easy/test-*.parquet`` (also .jsonl, .json, .csv), else from the hub. For BoolQ, PIQA,
Social IQa, HellaSwag and WinoGrande the test rows are the published validation split, as in LLM-Adapters: the answers
to their test splits are not public. ``gsm8k-official-short`` omits the rationales.

Sources: GSM8K (arXiv:2110.14168), SVAMP (2103.07191), AQuA-RAT (1705.04146), MathQA (1905.13319), BoolQ (1905.10044),
PIQA (1911.11641), Social IQa (1904.09728), HellaSwag (1905.07830), WinoGrande (1907.10641), ARC (1803.05457),
OpenBookQA (1809.02789), AddSub (D14-1058), MultiArith (D15-1202), SingleEq (Q15-1042), MAWPS (N16-1136, split of
MWPToolkit). The files: LLM-Adapters repository, ODC-By 1.0. Where no licence is given, the origin's is unknown.

Rows look like these (invented):

- numbers: ``Tom has 3 pens and buys 4. How many has he?``; trained on ``3 + 4 = 7. The answer is 7.``, answer ``7``
- aqua: ``What is 2 + 3? Answer Choices: (A) 4 (B) 5 ...``; mathqa: ``... The options: A ) 4 , B ) 5 ...``; answer ``B``
- choices: ``... Open a jar. Solution1: Turn the lid. Solution2: Kick it.``; trained on ``the correct answer is
  solution1``, answer ``solution1``

Before comparing numbers, note:

- BoolQ is asked without its passage. The WinoGrande training file joins six nested subsets, so rows repeat, up to six
  times; so they do in the commonsense files.
- `output` of a math test row is a stored GPT-3.5 rationale, correct or not, or empty, and no training target; so these
  sets have no training split, except MAWPS.
- A MAWPS training target is the stored equation and the stored answer: ``X=7+5`` and ``The answer is 12.`` Forty
  equations do not evaluate to the answer, mostly due to rounding; they are kept as stored.
- The conversion to the mathqa file capitalised every a to f in the options, also inside words (``BrEAD``). The file is
  kept as it is; ``mathqa-official`` has the original options.
- math10k has the questions of GSM8K, MAWPS and 1,000 of AQuA, with rationales of ChatGPT except those with a wrong
  result; math7k leaves MAWPS out; math14k is math7k with rationales of both ChatGPT and GPT-4.
- Over 80 % of AddSub, MultiArith and SingleEq, and 27 MAWPS test questions, are also in the MAWPS training file: do not
  score a model on them that was trained on MAWPS or math10k. `llm_adapters_lab.tasks.contamination` counts such rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llm_adapters_lab.errors import DataUnavailable
from llm_adapters_lab.tasks import conversions, readers
from llm_adapters_lab.tasks.answers import ANSWERS, LETTERS, TRUTH, AnswerForm, answer_form, parse_options
from llm_adapters_lab.tasks.base import Example, Rule, Task, register_task
from llm_adapters_lab.tasks.extraction import letter, number, same_number, same_text
from llm_adapters_lab.tasks.readers import Row

REPOSITORY = "https://github.com/AGI-Edgerunners/LLM-Adapters"
RAW = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/main"
FOLDER = "ft-training_set"

NUMBER: tuple[str, ...] = ()
SOLUTIONS = ("solution1", "solution2")
ENDINGS = tuple(f"ending{i}" for i in range(1, 5))
FILLERS = ("option1", "option2")
FAMILIES = {label: labels for labels in (TRUTH, SOLUTIONS, ANSWERS, ENDINGS, FILLERS) for label in labels}
"""The labels of the commonsense sets; for each one all labels of the same kind of question."""


def _find(file: str, places: Sequence[str], root: Path | None) -> Path:
    """Return a file of the LLM-Adapters repository: at one of the `places` below the root, else a download."""
    root = readers.data_root(root)
    advice = f"Run `git clone {REPOSITORY}` and set LAB_DATA, or `--set data.root=...`, to its folder."
    if root:
        paths = [root / place for place in places]
        found = next((path for path in paths if os.path.isfile(path)), None)
        if found is None:
            raise DataUnavailable(f"No {file}. Looked at {', '.join(map(str, paths))}. {advice}")
        return found
    url = f"{RAW}/{file}"
    try:
        from datasets import DownloadManager  # type: ignore[import-untyped]

        return Path(DownloadManager().download(url))
    except Exception as error:  # the file systems behind a download share no error class
        raise DataUnavailable(
            f"No {file}. No folder was given, LAB_DATA is not set, and {url} could not be downloaded "
            f"({type(error).__name__}: {error}). {advice}"
        ) from error


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as LLM-Adapters has it."""

    name: str
    folder: str  # below dataset/
    labels: tuple[str, ...]  # the allowed answers; empty for numbers
    train: int | None  # rows of the training file; None if there is none to train on
    test: int  # rows of the test file
    origin: str  # and licence
    asks: str  # for the summary
    train_file: str = "train.json"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the files have."""
        return ("test",) if self.train is None else ("train", "test")

    @property
    def form(self) -> AnswerForm:
        """How an answer is read and judged."""
        if not self.labels or self.labels == LETTERS:
            return answer_form("letter" if self.labels else "number")
        # The original looks for answer1 to answer5 even where a question has three, as in Social IQa.
        return answer_form("label", self.labels, ANSWERS if self.labels[0] in ANSWERS else self.labels)


@dataclass(frozen=True)
class Release:
    """A benchmark as its authors release it."""

    convert: Callable[[Row], Example]  # without the id
    hub: str  # repository
    config: str | None  # if there are several
    train: int  # rows of the training split
    test: str = "test"  # published name of the test split
    revision: str | None = None  # branch, if not the main one
    folders: tuple[str, ...] = ()  # further folders below the root that may hold the files

    @property
    def splits(self) -> dict[str, str]:
        """Published name of each split."""
        return {"train": "train", "test": self.test}


BENCHMARKS = (
    Benchmark("gsm8k", "gsm8k", NUMBER, None, 1319, "GSM8K, MIT", "multi-step word problem"),
    Benchmark("svamp", "SVAMP", NUMBER, None, 1000, "SVAMP, MIT", "word problem with a distractor"),
    Benchmark("aqua", "AQuA", LETTERS, None, 254, "AQuA-RAT, Apache-2.0", "algebra problem with five choices"),
    Benchmark("mathqa", "mathqa", LETTERS, None, 2985, "MathQA, Apache-2.0", "math problem with five choices"),
    Benchmark("mawps", "mawps", NUMBER, 1898, 238, "MAWPS", "one- or two-step word problem", "trainset.json"),
    Benchmark("addsub", "AddSub", NUMBER, None, 395, "AddSub", "addition or subtraction"),
    Benchmark("multiarith", "MultiArith", NUMBER, None, 600, "MultiArith", "two-step word problem"),
    Benchmark("singleeq", "SingleEq", NUMBER, None, 508, "SingleEq", "one-equation word problem"),
    Benchmark("boolq", "boolq", TRUTH, 9427, 3270, "BoolQ, CC BY-SA 3.0", "yes-no question, no passage"),
    Benchmark("piqa", "piqa", SOLUTIONS, 16113, 1838, "PIQA", "everyday physical goal"),
    Benchmark("siqa", "social_i_qa", ANSWERS[:3], 33410, 1954, "Social IQa", "social situation"),
    Benchmark("hellaswag", "hellaswag", ENDINGS, 39905, 10042, "HellaSwag, MIT", "continuation of a scene"),
    Benchmark("winogrande", "winogrande", FILLERS, 63238, 1267, "WinoGrande, CC BY", "fill the blank"),
    Benchmark("arc-e", "ARC-Easy", ANSWERS, 2251, 2376, "ARC, CC BY-SA 4.0", "science question"),
    Benchmark("arc-c", "ARC-Challenge", ANSWERS, 1119, 1172, "ARC, CC BY-SA 4.0", "harder science question"),
    Benchmark("obqa", "openbookqa", ANSWERS, 4957, 500, "OpenBookQA", "elementary science question"),
)

PARQUET = "refs/convert/parquet"
"""Branch on which the hub keeps plain files of a data set that is published as a script."""
GSM8K_FOLDERS = ("gsm8k_official", "grade_school_math/data")
RELEASES = {
    "gsm8k": Release(conversions.gsm8k, "openai/gsm8k", "main", 7473, folders=GSM8K_FOLDERS),
    "aqua": Release(conversions.aqua, "deepmind/aqua_rat", "raw", 97467),
    "mathqa": Release(conversions.mathqa, "allenai/math_qa", None, 29837, revision=PARQUET),
    "boolq": Release(conversions.boolq, "google/boolq", None, 9427, "validation"),
    "piqa": Release(conversions.piqa, "ybisk/piqa", None, 16113, "validation", PARQUET),
    "siqa": Release(conversions.siqa, "allenai/social_i_qa", None, 33410, "validation", PARQUET),
    "hellaswag": Release(conversions.hellaswag, "Rowan/hellaswag", None, 39905, "validation"),
    "winogrande": Release(conversions.winogrande, "allenai/winogrande", "winogrande_xl", 40398, "validation", PARQUET),
    "arc-e": Release(conversions.arc, "allenai/ai2_arc", "ARC-Easy", 2251),
    "arc-c": Release(conversions.arc, "allenai/ai2_arc", "ARC-Challenge", 1119),
    "obqa": Release(conversions.obqa, "allenai/openbookqa", "main", 4957),
}


def _read_file(benchmark: Benchmark, split: str, root: Path | None) -> list[Example]:
    """Read the file of LLM-Adapters, in file order."""
    file = f"{benchmark.folder}/{'test.json' if split == 'test' else benchmark.train_file}"
    path = _find(f"dataset/{file}", [file, f"dataset/{file}", f"llm_adapters/dataset/{file}"], root)
    rows = enumerate(readers.read(path, ".json"))
    return [_example(benchmark, split, f"{benchmark.name}/{split}/{index}", row) for index, row in rows]


def _example(benchmark: Benchmark, split: str, name: str, row: Row) -> Example:
    if split == "train" and benchmark.name == "mawps":  # an equation instead of an output
        answer = row.number("ans")
        return Example(name, row.text("original_text"), "", f"{row.text('equation')}\nThe answer is {answer}.", answer)
    answer = row.one_of(benchmark.labels, "answer", row.text("answer")) if benchmark.labels else row.number("answer")
    output, instruction = row.text("output", empty=split == "test"), row.text("instruction")
    options = parse_options(instruction, benchmark.labels)
    return Example(name, instruction, row.text("input", empty=True), output, answer, options)


def _read_release(release: Release, name: str, split: str, root: Path | None) -> list[Example]:
    """Read the release of a benchmark's authors, in published order."""
    rows = [row for path in _release_files(release, split, root) for row in readers.read(path)]
    rows = rows or readers.from_hub(release.hub, release.config, release.splits[split], release.revision)
    examples = [replace(release.convert(row), id=f"{name}/{split}/{i}") for i, row in enumerate(rows)]
    if name.endswith("-short"):
        return [replace(example, output=f"The answer is {example.answer}.") for example in examples]
    return examples


def _release_files(release: Release, split: str, root: Path | None) -> list[Path]:
    """Return the files of a split below the root, sorted by path; empty if there are none."""
    root = readers.data_root(root)
    if root is None:
        return []
    wanted = re.compile(rf"{release.splits[split]}(?![a-z])")
    for folder in (f for f in (release.hub, *release.folders) if os.path.isdir(root / f)):
        found = [
            path
            for path in sorted((root / folder).rglob("*"))
            if path.suffix.lower() in readers.READERS
            and wanted.match(path.name)
            and (folder != release.hub or release.config in (None, *path.parts))
        ]
        if found:  # there may be copies of the same rows in two formats
            return [path for path in found if path.suffix == found[0].suffix]
    return []


def _register(benchmark: Benchmark) -> None:
    train = f"{benchmark.train:,} training and " if benchmark.train else ""
    register_task(
        Task(
            name=benchmark.name,
            summary=f"{benchmark.asks}; {train}{benchmark.test:,} test rows of LLM-Adapters",
            read=partial(_read_file, benchmark),
            splits=benchmark.splits,
            source=f"{benchmark.origin}; file: LLM-Adapters repository, ODC-By 1.0",
            **benchmark.form,
        )
    )


def _register_official(benchmark: Benchmark, suffix: str = "official", note: str = "") -> None:
    release = RELEASES[benchmark.name]
    name, rows = f"{benchmark.name}-{suffix}", f"{release.train:,} training and {benchmark.test:,} test rows"
    register_task(
        Task(
            name=name,
            summary=f"{benchmark.name} from the official release {release.hub}{note}; {rows}",
            read=partial(_read_release, release, name),
            source=f"{benchmark.origin}; {release.hub}",
            **benchmark.form,
        )
    )


for _benchmark in BENCHMARKS:
    _register(_benchmark)
for _benchmark in BENCHMARKS:
    if _benchmark.name in RELEASES:
        _register_official(_benchmark)
_register_official(BENCHMARKS[0], "official-short", "; answered by the number alone")


@dataclass(frozen=True)
class TrainingSet:
    """A training set of LLM-Adapters."""

    name: str
    file: str
    rows: str  # their number
    holds: str  # for the summary
    answer: str  # a key of FORMS
    source: str = "file: LLM-Adapters repository, ODC-By 1.0"


ALPACA = "Alpaca, CC BY-NC 4.0; file: LLM-Adapters repository, ODC-By 1.0"
SETS = (
    TrainingSet("math10k", "math_10k.json", "about 9,920", "GSM8K, MAWPS and AQuA with rationales", "math"),
    TrainingSet("math7k", "math_7k.json", "about 7,000", "GSM8K and AQuA with rationales", "math"),
    TrainingSet("math14k", "math_14k.json", "about 14,000", "math7k with two rationales a question", "math"),
    TrainingSet("commonsense170k", "commonsense_170k.json", "170,420", "the eight commonsense sets", "label"),
    TrainingSet("commonsense15k", "commonsense_15k.json", "about 15,000", "a sample of commonsense170k", "label"),
    TrainingSet(
        "alpaca", "alpaca_data_cleaned.json", "about 52,000", "instructions of Alpaca, cleaned", "text", ALPACA
    ),
)


def _read_training(training_set: TrainingSet, split: str, root: Path | None) -> list[Example]:
    """Read the rows, in file order; answers as in the file, empty if it has none, since only outputs are trained on."""
    file = f"{FOLDER}/{training_set.file}"
    path = _find(file, [file, training_set.file, f"llm_adapters/{file}"], root)
    rows = enumerate(readers.read(path, ".json"))
    return [_training_example(training_set, f"{training_set.name}/train/{index}", row) for index, row in rows]


def _training_example(training_set: TrainingSet, name: str, row: Row) -> Example:
    instruction = row.text("instruction")
    output = row.text("output", empty=training_set.answer == "text")
    text = row.text("input", empty=True) if row.has("input") else ""
    answer = row.as_text("answer", empty=True).strip() if row.has("answer") else ""
    if training_set.answer != "label":
        return Example(name, instruction, text, output, answer)
    answer = row.one_of(tuple(FAMILIES), "answer", answer)
    return Example(name, instruction, text, output, answer, parse_options(instruction, FAMILIES[answer]))


def extract_math(text: str, rule: Rule = "lab") -> str | None:
    """Return the number in `text`, else the letter, else None; see `llm_adapters_lab.tasks.extraction`."""
    return number(text, rule) or letter(text, rule)


def same_math(a: str, b: str) -> bool:
    """Return whether two answers are the same number or the same letter."""
    try:
        return same_number(a, b)
    except ValueError:
        return same_text(a, b)


FORMS: dict[str, AnswerForm] = {
    "math": AnswerForm(
        extract=extract_math, same=same_math, labels=(), max_new_tokens=256, answers="number | A | B | C | D | E"
    ),
    "label": answer_form("label", tuple(FAMILIES)) | {"answers": "as in the eight sets"},
    "text": answer_form("text"),
}

for _set in SETS:
    register_task(
        Task(
            name=_set.name,
            summary=f"{_set.holds}; {_set.rows} training rows of LLM-Adapters",
            read=partial(_read_training, _set),
            splits=("train",),
            source=_set.source,
            **FORMS[_set.answer],
        )
    )
