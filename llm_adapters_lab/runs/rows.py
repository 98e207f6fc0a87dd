"""The rows of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeVar

import torch

from llm_adapters_lab.config import flat
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.evaluation.predictions import scoring_template
from llm_adapters_lab.evaluation.spec import LEARNT
from llm_adapters_lab.events import Event, LeftOut, Noticed, Unreadable
from llm_adapters_lab.runs.groups import Groups, read_groups
from llm_adapters_lab.runs.recipes import AUTO, origin, rate_of
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.custom import PREFIX
from llm_adapters_lab.tasks.encoding import encode, encode_text
from llm_adapters_lab.tasks.formats import Format, get_format
from llm_adapters_lab.tasks.prompts import TEXT, is_chat, template_of
from llm_adapters_lab.tasks.readers import folder_of
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.spec import DataSpec
from llm_adapters_lab.tasks.tokens import IGNORED, Sample

T = TypeVar("T")
MARGIN = 4
"""Number of tokens by which a learnt limit exceeds the longest answer it is learnt from."""
OLDER = 6
"""Number of fields of an `Example` in version 0.1.0."""


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
        groups: what the rows belong to.
    """

    train: list[Example] = field(default_factory=list)
    repeats_validation: int = 0
    test: dict[str, list[Example]] = field(default_factory=dict)
    shots: dict[str, list[Example]] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    groups: Groups = field(default_factory=Groups)
    _samples: tuple[list[Sample], LeftOut] | None = None

    def samples(self, tokenizer: Any, data: DataSpec) -> tuple[list[Sample], LeftOut]:
        """Return the tokenized training rows, and which were left out; computed once.

        Raises:
            BadSpec: no row is left.
        """
        if self._samples is None:
            found, left_out = self._encode(tokenizer, data)
            found = [replace(sample, group=self.groups.train.get(sample.id, "")) for sample in found]
            questions = {row.id: _question(row) for row in self.train}
            kept = found if data.form == "text" else _apart(found, data.validation, lambda s: questions[s.id])
            if len(kept) <= data.validation:
                raise BadSpec(f"Validation leaves no row to train on. {left_out.text}")
            if gone := {*self.groups.names} - {sample.group for sample in kept[data.validation :]}:
                raise BadSpec(f"No row of the group {min(gone)!r} is left to train on. {left_out.text}")
            asked = {_question(row) for rows in self.test.values() for row in rows}
            counts = {
                "rows": left_out.rows + self.repeats_validation,
                "held_out": self.repeats_validation + len(found) - len(kept),
                "repeated": len(self.train) - len({(questions[row.id], row.output) for row in self.train}),
                "scored": sum(question in asked for question in questions.values()),
            }
            self._samples = kept, replace(left_out, **counts)
        return self._samples

    def training_format(self, tokenizer: Any, data: DataSpec) -> Format:
        """Return how the training rows are written."""
        template = template_of(data.template, get_task(data.task), self.train)
        return get_format(tokenizer, template, data.system, data.control_tokens)

    def _encode(self, tokenizer: Any, data: DataSpec) -> tuple[list[Sample], LeftOut]:
        documents = [row for row in self.train if row.template == TEXT]
        if len(documents) not in (0, len(self.train)) or bool(documents) != (data.form == "text"):
            text = f"{len(documents)} of {len(self.train)} rows of {data.task} are documents (a column `text`)"
            raise BadSpec(f"{text}, but data.form = {data.form}. Documents need text, questions and chats rows.")
        if documents:
            allow = data.control_tokens == "allow"
            found = encode_text(tokenizer, documents, data.max_tokens, data.validation, allow)
            packed = f"in {len(found[0]):,} packed samples of at most {data.max_tokens} tokens"
            self.notes.append(f"data.form = text: {found[1].rows - found[1].empty:,} documents {packed}.")
            return found
        return encode(tokenizer, self.train, self.training_format(tokenizer, data), data.max_tokens, data.loss_on)

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
        groups = [self.groups.names, [*self.groups.train.items()], [*self.groups.test.items()]]
        found |= {"groups": hashlib.sha256(json.dumps(groups).encode()).hexdigest()} if self.groups.names else {}
        return found | {f"shots/{name}": digest(rows) for name, rows in self.shots.items()}


