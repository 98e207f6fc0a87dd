"""Data files: where they lie, what rows they hold, and errors that name the file, the row and the field.

========  ==================================  ===================
Suffix    Form                                A row is named by
========  ==================================  ===================
.json     a list of objects                   its place, from 1
.jsonl    an object a line, blank lines pass  its line
.csv      a header, then a row a record       its place, from 1
.parquet  columns                             its place, from 1
========  ==================================  ===================
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import BadRow, DataUnavailable, LabError
from llm_adapters_lab.tasks.extraction import shortest

Rows = list[tuple[str, object]]
"""Each row with the words that name it in an error."""


def data_root(root: Path | None) -> Path | None:
    """Return the data folder: `root`, else that of the environment variable LAB_DATA, else None."""
    return root or (Path(os.environ["LAB_DATA"]) if os.environ.get("LAB_DATA") else None)


def find(name: str, places: Sequence[str], root: Path | None, url: str, repository: str) -> Path:
    """Return the path of a data file, fetching it once where no folder is named.

    Args:
        name: of the file, for the message.
        places: where it may lie below the folder.
        root: the data folder; None: LAB_DATA, else the web.
        url: of the file.
        repository: what to clone in its place.

    Raises:
        DataUnavailable: it was not found; the message names every place looked at.
    """
    root = data_root(root)
    advice = f"Run `git clone {repository}` and set LAB_DATA, or `--set data.root=...`, to its folder."
    if root:
        paths = [root / place for place in places]
        found = next((path for path in paths if os.path.isfile(path)), None)
        if found is None:
            raise DataUnavailable(f"No {name}. Looked at {', '.join(map(str, paths))}. {advice}")
        return found
    try:
        from datasets import DownloadManager  # type: ignore[import-untyped]

        return Path(DownloadManager().download(url))
    except Exception as error:  # the file systems behind a download share no error class
        raise DataUnavailable(
            f"No {name}. No folder was given, LAB_DATA is not set, and {url} could not be fetched "
            f"({type(error).__name__}: {error}). {advice}"
        ) from error


def read(path: Path, suffix: str | None = None) -> Rows:
    """Read a file.

    Args:
        path: of the file.
        suffix: how to read it, from the table above; default: that of the path.

    Returns:
        Its rows, at least one.

    Raises:
        DataUnavailable: there is no such file.
        BadRow: it cannot be read, is of another form, or holds no rows.
    """
    reader = READERS.get(suffix or path.suffix.lower())
    if reader is None:
        raise BadRow(f"{path} is not of a known form; give a file that ends in {', '.join(READERS)}.")
    try:
        rows = reader(path)
    except LabError:
        raise
    except FileNotFoundError:
        raise DataUnavailable(f"There is no data file {path}. Give the path of a file that exists.") from None
    except Exception as error:  # broken text, parquet and nesting have no error class in common
        raise BadRow(f"{path} cannot be read: {error}. Fetch or write the file again.") from error
    if not rows:
        raise BadRow(f"{path} holds no rows: the file is empty. Give at least one row.")
    return rows


def from_hub(hub: str, config: str | None, split: str, revision: str | None = None) -> Rows:
    """Read a split of a data set on the Hugging Face hub, fetched once and kept in the `datasets` cache.

    Args:
        hub: ``owner/name``.
        config: its configuration, where it has several.
        split: as it is called there.
        revision: branch or commit.

    Raises:
        DataUnavailable: it could not be fetched.
        BadRow: it holds no rows.
    """
    try:
        from datasets import load_dataset

        rows = load_dataset(hub, config, split=split, revision=revision).to_list()
    except Exception as error:  # the library, the hub and the network share no error class
        raise DataUnavailable(
            f"The split {split!r} of {hub} could not be fetched from the hub ({type(error).__name__}: {error}). "
            "Check name, configuration and split, or download the files and name their folder."
        ) from error
    if not rows:
        raise BadRow(f"The split {split!r} of {hub} holds no rows. Choose another split.")
    return _placed(f"{hub} ({split})", rows)


def _json(path: Path) -> Rows:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{path} is not JSON: {error}. Fetch or write the file again.") from error
    if not isinstance(rows, list):
        raise BadRow(f"{path} holds a JSON {type(rows).__name__}; give a list of rows.")
    return _placed(path, rows)


def _json_lines(path: Path) -> Rows:
    rows: Rows = []
    # Not splitlines(): it also cuts at separators that JSON allows inside a text.
    for index, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n")):
        if line.strip():
            where = f"{path}, row {index + 1}"
            try:
                rows.append((where, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise BadRow(f"{where}: not JSON: {error}. Give one object a line.") from error
    return rows


def _csv(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        header = list(reader.fieldnames or ())
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise BadRow(f"{path}: the header has {', '.join(map(repr, twice))} more than once. Rename the columns.")
        rows = [(f"{path}, row {index + 1}", row) for index, row in enumerate(reader)]
    for where, row in rows:
        if None in row or None in row.values():
            raise BadRow(f"{where}: not as many values as the header has columns. Quote values that hold commas.")
    return [*rows]


def _parquet(path: Path) -> Rows:
    from pyarrow import parquet  # type: ignore[import-untyped]

    with path.open("rb") as file:
        return _placed(path, parquet.read_table(file).to_pylist())


def _placed(path: Path | str, rows: Iterable[object]) -> Rows:
    return [(f"{path}, row {index + 1}", row) for index, row in enumerate(rows)]


READERS: dict[str, Callable[[Path], Rows]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}


def field(row: object, key: str, where: str) -> Any:
    """Return a field of a row.

    Raises:
        BadRow: it is missing; the message names the fields that there are. The same holds for the functions below.
    """
    if not isinstance(row, dict):
        raise BadRow(f"{where}: a JSON {type(row).__name__}; give an object with named fields.")
    if key not in row:
        raise BadRow(f"{where}: field {key!r} is missing; the row has {', '.join(map(repr, row)) or 'none'}.")
    return row[key]


def text(row: object, key: str, where: str, *, empty: bool = False) -> str:
    """Return a field that holds text; `empty` allows it to be blank."""
    value = field(row, key, where)
    if not isinstance(value, str):
        raise BadRow(f"{where}: field {key!r} is {value!r:.60}, a {type(value).__name__}; give text.")
    if not (empty or value.strip()):
        raise BadRow(f"{where}: field {key!r} is empty; give text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{where}: field {key!r} holds half a character ({error.reason}); mend the file.") from None
    return value


def texts(row: object, key: str, where: str) -> list[str]:
    """Return a field that holds a list of two texts or more."""
    value = field(row, key, where)
    if not (isinstance(value, list) and len(value) > 1 and all(isinstance(part, str) for part in value)):
        raise BadRow(f"{where}: field {key!r} is {value!r:.60}; give a list of texts, two at least.")
    return value


def number(row: object, key: str, where: str) -> str:
    """Return a field that holds a number, or text that is one, in its shortest form: ``12`` for ``12.0``."""
    value = field(row, key, where)
    try:
        result = float(str(value).replace(",", "")) if isinstance(value, str | int | float) else math.nan
    except ValueError:  # "True" and "False" end here too
        result = math.nan
    if not math.isfinite(result):
        raise BadRow(f"{where}: field {key!r} is {value!r:.60}; give a number.")
    return shortest(result)


def one_of(allowed: Sequence[str], answer: str, key: str, where: str) -> str:
    """Return an answer that is among those allowed."""
    if answer not in allowed:
        raise BadRow(f"{where}: field {key!r} is {answer!r:.60}; give one of {', '.join(allowed)}.")
    return answer


def plain(row: object, key: str, where: str, *, empty: bool = False) -> str:
    """Return a field as text: numbers and truth values, which JSON and parquet tell from text, are written out."""
    value = field(row, key, where)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadRow(f"{where}: field {key!r} is {value}; give text or a finite number.")
        return shortest(value)
    if value is None and empty:
        return ""
    return text(row, key, where, empty=empty)
