"""Starting runs from a panel: directly, through the queue, or in the kernel."""

from pathlib import Path

import pytest
from launches import LONG, small, until

from llm_adapters_lab.errors import CannotWrite, LabError
from llm_adapters_lab.runs import background
from llm_adapters_lab.runs.queue import keeper, queued, remove
from llm_adapters_lab.runs.status import state
from widgets.kit.launching import keep, start, start_now
from widgets.kit.workspace import Workspace


def test_the_first_starts_at_once_and_the_next_wait(root: Path) -> None:
    workspace = Workspace(root)
    (first,) = start([small(train=LONG)], workspace)
    assert state(first).name == "running"
    assert start([small(train=LONG)], workspace) == [first]
    assert queued(root) == []
    runs = start([small(), small(seed=1)], workspace)
    assert queued(root) == runs
    workspace.runs.refresh()
    assert [entry.state.name for entry in workspace.runs.entries.values()].count("queued") == 2
    start_now(runs[1])
    until(lambda: state(runs[1]).name == "finished")
    assert queued(root) == runs[:1]
    background.stop(first)
    until(lambda: state(runs[0]).name == "finished")
    until(lambda: keeper(root) is None)
    assert start([small(), small(seed=1)], workspace) == runs
    assert queued(root) == []


def test_a_single_run_waits_behind_a_queue_without_a_keeper(root: Path) -> None:
    from llm_adapters_lab.sweeps.queue import enqueue

    (first,) = enqueue([small()], root)
    workspace = Workspace(root)
    (second,) = start([small(seed=1)], workspace)
    remove(second)
    keep(workspace)
    until(lambda: state(first).name == "finished")
    assert state(second).name == "unfinished"


def test_a_kernel_does_one_run(root: Path) -> None:
    workspace = Workspace(root, process=False)
    with pytest.raises(LabError, match="2 runs cannot share this kernel"):
        start([small(), small(seed=1)], workspace)
    (run,) = start([small()], workspace)
    until(lambda: state(run).name == "finished")
    assert not (root / ".processes").exists()
    assert start([small()], workspace) == [run]


def test_a_root_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for specs in ([small()], [small(), small(seed=1)]):
        with pytest.raises(CannotWrite, match="is a file where a folder is needed"):
            start(specs, Workspace(tmp_path / "file"))
