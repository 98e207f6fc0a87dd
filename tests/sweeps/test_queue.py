"""The queue of runs, with a real keeper and real runs: it loses nothing, whoever is killed."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from launches import LONG, SMALL, small, until
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.errors import BadSpec, CannotWrite, LabError
from llm_adapters_lab.events import Started, Stopped
from llm_adapters_lab.files import write_json
from llm_adapters_lab.runs import background
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.processes import who
from llm_adapters_lab.runs.queue import keeper, keeper_lock, move_up, queued, remove
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.recovery.lock import hold
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import beside, process_of, state
from llm_adapters_lab.sweeps.queue import active, enqueue, keep, start_now, work


def ids(runs: list[Run]) -> list[str]:
    return [run.id for run in runs]


def seeds(*numbers: int, **changes: Any) -> list[RunSpec]:
    return [small(seed=number, **changes) for number in numbers]


def test_runs_are_started_in_order_and_a_failed_one_stops_no_other(root: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1 + 1?", "answer": "2"}\n' * 40, encoding="utf-8")
    broken = small(data={**SMALL["data"], "task": f"own:{rows}"})
    specs = [*seeds(1), broken, *seeds(2, 0)]
    added = enqueue([*specs, specs[0]], root)
    assert ids(added) == [spec.id for spec in specs] == ids(queued(root))
    assert {state(run).name for run in added} == {"queued"}
    assert keeper(root) is None
    rows.unlink()
    keep(root)
    until(lambda: not queued(root) and not active(root))
    assert [state(run).name for run in added] == ["finished", "failed", "finished", "finished"]
    assert "rows.jsonl" in state(added[1]).reason
    begun = [process_of(run) or {} for run in added]
    assert [each["time"] for each in begun] == sorted(each["time"] for each in begun)
    until(lambda: keeper(root) is None)
    assert added[0].summary["train"]["loss_last"] == run(specs[0], root=tmp_path / "here").summary["train"]["loss_last"]
    assert enqueue(specs, root) == [added[1]]
    remove(added[1])
    assert state(added[1]).name == "failed"


def test_a_killed_keeper_loses_nothing(root: Path) -> None:
    first, second = enqueue([small(train=LONG), small()], root)
    keep(root)
    until(lambda: state(first).works and first.log.exists() and queued(root) == [second])
    process = until(lambda: keeper(root))
    keep(root)  # there is one
    assert keeper(root) == process
    with pytest.raises(LabError, match=r"queue\.lock is held"):
        work(root)
    os.kill(process["pid"], signal.SIGKILL)
    until(lambda: keeper(root) is None)
    assert [state(run).name for run in (first, second)] == ["running", "queued"]
    assert queued(root) == [second]
    keep(root)
    again = until(lambda: keeper(root))
    until(lambda: len((first.log).read_bytes()) > 5000)
    assert state(second).name == "queued"  # the first works, whoever started it
    assert background.stop(first).name in ("stopping", "stopped")
    until(lambda: state(second).name == "finished")
    assert state(first).name == "stopped"
    until(lambda: not psutil.pid_exists(again["pid"]) or keeper(root) is None)


def test_order_can_be_changed_and_runs_removed(root: Path) -> None:
    runs = enqueue(seeds(0, 1, 2), root)
    move_up(runs[2])
    assert queued(root) == [runs[0], runs[2], runs[1]]
    move_up(runs[0])
    assert queued(root)[0] == runs[0]
    assert ids(enqueue(seeds(1, 3), root)) == [small(seed=1).id, small(seed=3).id]
    assert ids(queued(root)) == [small(seed=number).id for number in (0, 2, 1, 3)]
    assert background.stop(runs[2]).name == "unfinished"
    remove(runs[0])
    move_up(runs[0])
    assert ids(queued(root)) == [small(seed=1).id, small(seed=3).id]
    assert not beside(runs[0], "spec.json").exists()
    beside(runs[1], "queued").write_text("x", encoding="utf-8")  # damaged: the first
    assert queued(root)[0] == runs[1]
    with hold(keeper_lock(root)):
        keep(root)
        assert [path.name for path in root.glob(".processes/*.log")] == []


def test_a_run_can_be_started_at_once(root: Path) -> None:
    first, second = enqueue(seeds(0, 1), root)
    start_now(second)
    assert queued(root) == [first]
    until(lambda: state(second).name == "finished")
    assert state(first).name == "queued"
    remove(first)


def test_a_run_that_has_ended_is_not_active_while_its_process_exits(tmp_path: Path) -> None:
    record = Run(tmp_path / small().id)
    record.folder.mkdir()
    record.append(Started(record.id, 3, 1, 1, "cpu"))
    with hold(record.lock):
        assert active(tmp_path) == [record]  # as at a command line
        beside(record, "json").parent.mkdir()
        write_json(beside(record, "json"), who() | {"stop": True, "log": None, "time": 0.0})
        assert active(tmp_path) == [record]
        record.append(Stopped(record.id, "training"))
        assert state(record).name == "stopped"
        assert active(tmp_path) == []


def test_what_cannot_be_run_is_refused_before_anything_is_queued(root: Path, tmp_path: Path) -> None:
    wrong = small(adapter={"type": "lora", "at": "gate_up"})
    with pytest.raises(BadSpec, match=r"(?s)Nothing was started.*gate_up"):
        enqueue([small(), wrong], root)
    assert not root.exists()
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(CannotWrite, match="is a file where a folder is needed"):
        enqueue([small()], tmp_path / "file")
    assert enqueue([], root) == []


def test_a_spec_that_cannot_be_read_is_passed_over(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = enqueue([small()], root)
    beside(run, "spec.json").write_text('{"colour": 1}', encoding="utf-8")
    work(root)
    assert queued(root) == []
    assert "colour" in capsys.readouterr().err


def test_the_command(root: Path, tmp_path: Path) -> None:
    paths = []
    for number in range(2):
        paths.append(str(tmp_path / f"{number}.json"))
        Path(paths[-1]).write_text(json.dumps(small(seed=number).model_dump(mode="json")), encoding="utf-8")

    def ask(*words: str) -> Any:
        done = CliRunner().invoke(app, ["queue", *words, "--root", str(root), "--json"])
        assert done.exit_code == 0, done.stderr
        return [row["id"] for row in json.loads(done.stdout)]

    names = [small(seed=number).id for number in range(2)]
    root.mkdir()
    (root / ".processes").mkdir()
    with hold(keeper_lock(root)):
        assert ask(*paths) == names
        assert ask("--first", names[1][:-1]) == names[::-1]
    shown = CliRunner().invoke(app, ["queue", "--root", str(root)])
    assert "Nothing starts them now" in shown.stdout
    assert ask("--remove", paths[0]) == [names[1]]
    wrong = CliRunner().invoke(app, ["queue", "--remove", "nano", "--root", str(tmp_path)])
    assert wrong.exit_code == 2
    assert wrong.stderr == f"error: No run 'nano' waits under {tmp_path}. `queue` lists those that do.\n"
    assert ask("--start") == [names[1]]
    until(lambda: Run(root / names[1]).done)
    assert ask() == []
