"""The user's own rows as a task: a JSON, JSON-lines, CSV or parquet file, or a data set on the hub.

No code is needed: the task's name says where the rows are and how to read them. A spec uses it like any other task name
(``data.task``, ``eval.tasks``)::

    own:questions.csv
    own:data/quiz.jsonl?instruction=question&answer=solution&form=number
    own:owner/name?config=main&test=validation&instruction=text&answer=verdict&labels=yes|no

===========  =================================================  ==============================================
Key          Meaning                                            Default
===========  =================================================  ==============================================
instruction  column with the question                           ``instruction``
input        column with additional context                     ``input``, if present
output       column with the text to train on                   ``output``, if present, else the answer
answer       column with the short gold answer                  ``answer``, if present, else read from the output
id           column with a unique name for each row             ``id``, if present, else the row number
form         number, letter, label or text:                     label if there are labels, else text
             see `llm_adapters_lab.tasks.answers`
labels       the allowed answers, as ``yes|no``                 none
messages     column with the turns of a chat                    ``messages``, ``conversations``
template     prompt template                                    chat for chats, else alpaca
config       configuration of a hub data set                    none
train, test  splits of a hub data set                           ``train``, ``test``
===========  =================================================  ==============================================

Chats, pairs of prompt and completion, preferences and documents need no keys; see `llm_adapters_lab.tasks.chats`.

A relative path is relative to the data folder, if the file exists there, else to the working directory. A file has the
same rows in every split. A row may be ``{"question": "2 + 3?", "solution": 5}``. Labels match regardless of case and
spacing; an empty cell counts as missing.

A run is identified by the task's name, not by the content of the file: save changed rows under a new name.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast, get_args

from llm_adapters_lab.errors import BadRow, BadSpec, choices
from llm_adapters_lab.tasks import readers
from llm_adapters_lab.tasks.answers import AnswerForm, Kind, answer_form, parse_options, same_line
from llm_adapters_lab.tasks.base import Example, Task
from llm_adapters_lab.tasks.chats import chat_columns, read_chat
from llm_adapters_lab.tasks.prompts import TEXT, get_template, is_chat
from llm_adapters_lab.tasks.readers import Row

PREFIX = "own:"
COLUMN = "column:"
KEYS = tuple("instruction input output answer id form labels messages template config train test".split())
_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A parsed task name."""

    place: str  # file or hub repository
    given: dict[str, str]  # the keys of the table above that the name sets
    kind: Kind
    form: AnswerForm

    @property
    def is_file(self) -> bool:
        """Whether the rows are in a file, not on the hub."""
        return Path(self.place).suffix.lower() in readers.READERS

    def column(self, name: str, row: Row) -> str | None:
        """Return the column that holds `name`: the one given, else the one of that name if it is not empty."""
        return self.given.get(name) or (name if row.has(name) else None)


