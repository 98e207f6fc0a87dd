"""The benchmarks as their authors publish them, turned into the rows of LLM-Adapters.

Each release becomes a task ``<name>-official`` whose instructions are those of the file of LLM-Adapters, character by
character, so that the two can be mixed and compared. Rows are read from the folder that is called like the hub
repository, below ``data.root`` or LAB_DATA (``<root>/allenai/ai2_arc/ARC-Easy/test-*.parquet``, as a download of it
lies; also .jsonl, .json, .csv), else fetched from the hub.

===================  =======================  =============  ======  ======  ===================================
Name                 Hub repository           Configuration  Train   Test    Columns
===================  =======================  =============  ======  ======  ===================================
gsm8k-official       openai/gsm8k             main           7,473   1,319   question, answer
aqua-official        deepmind/aqua_rat        raw            97,467  254     question, options, rationale,
                                                                             correct
mathqa-official      allenai/math_qa                         29,837  2,985   Problem, Rationale, options,
                                                                             correct
boolq-official       google/boolq                            9,427   3,270   question, answer (passage unused)
piqa-official        ybisk/piqa                              16,113  1,838   goal, sol1, sol2, label from 0
siqa-official        allenai/social_i_qa                     33,410  1,954   context, question, answerA to C,
                                                                             label from 1
hellaswag-official   Rowan/hellaswag                         39,905  10,042  activity_label, ctx, endings,
                                                                             label from 0
winogrande-official  allenai/winogrande       winogrande_xl  40,398  1,267   sentence, option1, option2, answer
arc-e-official       allenai/ai2_arc          ARC-Easy       2,251   2,376   question, choices, answerKey
arc-c-official       allenai/ai2_arc          ARC-Challenge  1,119   1,172   as arc-e-official
obqa-official        allenai/openbookqa       main           4,957   500     question_stem, choices, answerKey
===================  =======================  =============  ======  ======  ===================================

The test rows of BoolQ, PIQA, Social IQa, HellaSwag and WinoGrande are those of the published validation split, as in
LLM-Adapters: the answers to their test splits are not public. Answers and licences: see
`llm_adapters_lab.tasks.paper_benchmarks`.

What a training row is answered with: "the correct answer is" and the label; for gsm8k, aqua and mathqa the published
rationale and "The answer is 7." ``gsm8k-official-short`` leaves the rationale out.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.tasks import readers
from llm_adapters_lab.tasks.base import TASKS, Example, Task, register_task
from llm_adapters_lab.tasks.conversions import CONVERTERS
from llm_adapters_lab.tasks.paper_benchmarks import BENCHMARKS

PARQUET = "refs/convert/parquet"
"""Branch on which the hub keeps plain files of a data set that is published as a script."""
VALIDATION = {"train": "train", "test": "validation"}
TEST = {"train": "train", "test": "test"}


@dataclass(frozen=True)
class Release:
    """One row of the table above.

    Attributes:
        name: of the set in LLM-Adapters.
        hub: repository.
        config: configuration, where there are several.
        train: rows of the train split.
        splits: what our splits are called there.
        revision: branch, where it is not the main one.
        folders: further folders below the root that hold the files.
    """

    name: str
    hub: str
    config: str | None
    train: int
    splits: dict[str, str]
    revision: str | None = None
    folders: tuple[str, ...] = ()


RELEASES = (
    Release("gsm8k", "openai/gsm8k", "main", 7473, TEST, folders=("gsm8k_official", "grade_school_math/data")),
    Release("aqua", "deepmind/aqua_rat", "raw", 97467, TEST),
    Release("mathqa", "allenai/math_qa", None, 29837, TEST, PARQUET),
    Release("boolq", "google/boolq", None, 9427, VALIDATION),
    Release("piqa", "ybisk/piqa", None, 16113, VALIDATION, PARQUET),
    Release("siqa", "allenai/social_i_qa", None, 33410, VALIDATION, PARQUET),
    Release("hellaswag", "Rowan/hellaswag", None, 39905, VALIDATION),
    Release("winogrande", "allenai/winogrande", "winogrande_xl", 40398, VALIDATION, PARQUET),
    Release("arc-e", "allenai/ai2_arc", "ARC-Easy", 2251, TEST),
    Release("arc-c", "allenai/ai2_arc", "ARC-Challenge", 1119, TEST),
    Release("obqa", "allenai/openbookqa", "main", 4957, TEST),
)


def load(release: Release, name: str, split: str, root: Path | None = None) -> list[Example]:
    """Read the rows of one split, in published order.

    Args:
        release: where they are.
        name: of the task; ``gsm8k-official-short`` drops the rationales.
        split: ``"train"`` or ``"test"``.
        root: folder that holds the folders of the releases; None: LAB_DATA.

    Returns:
        One example a row.

    Raises:
        BadSpec: there is no such split.
        DataUnavailable: there are no files below the root, and the hub could not be reached.
        BadRow: a file cannot be read, or a row lacks a column or holds a value it may not hold.
    """
    if split not in release.splits:
        raise BadSpec(f"{name} has no {split!r} split. {choices(split, release.splits)}")
    found = local(release, split, root)
    rows = [row for path in found for row in readers.read(path)] if found else None
    rows = rows or readers.from_hub(release.hub, release.config, release.splits[split], release.revision)
    short = name.endswith("-short")
    convert = CONVERTERS[release.name]
    parts = [convert(row, where) for where, row in rows]
    return [
        Example(f"{name}/{split}/{i}", p.instruction, "", p.short if short else p.output, p.answer, p.options)
        for i, p in enumerate(parts)
    ]


def local(release: Release, split: str, root: Path | None) -> list[Path]:
    """Return the files of a split below the root, in order of their names; none where there are none."""
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
        if found:  # the same rows may lie there in two forms
            return [path for path in found if path.suffix == found[0].suffix]
    return []


def _task(release: Release, name: str) -> Task:
    benchmark = next(b for b in BENCHMARKS if b.name == release.name)
    like = TASKS[release.name]
    rows = f"{release.train:,} training and {benchmark.test:,} test rows"
    short = "; answered by the number alone" if name.endswith("-short") else ""
    return Task(
        name=name,
        summary=f"{release.name} from the official release {release.hub}{short}; {rows}",
        load=partial(load, release, name),
        extract=like.extract,
        same=like.same,
        labels=like.labels,
        max_new_tokens=like.max_new_tokens,
        source=f"{benchmark.origin}; {release.hub}",
        extra={"train_rows": str(release.train), "test_rows": str(benchmark.test)},
    )


for _release in RELEASES:
    register_task(_task(_release, f"{_release.name}-official"))
register_task(_task(RELEASES[0], "gsm8k-official-short"))
