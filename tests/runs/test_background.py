"""Runs in a process of their own: real processes, followed, stopped, killed and taken up again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from launches import LONG, SMALL, small, until

from llm_adapters_lab.errors import BadSpec, EmptyPlacement, LabError
from llm_adapters_lab.events import Started, Stopped
from llm_adapters_lab.runs import background, processes
from llm_adapters_lab.runs.background import follow, launch, stop
from llm_adapters_lab.runs.event_log import last_event, last_lines, read_new
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.processes import lives, who
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.recovery.lock import hold
from llm_adapters_lab.runs.status import State, beside, spec_of, state


def pid_of(record: Run) -> int:
    pid: int = json.loads(beside(record, "json").read_text(encoding="utf-8"))["pid"]
    return pid


def timeless(record: Run) -> tuple[Any, ...]:
    summary = record.summary
    for key in ("seconds", "tokens_per_second", "peak_memory_bytes"):
        del summary["train"][key]
    return summary, [e["loss"] for e in record.events("Step")], list(record.predictions())


def test_a_launched_run_is_the_run_of_this_process(root: Path) -> None:
    record = launch(small(), root / "other")
    assert state(record) == State("running", "Loading libraries, rows and weights.")
    assert spec_of(record.id, root / "other") == small()
    events = list(follow(record))
    assert state(record) == State("finished")
    assert events == list(record.events())
    assert [e["event"] for e in events][0::100] == ["Started"]
    assert timeless(record) == timeless(run(small(), root=root / "here"))
    began = pid_of(record)
    assert launch(small(), root / "other") == record
    assert pid_of(record) == began
    assert stop(record) == State("finished")
    assert spec_of(record.id[:-3], root / "other") == small()


def test_stop_acts_within_a_step_and_the_run_can_be_launched_again(root: Path) -> None:
    record = launch(small(train=LONG), root)
    until(lambda: (last_event(record.log) or {}).get("step", 0) >= 2)
    assert stop(record).name in ("stopping", "stopped")
    reached = list(record.events("Step"))[-1]["step"]
    stop(record)  # is asking once
    until(lambda: not state(record).works)
    assert state(record) == State("stopped", "Stopped while training.")
    assert list(record.events("Step"))[-1]["step"] <= reached + 1
    assert "Failed" not in {e["event"] for e in record.events()}
    # At once: the process that has said so may still be there.
    assert launch(small(train=LONG), root) == record
    assert state(record).works
    events = follow(record)
    assert [next(events)["event"] for _ in range(2)] == ["Started", "Step"]
    stop(record)
    assert list(events)[-1]["event"] == "Stopped"


@pytest.mark.parametrize("interrupts", [signal.SIG_DFL, signal.SIG_IGN], ids=["terminal", "background"])
def test_stop_before_the_run_has_begun(root: Path, interrupts: signal.Handlers) -> None:
    """Also where interrupts are ignored: a shell has what it starts in the background do so, and that is inherited."""
    before = signal.signal(signal.SIGINT, interrupts)
    try:
        record = launch(small(train=LONG), root)
    finally:
        signal.signal(signal.SIGINT, before)
    stop(record)
    until(lambda: not state(record).works)
    assert state(record).name == "stopped"
    assert not list(record.events("Step"))


def test_a_killed_process_is_found_dead(root: Path) -> None:
    record = launch(small(train=LONG), root)
    until(lambda: (last_event(record.log) or {}).get("event") == "Step")
    os.kill(pid_of(record), signal.SIGKILL)
    until(lambda: not state(record).works)
    found = state(record)
    assert found.name == "dead"
    assert f"process {pid_of(record)} on" in found.reason
    assert "by signal 9" in found.reason
    processes._children.clear()  # as another kernel sees it
    assert state(record).name == "dead"


def test_two_launches_are_one_process(root: Path) -> None:
    pids: list[int] = []

    def start() -> None:
        pids.append(pid_of(launch(small(train=LONG), root)))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 3
    assert len(set(pids)) == 1
    assert not list(root.glob(".processes/*.lock*"))


def test_a_bad_spec_is_refused_before_a_process_starts(root: Path) -> None:
    with pytest.raises(EmptyPlacement):
        launch(small(adapter={"type": "lora", "at": "gate_up"}), root)
    assert not root.exists()


def test_an_adapter_of_this_kernel_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background.get_adapter("lora").cls, "__module__", "__main__")
    with pytest.raises(BadSpec, match="another process cannot find it"):
        launch(small(), root)


def test_a_failing_run_says_why(root: Path) -> None:
    explodes = {"batch": 4, "max_steps": 9, "epochs": 9.0, "learning_rate": 10.0, "clip": 0.0, "schedule": "constant"}
    record = launch(small(adapter={"type": "full-fine-tuning"}, train=explodes), root)
    events = list(follow(record))
    found = state(record)
    assert found.name == "failed"
    assert "Lower train.learning_rate" in found.reason
    assert "(training)" in found.reason
    assert events[-1]["event"] == "Failed"


def test_a_refusal_inside_the_process_is_a_failure_too(root: Path) -> None:
    record = launch(small(data={"task": "mini-math", "rows": 24, "validation": 100000}), root)
    assert list(follow(record)) == []
    assert state(record).name == "failed"
    assert state(record).reason.startswith("data.validation = 100000 leaves none")


def test_a_run_outlives_who_launched_it(root: Path) -> None:
    spec = root.parent / "spec.json"
    spec.write_text(json.dumps(SMALL), encoding="utf-8")
    code = (
        "import os, signal; from llm_adapters_lab.runs.background import launch; "
        "from llm_adapters_lab.runs.spec import RunSpec; "
        f"launch(RunSpec.load({str(spec)!r}), {str(root)!r}); os.killpg(0, signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], start_new_session=True, check=False)
    assert done.returncode == -signal.SIGKILL
    record = Run(root / small().id)
    assert state(record).works
    assert list(follow(record))[-1]["event"] == "Finished"


def test_a_run_without_a_known_process(tmp_path: Path) -> None:
    record = Run(tmp_path / "one")
    assert state(record).name == "unfinished"
    record.folder.mkdir()
    record.append(Started("one", 3, 1, 1, "cpu"))
    assert state(record).name == "unfinished"
    record.append(Stopped("one", "training"))
    assert state(record) == State("stopped", "Stopped while training.")
    with pytest.raises(BadSpec):
        spec_of("none", tmp_path)


def test_a_process_on_another_host_is_believed_while_its_log_grows(tmp_path: Path) -> None:
    record = Run(tmp_path / "one")
    record.folder.mkdir()
    beside(record, "json").parent.mkdir()
    papers = who() | {"host": "elsewhere", "stop": False, "log": None, "time": time.time() - 7200}
    beside(record, "json").write_text(json.dumps(papers), encoding="utf-8")
    record.append(Started("one", 3, 1, 1, "cpu"))
    assert state(record) == State("running")
    with pytest.raises(LabError, match=f"kill {papers['pid']}"):
        stop(record)
    os.utime(record.folder / "events.jsonl", (time.time() - 3600,) * 2)
    assert state(record).name == "dead"
    assert "on elsewhere" in state(record).reason


def test_news_keeps_its_place_and_leaves_a_torn_line(tmp_path: Path) -> None:
    record = Run(tmp_path / "one")
    assert read_new(record.log).events == []
    record.folder.mkdir()
    log = record.folder / "events.jsonl"
    log.write_text('{"event": "A", "n": 1}\n{"event": "B", "n"', encoding="utf-8")
    found = read_new(record.log)
    assert [e["n"] for e in found.events] == [1]
    assert not found.more
    assert (last_event(record.log) or {})["n"] == 1
    with log.open("a", encoding="utf-8") as file:
        file.write(": 2}\n")
    found = read_new(record.log, found.cursor)
    assert [e["n"] for e in found.events] == [2]
    assert read_new(record.log, found.cursor).events == []
    log.write_text('{"event": "A", "n": 7}\n{"event": "B", "n": 2}\n', encoding="utf-8")
    again = read_new(record.log, found.cursor)
    assert again.restarted
    assert [e["n"] for e in again.events] == [7, 2]
    log.unlink()
    assert read_new(record.log, again.cursor).restarted


def test_a_long_log_is_read_in_pieces_and_only_once(tmp_path: Path) -> None:
    record = Run(tmp_path / "one")
    record.folder.mkdir()
    line = '{"event": "Step", "step": %d, "loss": 1.0, "text": "é' + "x" * 100 + '"}\n'
    (record.folder / "events.jsonl").write_text("".join(line % i for i in range(100_000)), encoding="utf-8")
    steps, found = [], read_new(record.log, piece=1 << 20)
    steps += found.events
    while found.more:
        found = read_new(record.log, found.cursor, piece=1 << 20)
        steps += found.events
    assert [s["step"] for s in steps] == list(range(100_000))
    record.append(Started("one", 3, 1, 1, "cpu"))
    began = time.process_time()
    assert [e["event"] for e in read_new(record.log, found.cursor).events] == ["Started"]
    assert last_event(record.log) is not None
    assert time.process_time() - began < 0.05
    assert read_new(record.log, piece=5).events[0]["step"] == 0  # a line that is longer than a piece


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log) == []
    log.write_bytes(b"one\n\n  0%\r 50%\r100%\nbad \xff byte\nhalf")
    assert last_lines(log, 3) == ["100%", "bad \ufffd byte", "half"]


def test_a_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with hold(lock), pytest.raises(LabError, match="held by"), hold(lock, seconds=0.1):
        pass
    assert not lock.exists()
    dead = who() | {"begun": 1}
    assert lives(dead) is False
    lock.write_text(json.dumps(dead), encoding="utf-8")
    with hold(lock, seconds=1):
        assert json.loads(lock.read_text(encoding="utf-8")) == who()
    lock.write_text("", encoding="utf-8")  # its maker died before it could write
    os.utime(lock, (1, 1))
    with hold(lock, seconds=1):
        pass
    assert lives(who() | {"host": "elsewhere"}) is None


def test_of_many_that_find_a_stale_lock_one_at_a_time_holds_it(tmp_path: Path) -> None:
    lock, inside, most = tmp_path / "a.lock", [0], [0]
    lock.write_text(json.dumps(who() | {"begun": 1}), encoding="utf-8")

    def take() -> None:
        with hold(lock):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not list(tmp_path.iterdir())
