"""The process that waits for a run: what it does is what a new process does, and it never stays behind."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from launches import small, until

import llm_adapters_lab
from llm_adapters_lab.cli import waiting
from llm_adapters_lab.runs.background import follow
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.processes import exit_code
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.status import State, beside, process_of, state
from widgets.kit import warm

KERNEL = """
import os, select, signal
from widgets.kit import warm
process = warm.prepare()
select.select([process.stdout], [], [])
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no process waits there")


@pytest.fixture(autouse=True)
def none_waits(root: Path) -> Iterator[None]:
    warm.discard()
    yield
    warm.discard()


def lasting(record: Run) -> tuple[Any, ...]:
    summary = record.summary
    for key in ("seconds", "tokens_per_second", "peak_memory_bytes"):
        del summary["train"][key]
    steps = [(e["loss"], e["gradient_norm"]) for e in record.events("Step")]
    adapter = {path.name: path.read_bytes() for path in record.folder.glob("**/*.safetensors")}
    return summary, steps, list(record.predictions()), adapter


def test_it_answers_and_becomes_the_process_of_a_run(root: Path, tmp_path: Path) -> None:
    process = warm.prepare()
    assert warm.prepare() is process
    assert warm.begin(["list"], tmp_path / "log") is None  # it is not ready
    idle = psutil.Process(process.pid)
    paths = [tmp_path / f"{number}.json" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_text(json.dumps(small(seed=number).model_dump(mode="json")), encoding="utf-8")

    async def kernel() -> list[tuple[int, str, str]]:
        first = asyncio.create_task(warm.answer("doctor", str(paths[0]), "--json"))
        while not idle.children():
            await asyncio.sleep(0.01)
        first.cancel()
        rest = await asyncio.gather(*(warm.answer("doctor", str(path), "--json") for path in paths[1:]))
        assert first.cancelled()
        return [*rest, await warm.answer("doctor", str(tmp_path / "none.json"))]

    *answers, refused = asyncio.run(asyncio.wait_for(kernel(), 120))
    assert [(code, json.loads(out)["id"]) for code, out, _ in answers] == [(0, small(seed=n).id) for n in (1, 2)]
    assert refused[0] == 2
    assert refused[2].startswith("error: ")
    until(lambda: not idle.children())

    idle.suspend()  # so that it is not further than the order when it is looked at
    record = warm.launch(small(), root / "waited")
    assert (process_of(record) or {})["pid"] == process.pid
    assert state(record) == State("running", "Loading libraries, rows and weights.")
    assert warm.begin(["list"], tmp_path / "log") is None  # one order only
    idle.resume()
    assert list(follow(record)) == list(record.events())
    assert state(record) == State("finished")
    until(lambda: exit_code(process_of(record) or {}) is not None)
    assert exit_code(process_of(record) or {}) == 0
    assert '"status": "finished"' in beside(record, "log").read_text(encoding="utf-8")
    assert lasting(record) == lasting(run(small(), root=root / "here"))


def test_a_signal_that_comes_as_soon_as_there_is_a_copy_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork, heard = os.fork, []

    def signalled() -> int:
        if not (pid := fork()):
            os.kill(os.getpid(), signal.SIGTERM)
        return pid

    monkeypatch.setattr(os, "fork", signalled)
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        copy = waiting.fork(["list", "--root", str(tmp_path)], tmp_path / "log")
        assert os.waitstatus_to_exitcode(os.waitpid(copy["pid"], 0)[1]) == -signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_one_that_is_out_of_date_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = warm.prepare()
    monkeypatch.setenv("LAB_TEST", "1")
    assert warm.begin(["list"], tmp_path / "log") is None
    assert process.poll() is not None
    seen = [warm._surroundings()]
    monkeypatch.chdir(tmp_path)
    seen.append(warm._surroundings())
    monkeypatch.setattr(llm_adapters_lab, "__path__", [*llm_adapters_lab.__path__, str(tmp_path)])
    for text in ("one", "two"):
        (tmp_path / "adapter.py").write_text(text, encoding="utf-8")
        seen.append(warm._surroundings())
    assert all(one != other for one, other in itertools.pairwise(seen))


def test_it_ends_with_the_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", KERNEL], capture_output=True, text=True, check=False)
    assert done.returncode == -9
    until(lambda: not psutil.pid_exists(int(done.stdout)))