def task(name: str) -> Task:
    """Return the task described by a name such as ``own:questions.csv?form=number``.

    Raises:
        BadSpec: the name has an unknown key or value; the file itself is checked when it is read.
    """
    source = _parse(name)
    return Task(
        name=name,
        summary=f"own rows from {source.place}",
        read=partial(_read, source, name),
        template=source.given.get("template", ""),
        source=source.place,
        **source.form,
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
    if not is_chat(given.get("template", "chat")):
        get_template(given["template"])
    given_labels = unicodedata.normalize("NFC", given["labels"]).split("|") if "labels" in given else ()
    labels = tuple(part.strip() for part in given_labels)
    kind = given.get("form", "label" if labels else "text")
    if kind not in get_args(Kind):
        raise BadSpec(f"{name!r}: form = {kind!r}. {choices(kind, get_args(Kind))}")
    if (kind == "label") != bool(labels) or "" in labels or len(set(labels)) != len(labels):
        raise BadSpec(f"{name!r}: form = label needs labels, all different, as in labels=yes|no; others take none.")
    source = Source(place, given, cast(Kind, kind), answer_form(cast(Kind, kind), labels))
    if not (source.is_file or _HUB.fullmatch(place)):
        ends = ", ".join(readers.READERS)
        raise BadSpec(f"{name!r}: {place!r} is neither a file that ends in {ends} nor a hub id such as owner/name.")
    if source.is_file and (hub := [key for key in ("config", "train", "test") if key in given]):
        raise BadSpec(f"{name!r}: {', '.join(hub)}: a file has no such parts, only a data set on the hub. Remove it.")
    return source


def raw_rows(name: str, split: str, root: Path | None) -> dict[str, Row]:
    """Return the rows of a task as they are in its file, in their order, by the ids of the examples made from them.

    Raises:
        LabError: the file is missing or malformed, or two rows have the same id.
    """
    source = _parse(name)
    if source.is_file:
        place = os.path.expanduser(source.place)
        below = (readers.data_root(root) or Path()) / place
        rows = readers.read(below if os.path.isfile(below) else Path(place))
    elif os.path.isdir(source.place):  # which would be read in place of the hub's data set
        message = f"{source.place} is a folder here. Name a file in it, as in own:{source.place}/x.csv."
        raise BadSpec(f"{name!r}: {message}")
    else:
        rows = readers.from_hub(source.place, source.given.get("config"), source.given.get(split, split))
    seen: dict[str, Row] = {}
    for index, row in enumerate(rows):
        key = source.column("id", row)
        row_id = f"{source.place}/{split}/{row.as_text(key) if key else index}"
        if row_id in seen:
            where = seen[row_id].where
            raise BadRow(f"{row.where}: the id {row_id!r} is also the id of {where}. Give every row its own.")
        seen[row_id] = row
    return seen


def check_group(field: str, by: str, task: str) -> None:
    """Check that the rows of a task have the column that they are to be grouped by, as far as its name tells.

    Raises:
        BadSpec: they have none, because only rows of one's own have columns.
    """
    if by.startswith(COLUMN) and not task.startswith(PREFIX):
        raise BadSpec(f"{field} = {by}, but {task} is no file with columns. Only own:FILE tasks have them.")


def groups_of(by: str, task: str, split: str, root: Path | None, rows: Sequence[Example]) -> list[str]:
    """Return the group of each row.

    Args:
        by: "task" for the task it was written for, which in a mixed task is not the same for all rows; "column:NAME"
            for what its file says there.
        task: that the rows are read from.
        split: of the task.
        root: the data folder, if it is not the usual one.
        rows: of that split, in any order.

    Raises:
        LabError: the file is missing or malformed, or a row has no such column.
    """
    if by.startswith(COLUMN):
        found = raw_rows(task, split, root)
        return [found[row.id].as_text(by.removeprefix(COLUMN)) for row in rows]
    return [task if task.startswith(PREFIX) else row.id.partition(f"/{split}/")[0] for row in rows]


def examine(name: str, rows: Mapping[str, Row]) -> dict[str, Example | BadRow]:
    """Return, for each of `raw_rows`, the example that the task makes of it, or why there is none.

    Raises:
        BadSpec: the name has an unknown key or value.
    """
    source, found = _parse(name), dict[str, Example | BadRow]()
    for row_id, row in rows.items():
        try:
            found[row_id] = _example(source, row_id, row)
        except BadRow as error:
            found[row_id] = error
    return found


def _read(source: Source, name: str, split: str, root: Path | None) -> list[Example]:
    return [_example(source, row_id, row) for row_id, row in raw_rows(name, split, root).items()]


def _example(source: Source, name: str, row: Row) -> Example:
    context, output, short = (source.column(key, row) for key in ("input", "output", "answer"))
    if columns := chat_columns(row, source.given):
        chat = read_chat(name, row, columns, row.as_text(short) if short else "")
        if chat.template == TEXT:
            return chat
        if not chat.output:
            raise row.error(
                columns[-1], "ends without an answer. Add a turn of the assistant, or an 'answer' to score."
            )
        return replace(chat, answer=_answer(source, row, short or columns[-1], chat.output if not short else ""))
    instruction = row.as_text(source.given.get("instruction", "instruction"))
    pair = row.has("chosen") and row.has("rejected") and not output
    output, rejected = ("chosen", row.as_text("rejected")) if pair else (output, "")
    if not (output or short):
        raise BadRow(f"{row.where}: neither an 'output' nor an 'answer'. Name the columns: ?output=...&answer=...")
    answer = _answer(source, row, short or output or "", row.as_text(output) if output and not short else "")
    options = parse_options(instruction, source.form["labels"])
    if source.kind == "label" and not options:  # the question does not list them
        options = tuple((label, label) for label in source.form["labels"])
    said = row.as_text(output) if output else answer
    given = row.as_text(context, empty=True) if context else ""
    return Example(name, instruction, given, said, answer, options, rejected=rejected)


def _answer(source: Source, row: Row, key: str, said: str) -> str:
    """Return the gold answer: that in the column `key`, or what is read from `said`, an output, if that is given."""
    if not said and source.kind == "number":
        return row.number(key)
    labels = source.form["labels"]
    given = said or row.as_text(key)
    found = source.form["extract"](unicodedata.normalize("NFC", given), "lab") if said else given
    if not found:
        raise row.error(key, f"is {given!r:.60}; no {source.kind} can be read from it.")
    if not labels:
        return found
    alike = [label for label in labels if same_line(label, found)]
    return row.one_of(labels, key, alike[0] if len(alike) == 1 else found)
