"""Read data files and hub data sets; errors name the file, the row and the field.

========  ========================================  ========================
Suffix    Format                                    A row is numbered by
========  ========================================  ========================
.json     a list of objects                         its position, from 1
.jsonl    one object per line, blank lines ignored  its line
.csv      a header, then one record per row         its position, from 1
.parquet  columns                                   its position, from 1
========  ========================================  ========================
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import BadRow, DataUnavailable, LabError
from llm_adapters_lab.tasks.extraction import shortest

_NUMBER = re.compile(r"[+-]?(?:[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
_LARGEST = 308
"""Decimal exponent of the largest number, as in a float."""


@dataclass(frozen=True)
class Row:
    """A row of a data file. Its methods return one field, checked.

    They raise BadRow if the field is missing or holds another kind of value; the message names row and field.

    Attributes:
        content: the row as read: an object with named fields, unless the file is malformed.
        where: file and row number, for error messages.
    """

    content: object
    where: str

    def error(self, key: str, problem: str) -> BadRow:
        """Return an error about a field."""
        return BadRow(f"{self.where}: field {key!r} {problem}")

    def has(self, key: str) -> bool:
        """Return whether there is such a field and it is not empty, as unused cells of a CSV file are."""
        return isinstance(self.content, dict) and self.content.get(key) not in (None, "")

    def field(self, key: str) -> Any:
        """Return a field of any kind."""
        if not isinstance(self.content, dict):
            raise BadRow(f"{self.where}: a JSON {type(self.content).__name__}; give an object with named fields.")
        if key not in self.content:
            raise self.error(key, f"is missing; the row has {', '.join(map(repr, self.content)) or 'none'}.")
        return self.content[key]

    def text(self, key: str, *, empty: bool = False) -> str:
        """Return a field that holds text; `empty` allows it to be blank."""
        value = self.field(key)
        if not isinstance(value, str):
            raise self.error(key, f"is {_shown(value)}, a {type(value).__name__}; give text.")
        if not (empty or value.strip()):
            raise self.error(key, "is empty; give text.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.error(key, f"holds an unpaired surrogate ({error.reason}); repair the file.") from None
        return value

    def texts(self, key: str) -> list[str]:
        """Return a field that holds a list of at least two texts."""
        value = self.field(key)
        if not (isinstance(value, list) and len(value) > 1 and all(isinstance(part, str) for part in value)):
            raise self.error(key, f"is {value!r:.60}; give a list of texts, at least two.")
        return value

    def number(self, key: str) -> str:
        """Return a field that holds a number, or text that is one, exactly and in its shortest form: ``12`` for 12.0.

        A comma separates thousands, as in 1,200; a decimal comma is refused.
        """
        value = self.field(key)
        if (found := exact(value)) is None:
            comma = " A comma separates thousands, as in 1,200: write 3.14, not 3,14." if "," in str(value) else ""
            raise self.error(key, f"is {_shown(value)}; give a number.{comma}")
        return found

    def as_text(self, key: str, *, empty: bool = False) -> str:
        """Return a field as text, numbers and booleans (which JSON and parquet tell apart from text) included."""
        value = self.field(key)
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int):
            return str(value)
        if isinstance(value, float | Decimal):
            if (found := exact(value)) is None:
                raise self.error(key, f"is {_shown(value)}; give text or a finite number.")
            return found
        return "" if value is None and empty else self.text(key, empty=empty)

    def one_of(self, allowed: Sequence[str], key: str, value: str) -> str:
        """Return `value`, which was read from a field, if it is allowed."""
        if value not in allowed:
            raise self.error(key, f"is {value!r:.60}; give one of {', '.join(allowed)}.")
        return value


def exact(value: object) -> str | None:
    """Return a finite number, or text that is one, exactly and in its shortest form; None if it is not."""
    text = str(value).strip() if isinstance(value, str | int | float | Decimal) else ""
    number = Decimal(text.replace(",", "")) if _NUMBER.fullmatch(text) else None
    return shortest(number) if number is not None and abs(number.adjusted()) <= _LARGEST else None


def _shown(value: object) -> str:
    return str(value)[:60] if isinstance(value, Decimal) else f"{value!r:.60}"


def folder_of(root: str | None) -> Path | None:
    """Return the data folder that a spec names, if any."""
    return Path(os.path.expanduser(root)) if root else None


def data_root(root: Path | None) -> Path | None:
    """Return the data folder: `root`, else the environment variable LAB_DATA, else None."""
    return root or (Path(os.environ["LAB_DATA"]) if os.environ.get("LAB_DATA") else None)


def read(path: Path, suffix: str | None = None) -> list[Row]:
    """Read a file of at least one row, in the format of `suffix`; default: the suffix of the path.

    Raises:
        DataUnavailable: there is no such file.
        BadRow: the file cannot be read, has another format, or holds no rows.
    """
    reader = READERS.get(suffix or path.suffix.lower())
    if reader is None:
        raise BadRow(f"{path} has an unknown format; give a file that ends in {', '.join(READERS)}.")
    try:
        rows = reader(path)
    except LabError:
        raise
    except FileNotFoundError:
        raise DataUnavailable(f"There is no data file {path}. Give the path of an existing file.") from None
    except IsADirectoryError:
        raise BadRow(f"{path} is a folder. Give the path of a file in it.") from None
    except OSError as error:
        raise BadRow(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise BadRow(f"{path} is not text in UTF-8: {error.reason} {error.start}. Save it as UTF-8.") from None
    except Exception as error:  # broken CSV, parquet and nesting share no error class
        raise BadRow(f"{path} cannot be read: {error}. Download or write the file again.") from error
    if not rows:
        raise BadRow(f"{path} holds no rows: the file is empty. Give at least one row.")
    return rows


def from_hub(hub: str, config: str | None, split: str, revision: str | None = None) -> list[Row]:
    """Read a split of a data set ``owner/name`` on the Hugging Face hub, downloaded once into the `datasets` cache.

    Raises:
        DataUnavailable: it could not be downloaded.
        BadRow: it holds no rows.
    """
    try:
        from datasets import load_dataset  # type: ignore[import-untyped]

        rows = _arrow_rows(load_dataset(hub, config, split=split, revision=revision).with_format("arrow")[:])
    except Exception as error:  # the library, the hub and the network share no error class
        raise DataUnavailable(
            f"The split {split!r} of {hub} could not be downloaded from the hub ({type(error).__name__}: {error}). "
            "Check name, configuration and split, or download the files and give their folder."
        ) from error
    if not rows:
        raise BadRow(f"The split {split!r} of {hub} holds no rows. Choose another split.")
    return _numbered(f"{hub} ({split})", rows)


def _plain(text: str, where: str, advice: str) -> Any:
    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _require_distinct(where, "an object", [name for name, _ in pairs])
        return dict(pairs)

    try:
        return json.loads(text, parse_float=Decimal, object_pairs_hook=make)
    except BadRow:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{where} is not JSON: {error}. {advice}") from error


def _require_distinct(where: Path | str, what: str, names: list[str]) -> None:
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise BadRow(f"{where}: {what} has {', '.join(map(repr, twice))} more than once. Rename or remove one.")


def _json(path: Path) -> list[Row]:
    rows = _plain(path.read_text(encoding="utf-8-sig"), str(path), "Download or write the file again.")
    if not isinstance(rows, list):
        raise BadRow(f"{path} holds a JSON {type(rows).__name__}; give a list of rows.")
    return _numbered(path, rows)


def _json_lines(path: Path) -> list[Row]:
    rows: list[Row] = []
    # Not splitlines(): it also splits at separators that JSON allows inside a string.
    for index, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n")):
        if line.strip():
            where = f"{path}, row {index + 1}"
            rows.append(Row(_plain(line, where, "Give one object per line."), where))
    return rows


def _csv(path: Path) -> list[Row]:
    csv.field_size_limit(2**30)  # Python's own limit is 131,072 characters
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        _require_distinct(path, "the header", list(reader.fieldnames or ()))
        rows = list(reader)
    numbered = _numbered(path, rows)
    for row, values in zip(numbered, rows, strict=True):
        if None in values or None in values.values():
            raise BadRow(f"{row.where}: not as many values as the header has columns. Quote values with commas.")
    return numbered


def _parquet(path: Path) -> list[Row]:
    from pyarrow import parquet  # type: ignore[import-untyped]

    with path.open("rb") as file:
        return _numbered(path, _arrow_rows(parquet.read_table(file)))


def _arrow_rows(table: Any) -> list[dict[str, Any]]:
    """Return the rows of an arrow table; a float16 or float32 in the shortest decimal that is the same in its type."""
    import numpy as np

    rows: list[dict[str, Any]] = table.to_pylist()
    types = {"halffloat": np.float16, "float": np.float32}
    for name, kind in ((field.name, types.get(str(field.type))) for field in table.schema):
        for row in rows if kind else ():
            row[name] = row[name] if row[name] is None else float(str(kind(row[name])))  # type: ignore[misc]
    return rows


def _numbered(source: Path | str, rows: Iterable[object]) -> list[Row]:
    return [Row(row, f"{source}, row {index + 1}") for index, row in enumerate(rows)]


Reader = Callable[[Path], list[Row]]
READERS: dict[str, Reader] = {".json": _json, ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
