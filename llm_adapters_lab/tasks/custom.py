"""Own rows: any JSON, JSON-lines, CSV or parquet file, or any data set of the hub, as a task.

Such a task needs no code. Its name says where the rows are and how to read them, and stands in a spec wherever the name
of a task does (``data.task``, ``eval.tasks``)::

    own:questions.csv
    own:data/quiz.jsonl?instruction=question&answer=solution&form=number
    own:owner/name?config=main&test=validation&instruction=text&answer=verdict&labels=yes|no

===========  =================================================  ==========================================
Key          Meaning                                            Default
===========  =================================================  ==========================================
instruction  column with the question                           ``instruction``
input        column with further text                           ``input``, if there is one
output       column with what the model learns to say           ``output``, else the answer's
answer       column with the short gold answer                  ``answer``, else read out of the output
id           column with a name for each row, all different     ``id``, if there is one; else the row number
form         number, letter, label or text:                     label if there are labels, else text
             see `llm_adapters_lab.tasks.answers`
labels       the allowed answers, as ``yes|no``                 none
template     prompt template                                    alpaca
config       configuration of a hub data set                    none
train, test  splits of a hub data set                           ``train``, ``test``
===========  =================================================  ==========================================

A relative path counts from the data folder, if the file is there, else from the working directory. A file serves any
split: the same rows, whether they are learnt or scored. A row may be ``{"question": "2 + 3?", "solution": 5}``.

The name, not the content of the file, is what a run is known by: save changed rows under a new name. Labels match in
any case and spacing; an empty cell counts as absent.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast, get_args

from llm_adapters_lab.errors import BadRow, BadSpec, choices
from llm_adapters_lab.tasks import readers
from llm_adapters_lab.tasks.answers import LETTERS, Form, Kind, form, same_line
from llm_adapters_lab.tasks.base import Example, Task
from llm_adapters_lab.tasks.options import Options, offered
from llm_adapters_lab.tasks.prompts import get_template

PREFIX = "own:"
COLUMNS = ("instruction", "input", "output", "answer", "id")
_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
KEYS = (*COLUMNS, "form", "labels", "template", "config", "train", "test")


@dataclass(frozen=True)
class Source:
    """What the name of a task of this kind says.

    Attributes:
        place: file or hub repository.
        given: the keys of the table above that it sets, with their values.
        labels: the allowed answers.
        kind: form of the answers.
    """

    place: str
    given: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    kind: Kind = "text"

    @property
    def form(self) -> Form:
        """How answers are read and judged."""
        return form(self.kind, self.labels)

    def column(self, name: str, row: object) -> str | None:
        """Return the column that holds `name`: the one set, else that of the same name if the row has it."""
        has = isinstance(row, dict) and row.get(name) not in (None, "")  # so are the empty cells of a CSV file
        return self.given.get(name) or (name if has else None)


def task(name: str) -> Task:
    """Return the task of a name such as ``own:questions.csv?form=number``.

    Raises:
        BadSpec: the name holds an unknown key or value; the file itself is looked at when it is read.
    """
    source = _parse(name)
    return Task(
        name=name,
        summary=f"own rows from {source.place}",
        load=partial(load, source, name),
        extract=source.form.extract,
        same=source.form.same,
        labels=source.labels,
        template=source.given.get("template", "alpaca"),
        max_new_tokens=source.form.max_new_tokens,
        source=source.place,
        extra={} if source.labels or source.kind == "number" else {"answer": "any text"},
    )


def _parse(name: str) -> Source:
    place, _, query = name.removeprefix(PREFIX).partition("?")
    given: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if key not in KEYS:
            raise BadSpec(f"{name!r}: {key!r} is not a known key. {choices(key, KEYS)}")
        if not (equals and value) or key in given:
            raise BadSpec(f"{name!r}: give {key!r} once, with a value, as in {key}=...")
        given[key] = value
    if Path(place).suffix.lower() not in readers.READERS and not _HUB.fullmatch(place):
        ends = ", ".join(readers.READERS)
        raise BadSpec(f"{name!r}: {place!r} is neither a file that ends in {ends} nor a hub id such as owner/name.")
    get_template(given.get("template", "alpaca"))
    labels = tuple(part.strip() for part in given["labels"].split("|")) if "labels" in given else ()
    kind = given.get("form", "label" if labels else "text")
    if kind not in get_args(Kind):
        raise BadSpec(f"{name!r}: form = {kind!r}. {choices(kind, get_args(Kind))}")
    if (kind == "label") != bool(labels) or "" in labels or len(set(labels)) != len(labels):
        raise BadSpec(f"{name!r}: form = label goes with labels, all different, as in labels=yes|no; no other does.")
    return Source(place, given, LETTERS if kind == "letter" else labels, cast(Kind, kind))


def load(source: Source, name: str, split: str, root: Path | None = None) -> list[Example]:
    """Read the rows, in file order.

    Args:
        source: what to read and how.
        name: of the task.
        split: ``"train"`` or ``"test"``; tells splits of a hub data set apart.
        root: the data folder; None: LAB_DATA.

    Returns:
        One example a row.

    Raises:
        DataUnavailable: there is no such file, or the hub could not be reached.
        BadRow: the file cannot be read, a column is missing, an answer is not of the form, or two rows share an id.
    """
    if Path(source.place).suffix.lower() in readers.READERS:
        place = os.path.expanduser(source.place)
        below = (readers.data_root(root) or Path()) / place
        rows = readers.read(below if os.path.isfile(below) else Path(place))
    else:
        if os.path.isdir(source.place):  # which would be read in its place, whatever is in it
            raise BadSpec(
                f"{name!r}: {source.place} is a folder here. Name a file in it, as in own:{source.place}/x.csv."
            )
        given = source.given
        rows = readers.from_hub(source.place, given.get("config"), given.get(split, split))
    return list(_distinct(source, rows, f"{source.place}/{split}"))


def _distinct(source: Source, rows: readers.Rows, prefix: str) -> Iterable[Example]:
    """Yield the examples, no two of which may have the same id."""
    seen: dict[str, str] = {}
    for index, (where, row) in enumerate(rows):
        key = source.column("id", row)
        name = f"{prefix}/{readers.plain(row, key, where) if key else index}"
        if name in seen:
            raise BadRow(f"{where}: the id {name!r} is also that of {seen[name]}. Give every row its own.")
        seen[name] = where
        yield _read(source, name, row, where)


def _read(source: Source, name: str, row: object, where: str) -> Example:
    """Check one row."""
    instruction = readers.plain(row, source.given.get("instruction", "instruction"), where)
    further = source.column("input", row)
    said, short = source.column("output", row), source.column("answer", row)
    if not (said or short):
        raise BadRow(f"{where}: neither an 'output' nor an 'answer'. Name the columns, as in ?output=...&answer=...")
    answer = _answer(source, row, said, short, where)
    output = readers.plain(row, said, where) if said else answer
    text = readers.plain(row, further, where, empty=True) if further else ""
    return Example(name, instruction, text, output, answer, _options(source, instruction))


def _answer(source: Source, row: object, said: str | None, short: str | None, where: str) -> str:
    """Return the gold answer: the column of it, else what the form reads from the output."""
    if short and source.kind == "number":
        return readers.number(row, short, where)
    key = short or said or ""
    given = readers.plain(row, key, where)
    found = given if short else source.form.extract(given, "lab")
    if not found:
        raise BadRow(f"{where}: field {key!r} is {given!r:.60}; no {source.kind} can be read from it.")
    if not source.labels:
        return found
    alike = [label for label in source.labels if same_line(label, found)]
    return readers.one_of(source.labels, alike[0] if len(alike) == 1 else found, key, where)


def _options(source: Source, instruction: str) -> Options:
    """Return what the question offers; where it spells no options out, the labels offer themselves."""
    found = offered(instruction, source.labels)
    return found or (tuple((name, name) for name in source.labels) if source.kind == "label" else ())
