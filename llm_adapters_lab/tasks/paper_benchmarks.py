"""The sixteen benchmarks of LLM-Adapters, read from the files of that repository.

Each set is a JSON list of ``{instruction, input, output, answer}``. The rows come from ``<root>/<folder>/test.json``
and ``train.json``, laid out as in the original's ``dataset/``, so a clone of it serves as it stands; without a folder
the file is fetched once from GitHub and kept in the `datasets` cache.

============  =============  =====================  ======  ======  ==========================================
Name          Folder         Answer                 Train   Test    Origin and its licence
============  =============  =====================  ======  ======  ==========================================
gsm8k         gsm8k          number                 -       1,319   GSM8K (arXiv:2110.14168), MIT
svamp         SVAMP          number                 -       1,000   SVAMP (arXiv:2103.07191), MIT
aqua          AQuA           letter A to E          -       254     AQuA-RAT (arXiv:1705.04146), Apache-2.0
mathqa        mathqa         letter A to E          -       2,985   MathQA (arXiv:1905.13319), Apache-2.0
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

How a row looks, made up but for the form (`llm_adapters_lab.tasks.official` spells the templates out):

==================================  ==========================================================================
gsm8k, svamp, mawps, addsub,        ``Tom has 3 pens and buys 4 more. How many pens has he?`` → ``7``
multiarith, singleeq
aqua                                ``What is 2 + 3? Answer Choices: (A) 4 (B) 5 (C) 6 (D) 7 (E) 8`` → ``B``
mathqa                              ``what is 2 + 3 ? The options: A ) 4 , B ) 5 , C ) 6 , D ) 7 , E ) 8``
                                    → ``B``
boolq                               ``... true or false, question: is ice cold?`` → ``true``
piqa                                ``... Open a jar.`` ``Solution1: Turn the lid.`` ``Solution2: Kick it.``
                                    → ``solution1``
siqa, arc-e, arc-c, obqa            ``... What melts?`` ``Answer1: ice Answer2: iron ...`` → ``answer1``
hellaswag                           ``... Cooking: A man boils`` ``Ending1: an egg. ...`` → ``ending1``
winogrande                          ``... Ann thanked Eve as _ had helped.`` ``Option1: Ann Option2: Eve``
                                    → ``option2``
==================================  ==========================================================================

What to know before comparing numbers:

- BoolQ is asked without its passage. The WinoGrande training file joins six nested subsets, so rows repeat.
- `output` of a math test row is a stored GPT-3.5 rationale, right or wrong, or empty, and no training target. So these
  sets have no training split; MAWPS has.
- A MAWPS training target is the stored equation and the stored answer: ``X=7+5`` and ``The answer is 12.`` Forty of the
  equations evaluate to something else than the answer, mostly by rounding; they are served as they stand.
- The conversion to the mathqa file capitalised every a to f of the options, words included (``BrEAD``). The file is
  served as it stands; ``mathqa-official`` has the options unharmed.
- Over 80 % of AddSub, MultiArith and SingleEq, and 27 MAWPS test questions, are also in the MAWPS training file: do not
  score a model on them that has seen MAWPS or Math10K. `llm_adapters_lab.tasks.contamination` counts such rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.tasks import readers
from llm_adapters_lab.tasks.answers import ANSWERS, LETTERS, TRUTH, Form, form
from llm_adapters_lab.tasks.base import Example, Task, register_task
from llm_adapters_lab.tasks.options import Options, offered

REPOSITORY = "https://github.com/AGI-Edgerunners/LLM-Adapters"
RAW = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/main"

NUMBER: tuple[str, ...] = ()


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
    Benchmark("mathqa", "mathqa", LETTERS, None, 2985, "MathQA, Apache-2.0", "math problem with five choices"),
    Benchmark("mawps", "mawps", NUMBER, 1898, 238, "MAWPS", "one- or two-step word problem", "trainset.json"),
    Benchmark("addsub", "AddSub", NUMBER, None, 395, "AddSub", "addition or subtraction"),
    Benchmark("multiarith", "MultiArith", NUMBER, None, 600, "MultiArith", "two-step word problem"),
    Benchmark("singleeq", "SingleEq", NUMBER, None, 508, "SingleEq", "one-equation word problem"),
    Benchmark("boolq", "boolq", TRUTH, 9427, 3270, "BoolQ, CC BY-SA 3.0", "yes-no question, no passage"),
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
    name = f"{benchmark.folder}/{'test.json' if split == 'test' else benchmark.train_file}"
    places = [f"{below}/{name}" for below in (".", "dataset", "llm_adapters/dataset")]
    path = readers.find(name, places, root, f"{RAW}/dataset/{name}", REPOSITORY)
    return [
        Example(f"{benchmark.name}/{split}/{index}", *_read(benchmark, split, row, where))
        for index, (where, row) in enumerate(readers.read(path, ".json"))
    ]


def _splits(benchmark: Benchmark) -> tuple[str, ...]:
    return ("test",) if benchmark.train is None else ("train", "test")


def _read(benchmark: Benchmark, split: str, row: object, where: str) -> tuple[str, str, str, str, Options]:
    """Check one row and return its instruction, input, output, answer and options."""
    if split == "train" and benchmark.train_file == "trainset.json":  # MAWPS: an equation in place of an output
        answer = readers.number(row, "ans", where)
        output = f"{readers.text(row, 'equation', where)}\nThe answer is {answer}."
        return readers.text(row, "original_text", where), "", output, answer, ()
    if benchmark.labels:
        answer = readers.one_of(benchmark.labels, readers.text(row, "answer", where), "answer", where)
    else:
        answer = readers.number(row, "answer", where)
    output = readers.text(row, "output", where, empty=split == "test")
    instruction = readers.text(row, "instruction", where)
    options = offered(instruction, benchmark.labels)
    return instruction, readers.text(row, "input", where, empty=True), output, answer, options


def _form(benchmark: Benchmark) -> Form:
    """Return how an answer of this set is read and judged."""
    if not benchmark.labels:
        return form("number")
    if benchmark.labels == LETTERS:
        return form("letter")
    # The original looks for answer1 to answer5 in every set of answers, Social IQa with its three included.
    return form("label", ANSWERS if benchmark.labels[0] in ANSWERS else benchmark.labels)


def _task(benchmark: Benchmark) -> Task:
    train = f"{benchmark.train:,} training and " if benchmark.train else ""
    read = _form(benchmark)
    return Task(
        name=benchmark.name,
        summary=f"{benchmark.asks}; {train}{benchmark.test:,} test rows of LLM-Adapters",
        load=partial(load, benchmark),
        extract=read.extract,
        same=read.same,
        labels=benchmark.labels,
        max_new_tokens=read.max_new_tokens,
        splits=_splits(benchmark),
        source=f"{benchmark.origin}; file: LLM-Adapters repository, ODC-By 1.0",
        extra={"train_rows": str(benchmark.train or 0), "test_rows": str(benchmark.test)},
    )


for _benchmark in BENCHMARKS:
    register_task(_task(_benchmark))
