"""The rows of a run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.custom import PREFIX
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.spec import DataSpec
from llm_adapters_lab.tasks.tokens import Sample, encode


@dataclass
class Rows:
    """The rows of a run.

    Attributes:
        train: training rows, shuffled; the validation rows come first.
        test: evaluation rows by task.
        shots: few-shot examples by task.
    """

    train: list[Example] = field(default_factory=list)
    test: dict[str, list[Example]] = field(default_factory=dict)
    shots: dict[str, list[Example]] = field(default_factory=dict)
    _samples: tuple[list[Sample], int] | None = None

    def samples(self, tokenizer: Any, data: DataSpec) -> tuple[list[Sample], int]:
        """Return the tokenized training rows, and the number of rows that were too long; computed once."""
        if self._samples is None:
            template = data.template or get_task(data.task).template
            self._samples = encode(tokenizer, self.train, template, data.max_tokens, data.loss_on)
        return self._samples

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each set of rows, by its name: "train", "test/<task>" or "shots/<task>"."""
        found = {"train": digest(self.train)} if self.train else {}
        found |= {f"test/{name}": digest(rows) for name, rows in self.test.items()}
        return found | {f"shots/{name}": digest(rows) for name, rows in self.shots.items()}


def digest(rows: Iterable[Example]) -> str:
    """Return the SHA-256 of rows in their order, over all fields."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(astuple(row), separators=(",", ":")).encode() + b"\n")
    return found.hexdigest()


def read_rows(spec: RunSpec) -> Rows:
    """Read all rows that a run needs.

    Raises:
        BadSpec: a file is empty, or has fewer rows than the spec needs.
        LabError: a file is missing or malformed.
    """
    rows = Rows()
    for name in spec.eval.tasks:
        rows.test[name] = get_task(name).load("test", _folder(spec.eval.root or spec.data.root))[: spec.eval.rows]
        if not rows.test[name]:
            raise BadSpec(f"No rows to score on for {name}: the file is empty.")
        if spec.eval.shots:
            rows.shots[name] = _shots(spec, name, rows.test[name])
    if spec.adapter:
        found = get_task(spec.data.task).load("train", _folder(spec.data.root))
        if not found:
            raise BadSpec(f"No rows to train on for {spec.data.task}: the file is empty.")
        wanted = (spec.data.rows or len(found)) + spec.data.validation
        rows.train = _shuffled(found, spec.seed)[:wanted]
        if len(rows.train) <= spec.data.validation:
            raise BadSpec(f"data.validation = {spec.data.validation} leaves none of {len(found)} rows to train on.")
    return rows


def changed_files(spec: RunSpec, known: dict[str, str]) -> str:
    """Return the names of custom files whose rows have changed since an earlier run; "" for none.

    Args:
        spec: of the run; if it names no custom files, nothing is read.
        known: `Rows.digests` of that run.
    """
    tasks = {key: spec.data.task if key == "train" else key.partition("/")[2] for key in known}
    if not any(task.startswith(PREFIX) for task in tasks.values()):
        return ""
    try:
        now = read_rows(spec).digests()
    except LabError:  # missing or damaged, but the result is still valid
        return ""
    changed = {task for key, task in tasks.items() if task.startswith(PREFIX) and now.get(key) != known[key]}
    return " and ".join(sorted(changed))


def outdated(record: Run) -> str:
    """Return a warning if custom files, which a spec knows by name only, have changed since a run; else ""."""
    changed = changed_files(record.spec, record.summary.get("hashes", {}).get("data", {}))
    return changed and (
        f"{changed} has changed since the run {record.id}, whose result belongs to the earlier rows. "
        "Run it again with --fresh (fresh=True), or save the new rows under a new name."
    )


def _folder(root: str | None) -> Path | None:
    return Path(os.path.expanduser(root)) if root else None


def _shuffled(rows: list[Example], seed: int) -> list[Example]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[i] for i in order]


def _shots(spec: RunSpec, name: str, test: list[Example]) -> list[Example]:
    """Choose few-shot examples by the seed of the run, none of them among the questions."""
    root, asked = _folder(spec.eval.root or spec.data.root), {(row.instruction, row.input) for row in test}
    # Shuffled before questions are left out, so that the examples depend on the seed alone wherever possible.
    rows = _shuffled(get_task(name).load("train", root), spec.seed)
    found = list({(r.instruction, r.input): r for r in rows if (r.instruction, r.input) not in asked}.values())
    if len(found) < spec.eval.shots:
        raise BadSpec(
            f"eval.shots = {spec.eval.shots}, but {name!r} has only {len(found)} rows that are not questions "
            "themselves. Lower eval.rows or eval.shots."
        )
    return found[: spec.eval.shots]
