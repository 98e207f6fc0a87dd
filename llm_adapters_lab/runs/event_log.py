"""Read the event log of a run incrementally, from where an earlier read has ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PIECE = 4 << 20
"""Bytes read at a time, so that a long log does not block the reader."""
_MARK = 256


@dataclass(frozen=True)
class Cursor:
    """A position in a log.

    Attributes:
        offset: bytes read, up to the end of a line.
        mark: the last bytes before it, by which a restarted log is recognised. Events hold times in full precision, so
            the logs of two attempts differ there.
    """

    offset: int = 0
    mark: bytes = b""


@dataclass(frozen=True)
class NewEvents:
    """The events added to a log since an earlier read.

    Attributes:
        events: in order, as plain data.
        cursor: where the next read starts.
        restarted: the log was restarted, and `events` are its first: forget what was read before.
        more: there is more to read already.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    cursor: Cursor = field(default_factory=Cursor)
    restarted: bool = False
    more: bool = False


def read_new(log: Path, since: Cursor | None = None, piece: int = PIECE) -> NewEvents:
    """Read the events after a cursor; an incomplete last line is left for the next read.

    Args:
        log: of a run, which may be running, and may have no log yet.
        since: the cursor of the previous read; by default the beginning.
        piece: number of bytes to read, at most.
    """
    since = since or Cursor()
    try:
        file = log.open("rb")
    except OSError:
        return NewEvents(restarted=since.offset > 0)
    with file:
        file.seek(since.offset - len(since.mark))
        restarted = file.read(len(since.mark)) != since.mark
        start = 0 if restarted else since.offset
        file.seek(start)
        data = file.read(piece)
        while b"\n" not in data and (further := file.read(piece)):
            data += further
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            return NewEvents(cursor=Cursor() if restarted else since, restarted=restarted)
        more = bool(file.read(1)) or len(whole) < len(data)
    events = [json.loads(line) for line in whole.splitlines()]
    mark = whole[-_MARK:] if restarted or len(whole) >= _MARK else (since.mark + whole)[-_MARK:]
    return NewEvents(events, Cursor(start + len(whole), mark), restarted, more and len(data) >= piece)


def last_event(log: Path) -> dict[str, Any] | None:
    """Return the last complete event of a log; only the end of the file is read."""
    lines = _end(log, whole=True)
    event: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return event


def last_lines(path: Path, count: int = 20) -> list[str]:
    """Return the last lines of a text file, which may be missing or still being written; invalid bytes become �."""
    lines = [line.decode("utf-8", "replace").rpartition("\r")[2].rstrip() for line in _end(path, count=count)]
    return [line for line in lines if line][-count:]


def _end(path: Path, count: int = 1, *, whole: bool = False) -> list[bytes]:
    """Return at least the last `count` lines, or all there are; with `whole`, only terminated ones."""
    try:
        file = path.open("rb")
    except OSError:
        return []
    with file:
        size, span = file.seek(0, 2), 1 << 16
        while True:
            file.seek(max(0, size - span))
            data = file.read(span)
            if whole:
                data = data[: data.rfind(b"\n") + 1]
            if size <= span or data.count(b"\n") > count or span >= 1 << 26:
                break
            span *= 4
    # The first piece may be the rest of a longer line.
    lines = data.split(b"\n")[0 if size <= span else 1 :]
    return [line for line in lines if line]
