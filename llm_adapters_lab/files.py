"""Read and write files of the lab so that a crash leaves the old version or the new one, never a partial one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llm_adapters_lab.errors import BadSpec, CannotWrite

PART = ".part"
"""Suffix of files that are being written."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError raised in the block into a `CannotWrite` that names the file or folder.

    Raises:
        CannotWrite: it cannot be written.
    """
    try:
        yield
    except CannotWrite:
        raise
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(number) if number else str(error)
        raise CannotWrite(
            f"{path} cannot be written: {reason}. Make room, lift the protection or choose another place."
        ) from error


@contextlib.contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, whose files are moved to `folder` when all of them are written.

    After an error nothing in `folder` has changed; if it did not exist, it still does not.

    Raises:
        CannotWrite: it cannot be written.
    """
    if "\0" in str(folder):
        raise CannotWrite(f"{str(folder)!r} is no path: it holds a null character. Choose another name.")
    with writing(folder):
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".", suffix=PART, dir=folder))
        try:
            yield part
            # The config comes last: a folder without one is not mistaken for a whole adapter or model.
            for file in sorted(part.iterdir(), reverse=True):
                file.replace(folder / file.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            if new and not any(folder.iterdir()):
                folder.rmdir()


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line and hand it to the operating system at once; the whole of it, or nothing and an OSError."""
    line = (json.dumps(value, ensure_ascii=False) + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        try:
            while line:
                line = line[os.write(handle, line) :]
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it into place."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        share(Path(name))
        Path(name).replace(path)
        flush(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def share(path: Path) -> None:
    """Give a file the permissions of the umask; a temporary file is readable by its owner only."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rewrite(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    if path.is_file():
        write_atomically(path, ((json.dumps(line, ensure_ascii=False) + "\n").encode() for line in lines))


def _lines(path: Path, words: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of a file; lines that contain none of the words may be left out."""
    if not path.is_file():
        return
    wanted = [word.encode() for word in words] or [b""]
    # As bytes: a line may end in the middle of a character.
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") and any(word in line for word in wanted):
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BadSpec: it is missing or damaged.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError(f"it holds a {type(fields).__name__}, not names with values")
        return fields
    except (OSError, ValueError, RecursionError) as error:
        raise BadSpec(f"{path} cannot be read as JSON: {error}.") from None


def check_shard_size(size: str) -> None:
    """Refuse a maximum size of a safetensors file that is not of the form "5GB".

    Raises:
        BadSpec: it is not.
    """
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]i?B", size):
        raise BadSpec(f"The shard size {size!r} is not of the form 5GB or 200MB.")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one piece."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
