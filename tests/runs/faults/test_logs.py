"""Logs: a torn end, a full disk in the middle of a line, and a million events that take no memory."""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_adapters_lab.events import Stopped
from llm_adapters_lab.runs.event_log import last_event, read_new
from llm_adapters_lab.runs.record import Run

MILLION = 1_000_000


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Run:
    record = Run(tmp_path_factory.mktemp("long"))
    lines = (f'{{"event": "Step", "step": {i}, "loss": 1.0}}\n' for i in range(1, MILLION + 1))
    with (record.folder / "events.jsonl").open("w", encoding="utf-8") as file:
        file.write('{"event": "Started", "id": "long"}\n')
        file.writelines(lines)
    record.append(Stopped("long", "training"))
    return record


def follow(record: Run) -> int:
    count, found = 0, read_new(record.log)
    while True:
        count += len(found.events)
        if not found.more:
            return count
        found = read_new(record.log, found.cursor)


READERS: dict[str, tuple[Callable[[Run], int], int]] = {
    "those of a kind": (lambda record: sum(1 for _ in record.events("Started", "Stopped")), 2),
    "all": (lambda record: sum(1 for _ in record.events()), MILLION + 2),
    "as they come": (follow, MILLION + 2),
    "the last": (lambda record: len([last_event(record.log)]), 1),
    "the summary": (lambda record: int(record.summary["status"] == "stopped"), 1),
}


@pytest.mark.parametrize("name", READERS)
def test_readers_of_a_million_events_need_no_memory(name: str, long: Run) -> None:
    read, expected = READERS[name]
    began = time.process_time()
    assert read(long) == expected
    assert time.process_time() - began < 10
    # Tracing is slow, so it is done over the first part of the reading.
    tracemalloc.start()
    try:
        if name == "all":
            for _, _event in zip(range(100_000), long.events(), strict=False):
                pass
        elif name == "as they come":
            place = None
            for _ in range(3):
                place = read_new(long.log, place).cursor
        else:
            read(long)
        assert tracemalloc.get_traced_memory()[1] < 60e6  # bytes, most of them a piece of 4 MiB and its events
    finally:
        tracemalloc.stop()


def test_a_torn_end_is_no_event(tmp_path: Path) -> None:
    record = Run(tmp_path)
    record.append(Stopped("a", "training"))
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write('{"event": "Failed", "error": "é'.encode()[:-1])
    assert [e["event"] for e in record.events()] == ["Stopped"]
    assert (last_event(record.log) or {})["event"] == "Stopped"
    assert record.summary["status"] == "stopped"
    assert len(read_new(record.log).events) == 1