def digest(rows: Iterable[Example]) -> str:
    """Return the SHA-256 of rows in their order, over all fields."""
    found = hashlib.sha256()
    for row in rows:
        fields = [getattr(row, part.name) for part in dataclasses.fields(row)]
        while len(fields) > OLDER and not fields[-1]:  # fields added since, which must not change earlier digests
            fields.pop()
        found.update(json.dumps(fields, separators=(",", ":")).encode() + b"\n")
    return found.hexdigest()


def read_rows(spec: RunSpec) -> Rows:
    """Read all rows that a run needs.

    Raises:
        BadSpec: a file is empty, or has fewer rows than the spec needs.
        LabError: a file is missing or malformed.
    """
    rows = Rows()
    for name in spec.eval.tasks:
        rows.test[name] = get_task(name).load("test", folder_of(spec.eval.root or spec.data.root))[: spec.eval.rows]
        if not rows.test[name]:
            raise BadSpec(f"No rows to score on for {name}: the file is empty.")
        if spec.eval.shots:
            rows.shots[name] = _shots(spec, name, rows.test[name])
    if spec.learns:
        found = get_task(spec.data.task).load("train", folder_of(spec.data.root))
        if not found:
            raise BadSpec(f"No rows to train on for {spec.data.task}: the file is empty.")
        wanted = (spec.data.rows or len(found)) + spec.data.validation
        kept = _apart(_shuffled(found, spec.seed), spec.data.validation, _question)
        rows.train, rows.repeats_validation = kept[:wanted], len(found) - len(kept)
        if len(rows.train) <= spec.data.validation:
            repeated = f" ({rows.repeats_validation} repeat a validation question)" if rows.repeats_validation else ""
            held = f"data.validation = {spec.data.validation}"
            raise BadSpec(f"{held} leaves none of {len(found)} rows to train on{repeated}. Lower it.")
        if spec.train.rate_from == AUTO and spec.adapter and spec.train.learning_rate == rate_of(spec.adapter.type):
            rows.notes.append(origin(spec.adapter.type, flat(spec.model_dump(mode="json"))))
        if len(rows.train) < wanted and spec.data.rows:
            there = len(rows.train) - spec.data.validation
            rows.notes.append(f"data.rows asks for {spec.data.rows:,} training rows, but there are only {there:,}.")
    rows.groups = read_groups(spec, rows.train, rows.test)
    return rows


def training_rows(data: DataSpec) -> int:
    """Return the number of training rows of a spec, from memory after the first call.

    Rows that are left out because they are too long, or repeat a validation question, are counted.

    Raises:
        LabError: the rows cannot be read.
    """
    left = _row_count(data.task, "train", data.root) - data.validation
    return max(1, min(left, data.rows or left))


def scored_rows(spec: RunSpec) -> dict[str, int]:
    """Return the number of rows that a spec scores on, by task, from memory after the first call.

    Raises:
        LabError: the rows cannot be read.
    """
    counts = {name: _row_count(name, "test", spec.eval.root or spec.data.root) for name in spec.eval.tasks}
    return {name: min(count, spec.eval.rows or count) for name, count in counts.items()}


def _row_count(task: str, split: str, root: str | None) -> int:
    path = os.path.expanduser(task.removeprefix(PREFIX).partition("?")[0])
    stamp = os.stat(path).st_mtime_ns if task.startswith(PREFIX) and os.path.isfile(path) else 0
    return _count(task, split, root, os.environ.get("LAB_DATA"), stamp)


@lru_cache(maxsize=64)
def _count(task: str, split: str, root: str | None, *_: object) -> int:
    return len(get_task(task).load(split, folder_of(root)))


