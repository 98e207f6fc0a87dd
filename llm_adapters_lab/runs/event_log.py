"""Tail: what is new in the log of a run, read without reading again what was read before."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PIECE = 4 << 20
"""Bytes read at a time, so that a long log does not hold up who shows it."""
_MARK = 256


@dataclass(frozen=True)
class Place:
    """How far a log has been read.

    Attributes:
        offset: bytes read, up to the end of a line.
        mark: the last bytes before it; they tell when the log was begun anew. Events hold times in full precision, so
            two attempts differ there, or are the same so far.
    """

    offset: int = 0
    mark: bytes = b""


@dataclass(frozen=True)
class News:
    """What has been added to a log.

    Attributes:
        events: in order, as plain data.
        place: to go on from.
        anew: the log was begun anew, and `events` are its first: forget what was read before.
        more: there is more already; ask again at once.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    place: Place = field(default_factory=Place)
    anew: bool = False
    more: bool = False


def news(log: Path, since: Place | None = None, piece: int = PIECE) -> News:
    """Read the events that came after a place; a torn last line is left for the next time.

    Args:
        log: of a run, which may be running, and may have no log yet.
        since: the place of the last news; default: the beginning.
        piece: read about so many bytes at most.
    """
    since = since or Place()
    try:
        file = log.open("rb")
    except OSError:
        return News(anew=since.offset > 0)
    with file:
        file.seek(since.offset - len(since.mark))
        anew = file.read(len(since.mark)) != since.mark
        start = 0 if anew else since.offset
        file.seek(start)
        data = file.read(piece)
        while b"\n" not in data and (further := file.read(piece)):
            data += further
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            return News(place=Place() if anew else since, anew=anew)
        more = bool(file.read(1)) or len(whole) < len(data)
    events = [json.loads(line) for line in whole.splitlines()]
    mark = whole[-_MARK:] if anew or len(whole) >= _MARK else (since.mark + whole)[-_MARK:]
    return News(events, Place(start + len(whole), mark), anew, more and len(data) >= piece)


def last_event(log: Path) -> dict[str, Any] | None:
    """Return the last whole event of a log; only its end is read."""
    lines = _end(log, whole=True)
    event: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return event


def last_lines(path: Path, count: int = 20) -> list[str]:
    """Return the last lines of a text file that may be missing or still being written; bad bytes become �."""
    lines = [line.decode("utf-8", "replace").rpartition("\r")[2].rstrip() for line in _end(path, count=count)]
    return [line for line in lines if line][-count:]


def _end(path: Path, count: int = 1, *, whole: bool = False) -> list[bytes]:
    """Return at least the last `count` lines, as far as there are so many; with `whole`, those that have ended."""
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
    # What stands before the first line end may be the end of a line.
    lines = data.split(b"\n")[0 if size <= span else 1 :]
    return [line for line in lines if line]
