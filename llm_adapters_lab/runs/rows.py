"""The rows of a run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.events import Event, LeftOut, Noticed, Unreadable
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.custom import PREFIX
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.spec import DataSpec
from llm_adapters_lab.tasks.tokens import Sample, encode

T = TypeVar("T")


@dataclass
class Rows:
    """The rows of a run.

    Attributes:
        train: training rows, shuffled; the validation rows come first.
        repeats_validation: number of rows that are not among `train`, because they repeat a validation question.
        test: evaluation rows by task.
        shots: few-shot examples by task.
        unreadable: sets of rows of which some cannot be judged right, see `preflight.check_rows`.
        notes: further sentences about the rows.
    """

    train: list[Example] = field(default_factory=list)
    repeats_validation: int = 0
    test: dict[str, list[Example]] = field(default_factory=dict)
    shots: dict[str, list[Example]] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _samples: tuple[list[Sample], LeftOut] | None = None

    def samples(self, tokenizer: Any, data: DataSpec) -> tuple[list[Sample], LeftOut]:
        """Return the tokenized training rows, and which were left out; computed once.

        Raises:
            BadSpec: no row is left.
        """
        if self._samples is None:
            template = data.template or get_task(data.task).template
            found, left_out = encode(tokenizer, self.train, template, data.max_tokens, data.loss_on)
            questions = {row.id: _question(row) for row in self.train}
            kept = _apart(found, data.validation, lambda sample: questions[sample.id])
            if len(kept) <= data.validation:
                raise BadSpec(f"Validation leaves no row to train on. {left_out.text}")
            asked = {_question(row) for rows in self.test.values() for row in rows}
            counts = {
                "rows": left_out.rows + self.repeats_validation,
                "held_out": self.repeats_validation + len(found) - len(kept),
                "repeated": len(self.train) - len({(questions[row.id], row.output) for row in self.train}),
                "scored": sum(question in asked for question in questions.values()),
            }
            self._samples = kept, replace(left_out, **counts)
        return self._samples

    def told(self) -> dict[str, Any]:
        """Return which rows were left out or cannot be judged right, as in `summary.json`."""
        left_out = asdict(self._samples[1]) if self._samples else None
        unreadable = [asdict(found) for found in self.unreadable]
        return {"left_out": left_out, "unreadable": unreadable, "notes": self.notes}

    def events(self) -> list[Event]:
        """Return the events that tell the same."""
        left_out = [self._samples[1]] if self._samples and self._samples[1].text else []
        noticed = [*self.notes, *(found.text for found in self.unreadable if 100 * found.count > found.total)]
        return [*left_out, *self.unreadable, *map(Noticed, noticed)]

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
        kept = _apart(_shuffled(found, spec.seed), spec.data.validation, _question)
        rows.train, rows.repeats_validation = kept[:wanted], len(found) - len(kept)
        if len(rows.train) <= spec.data.validation:
            repeated = f" ({rows.repeats_validation} repeat a validation question)" if rows.repeats_validation else ""
            held = f"data.validation = {spec.data.validation}"
            raise BadSpec(f"{held} leaves none of {len(found)} rows to train on{repeated}. Lower it.")
        if len(rows.train) < wanted and spec.data.rows:
            there = len(rows.train) - spec.data.validation
            rows.notes.append(f"data.rows asks for {spec.data.rows:,} training rows, but there are only {there:,}.")
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


def _question(row: Example) -> tuple[str, str]:
    return " ".join(row.instruction.split()).casefold(), " ".join(row.input.split()).casefold()


def _apart(rows: list[T], validation: int, question: Callable[[T], tuple[str, str]]) -> list[T]:
    """Return rows without those after the validation rows that repeat a question of them."""
    held_out = {question(row) for row in rows[:validation]}
    return rows[:validation] + [row for row in rows[validation:] if question(row) not in held_out]


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