def scoring_format(spec: RunSpec, name: str, rows: Sequence[Example], tokenizer: Any) -> Format:
    """Return how the questions of a task are written in a run; `rows` are the questions."""
    template = scoring_template(get_task(name), spec.eval.protocol, spec.eval.template or spec.data.template, rows)
    if template == TEXT:
        raise BadSpec(f"{name} holds documents, which ask nothing: they can be learnt, but not scored.")
    system = spec.eval.system if spec.eval.system is not None else spec.data.system
    system = system if is_chat(template) or spec.eval.system else None
    return get_format(tokenizer, template, system, spec.data.control_tokens)


def answer_limit(spec: RunSpec, name: str, form: Format, asked: Sequence[Example]) -> int:
    """Return the maximum number of tokens of an answer to a task.

    With `eval.max_new_tokens: auto` it is `MARGIN` more than the longest answer of the train split has with its end
    token, and at most the limit of the task. Rows that ask a question of `asked` do not count; if none are left, or the
    task has no train split, it is the limit of the task.

    Raises:
        LabError: the train split cannot be read, or a row cannot be written.
    """
    task = get_task(name)
    most = spec.eval.most_tokens(task)
    if spec.eval.max_new_tokens != LEARNT or "train" not in task.splits:
        return most
    scored = {(row.instruction, row.input) for row in asked}
    known = [
        row
        for row in task.load("train", folder_of(spec.eval.root or spec.data.root))
        if (row.instruction, row.input) not in scored
    ]
    answers = {row.id if row.messages else row.output: row for row in known}  # equal answers have equal lengths
    written = form.rows(list(answers.values()), "last") if answers else []
    longest = max((sum(label != IGNORED for label in row.labels) for row in written), default=most)
    return min(most, longest + MARGIN)


def outdated(record: Run) -> str:
    """Return a warning if custom files, which a spec knows by name only, have changed since a run; else ""."""
    spec, known = record.spec, record.summary.get("hashes", {}).get("data", {})
    tasks = {key: spec.data.task if key == "train" else key.partition("/")[2] for key in known}
    custom = {key: task for key, task in tasks.items() if task.startswith(PREFIX)}
    try:
        now = read_rows(spec).digests() if custom else {}
    except LabError:  # missing or damaged, but the result is still valid
        return ""
    changed = {task for key, task in custom.items() if now.get(key) != known[key]}
    if not changed:
        return ""
    return (
        f"{' and '.join(sorted(changed))} has changed since the run {record.id}, whose result belongs to the earlier "
        "rows. Run it again with --fresh (fresh=True), or save the new rows under a new name."
    )


def _shuffled(rows: list[Example], seed: int) -> list[Example]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[i] for i in order]


def _question(row: Example) -> tuple[str, str]:
    asked = row.output if row.template == TEXT else row.instruction
    return " ".join(asked.split()).casefold(), " ".join(row.input.split()).casefold()


def _apart(rows: list[T], validation: int, question: Callable[[T], tuple[str, str]]) -> list[T]:
    """Return rows without those after the validation rows that repeat a question of them."""
    held_out = {question(row) for row in rows[:validation]}
    return rows[:validation] + [row for row in rows[validation:] if question(row) not in held_out]


def _shots(spec: RunSpec, name: str, test: list[Example]) -> list[Example]:
    """Choose few-shot examples by the seed of the run, none of them among the questions."""
    root, asked = folder_of(spec.eval.root or spec.data.root), {(row.instruction, row.input) for row in test}
    # Shuffled before questions are left out, so that the examples depend on the seed alone wherever possible.
    rows = _shuffled(get_task(name).load("train", root), spec.seed)
    found = list({(r.instruction, r.input): r for r in rows if (r.instruction, r.input) not in asked}.values())
    if len(found) < spec.eval.shots:
        raise BadSpec(
            f"eval.shots = {spec.eval.shots}, but {name!r} has only {len(found)} rows that are not questions "
            "themselves. Lower eval.rows or eval.shots."
        )
    return found[: spec.eval.shots]
