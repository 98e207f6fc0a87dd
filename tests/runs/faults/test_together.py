"""Several processes and one run: one works on it, the others wait for its result or say who does."""

import json
import signal
import warnings
from pathlib import Path

import pytest
from fault_lab import STEPS, Lab, until
from records import timeless

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.events import Event, Noticed
from llm_adapters_lab.runs.background import launch, stop
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.processes import who
from llm_adapters_lab.runs.recovery.lock import hold
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import State, beside, state


def test_of_two_that_start_at_once_one_works_and_both_have_the_result(lab: Lab, tmp_path: Path) -> None:
    record = lab.record(tmp_path)
    first, second = lab.start(tmp_path), lab.start(tmp_path)
    assert first.wait() == 0, first.said
    assert second.wait() == 0, second.said
    assert timeless(record) == lab.whole
    assert len(list(record.events("Started"))) == 1
    assert [e["step"] for e in record.events("Step")] == list(range(1, STEPS + 1))
    assert ("waiting for its result" in first.said) != ("waiting for its result" in second.said)


def test_who_waits_takes_over_when_the_other_is_killed(lab: Lab, tmp_path: Path) -> None:
    record, first = lab.record(tmp_path), lab.start(tmp_path)
    until(lambda: lab.steps(tmp_path) >= 3, first)
    first.send(signal.SIGSTOP)  # so that it is at work until then
    second = lab.start(tmp_path)
    until(lambda: "waiting for its result" in second.said, first)
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, first.said
    assert f'"pid": {first.pid}' in second.said
    assert second.wait() == 0, second.said
    assert next(record.events("Resumed"))["step"] >= 2
    assert timeless(record) == lab.whole


def test_who_waits_can_be_asked_to_end(lab: Lab, tmp_path: Path) -> None:
    first = lab.start(tmp_path)
    until(lambda: lab.steps(tmp_path) >= 1, first)
    first.send(signal.SIGSTOP)
    second = lab.start(tmp_path)
    until(lambda: "waiting for its result" in second.said, first)
    second.send(signal.SIGTERM)
    assert second.wait() == 143, second.said
    first.send(signal.SIGCONT)
    assert first.wait() == 0, first.said
    assert timeless(lab.record(tmp_path)) == lab.whole


def test_panel_and_notebook_leave_a_run_of_the_command_line_alone(lab: Lab, tmp_path: Path) -> None:
    spec, record, child = RunSpec.load(lab.spec), lab.record(tmp_path), lab.start(tmp_path)
    until(lambda: lab.steps(tmp_path) >= 1, child)
    child.send(signal.SIGSTOP)
    assert state(record) == State("running")
    assert launch(spec, tmp_path).folder == record.folder.resolve()
    assert not beside(record, "json").exists()  # no process was started
    with pytest.raises(LabError, match=f"kill -INT {child.pid}"):
        stop(record)
    heard: list[Event] = []

    def listen(event: Event) -> None:
        heard.append(event)
        child.send(signal.SIGCONT)

    assert run(spec, root=tmp_path, on_event=listen).done
    assert [type(event) for event in heard] == [Noticed]
    assert child.wait() == 0, child.said
    assert state(record) == State("finished")
    assert timeless(record) == lab.whole


def test_the_lock_of_a_dead_process_holds_nobody_up(lab: Lab, tmp_path: Path) -> None:
    record = lab.record(tmp_path)
    record.folder.mkdir()
    record.lock.write_text(f"{who()}", encoding="utf-8")
    lab.finish(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(RunSpec.load(lab.spec), root=tmp_path).done


def test_the_lock_of_a_process_that_died_after_its_last_word_is_taken_away(lab: Lab, tmp_path: Path) -> None:
    lab.finish(tmp_path)
    record = lab.record(tmp_path)
    record.lock.write_text(json.dumps(who() | {"pid": 2**22 + 1}), encoding="utf-8")
    lab.finish(tmp_path)  # everything is there already, and nothing more afterwards
    with hold(record.lock):  # that of a process which is at work stays
        lab.start(tmp_path).wait()
        assert record.lock.is_file()
