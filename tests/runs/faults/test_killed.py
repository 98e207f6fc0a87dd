"""Killed at any moment, a run goes on to the same bits; asked to end, it is saved and says how it ended."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_lab import STEPS, Lab, until
from nursery import FIELDS

from llm_adapters_lab.files import PART
from llm_adapters_lab.runs.event_log import last_event
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training import checkpoints

Moment = Callable[[], object]


def moments(lab: Lab, root: Path, chance: random.Random) -> list[tuple[str, Moment]]:
    """Return four moments of a run, by stage, in the order in which they come."""
    folder = lab.record(root).folder
    began = time.monotonic()
    early, first, second = chance.uniform(0.0, 0.5), *sorted(chance.sample(range(1, STEPS - 2), 2))
    rows = chance.randrange(1, 9)

    def answered() -> bool:
        path = folder / "predictions.jsonl"
        return path.is_file() and path.read_bytes().count(b"\n") >= rows

    def saving() -> bool:
        return lab.steps(root) >= second and any(folder.glob(f"**/*{PART}"))

    told: list[tuple[str, Moment]] = [
        ("start", lambda: time.monotonic() > began + early),
        ("training", lambda: lab.steps(root) >= first),
        ("saving", saving),
        ("scoring", answered),
    ]
    return told


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_five_random_moments_it_loses_nothing(seed: int, lab: Lab, tmp_path: Path) -> None:
    chance, record, spec = random.Random(seed), lab.record(tmp_path), RunSpec.load(lab.spec)
    reached, codes = 0, []
    for stage, moment in moments(lab, tmp_path, chance):
        child = lab.start(tmp_path)
        until(moment, child)
        time.sleep(chance.uniform(0.0, 0.05))
        child.send(signal.SIGKILL)
        codes.append(child.wait())
        assert codes[-1] in (-signal.SIGKILL, 0), (stage, child.said)
        # What was saved stays: the next attempt begins no earlier than the one before could.
        kept = STEPS if record.is_trained(spec) else max(checkpoints.steps(record.folder), default=0)
        assert kept >= reached
        reached = kept
    assert 0 not in codes[:-1]  # else this has shown nothing; the last may have come too late
    lab.finish(tmp_path)
    assert [e["step"] for e in record.events("Step")] == list(range(1, STEPS + 1))
    page = tmp_path / "report.html"
    child = lab.nursery.start("report", record.id, "--root", tmp_path, "--out", page)
    time.sleep(chance.uniform(0.0, 3.0))
    child.send(signal.SIGKILL)
    child.wait()
    assert not page.is_file() or page.read_text(encoding="utf-8").endswith("</html>\n")
    assert not record.lock.exists()


def test_killed_over_its_last_word_it_leaves_nothing_more(lab: Lab, tmp_path: Path) -> None:
    for number in range(3):  # with the result written, and the lock not yet taken away
        root = tmp_path / str(number)
        child = lab.start(root)
        until((lab.record(root).folder / "summary.json").is_file, child)
        child.send(signal.SIGKILL)
        child.wait()
        lab.finish(root)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_end_it_is_saved_and_says_so(number: int, code: int, lab: Lab, tmp_path: Path) -> None:
    record, child = lab.record(tmp_path), lab.start(tmp_path)
    until(lambda: lab.steps(tmp_path) >= 2, child)
    began = time.monotonic()
    child.send(number)
    assert child.wait() == code, child.said
    assert time.monotonic() - began < 5
    assert record.summary["status"] == "stopped"
    assert checkpoints.steps(record.folder)[-1] == lab.steps(tmp_path) < STEPS
    assert "Run the same spec again: it resumes after step" in child.said
    lab.finish(tmp_path)


def test_asked_twice_it_ends_at_once(lab: Lab, tmp_path: Path) -> None:
    child = lab.start(tmp_path)
    until(lambda: lab.steps(tmp_path) >= 2, child)
    child.send(signal.SIGINT)
    child.send(signal.SIGINT)
    assert child.wait() == 130, child.said
    assert lab.record(tmp_path).summary["status"] in ("stopped", "failed")  # "KeyboardInterrupt" in the second case
    lab.finish(tmp_path)


def test_asked_to_end_while_it_scores(lab: Lab, tmp_path: Path) -> None:
    rows = FIELDS["eval"] | {"rows": 60}  # more than it can have done before it is asked
    lab = Lab.of(lab.nursery, tmp_path, FIELDS | {"eval": rows})
    record, child = lab.record(tmp_path), lab.start(tmp_path)
    until(lambda: (last_event(record.log) or {}).get("event") == "Scoring", child)
    child.send(signal.SIGTERM)
    assert child.wait() == 143, child.said
    assert "it resumes with scoring" in child.said
    lab.finish(tmp_path)


def test_the_command_itself_is_killed_ended_and_taken_up(lab: Lab, tmp_path: Path) -> None:
    """The same without a nursery, from the first byte of the interpreter on."""
    command = [sys.executable, "-m", "llm_adapters_lab", "run", str(lab.spec), "--root", str(tmp_path), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        before = lab.steps(tmp_path)
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            end = time.monotonic() + 120
            while lab.steps(tmp_path) <= before + 2 and child.poll() is None:
                assert time.monotonic() < end
            child.send_signal(number)
            assert child.wait(60) == code
    lab.finish(tmp_path)
