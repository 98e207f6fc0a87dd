"""Disks that are full, read-only or forget: nothing that was saved is lost, and what is wrong is said."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_lab import STEPS, Lab, until
from nursery import FIELDS

from llm_adapters_lab.files import PART
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training import checkpoints

NOBODY = 65534


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 20 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system: this needs root and the right to mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def leftovers(record: Run) -> list[Path]:
    return list(record.folder.glob(f"**/*{PART}"))


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(lab: Lab, disk: Path) -> None:
    record, child = lab.record(disk), lab.start(disk)
    until(lambda: checkpoints.steps(record.folder), child)
    free = os.statvfs(disk)
    (disk / "other").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - 100_000)))
    assert child.wait() == 2, child.said
    assert "No space left on device" in child.said and "Make room" in child.said
    assert "Traceback" not in child.said
    assert not leftovers(record)
    kept = checkpoints.steps(record.folder)
    assert kept and not checkpoints.newest(record.folder, {})[1]
    assert record.summary["status"] == "failed"
    assert record.summary["advice"] == f"Run the same spec again: it resumes after step {kept[-1]}."
    (disk / "other").unlink()
    lab.finish(disk)


def test_a_file_that_may_not_grow_ends_the_run_too(lab: Lab, tmp_path: Path) -> None:
    """A full disk for those who may not mount one: the checkpoint is larger than any file may be."""
    record, child = lab.record(tmp_path), lab.start(tmp_path, file=100_000)
    assert child.wait() == 2, child.said
    assert "File too large" in child.said and "Traceback" not in child.said
    assert not leftovers(record)
    assert not checkpoints.steps(record.folder)
    assert record.summary["advice"] == "Run the same spec again: it resumes at the beginning."
    lab.finish(tmp_path)


def protect(folder: Path, sign: str) -> bool:
    """Forbid all change in a folder to everybody, root included, or allow it again."""
    command = ["chattr", "-R", f"{sign}i", str(folder)]
    return shutil.which("chattr") is not None and subprocess.run(command, capture_output=True).returncode == 0


def test_a_folder_that_turns_read_only(lab: Lab, tmp_path: Path) -> None:
    record, child = lab.record(tmp_path), lab.start(tmp_path)
    until(lambda: checkpoints.steps(record.folder), child)
    child.send(signal.SIGSTOP)
    able = protect(tmp_path, "+")
    child.send(signal.SIGCONT)
    try:
        if not able:
            child.wait()
            pytest.skip("may not make files immutable: this needs root and a file system that can")
        assert child.wait() == 2, child.said
        assert "Operation not permitted" in child.said and "lift the protection" in child.said
        assert "Traceback" not in child.said
        again = lab.start(tmp_path)
        assert again.wait() == 2
        assert "is not writable. Choose another folder" in again.said
    finally:
        protect(tmp_path, "-")
    lab.finish(tmp_path)


def test_a_folder_of_somebody_else_is_refused_before_anything_loads(lab: Lab) -> None:
    with tempfile.TemporaryDirectory() as name:  # outside of pytest's folders, which are closed to others
        folder = Path(name)
        folder.chmod(0o555)
        shutil.copy(lab.spec, folder / "spec.json")
        (folder / "spec.json").chmod(0o444)
        child = lab.nursery.start(
            *("run", folder / "spec.json", "--root", folder / "runs"), **({} if os.getuid() else {"user": NOBODY})
        )
        assert child.wait() == 2, child.said
        assert f"{folder} is not writable" in child.said and "Traceback" not in child.said
        assert {path.name for path in folder.iterdir()} == {"spec.json"}
        folder.chmod(0o755)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_the_newest_checkpoint_is_damaged_while_nobody_looks(damage: str, lab: Lab, tmp_path: Path) -> None:
    record, child = lab.record(tmp_path), lab.start(tmp_path)
    until(lambda: len(checkpoints.steps(record.folder)) > 1, child)
    child.send(signal.SIGKILL)
    child.wait()
    before, last = checkpoints.steps(record.folder)
    path = record.folder / "checkpoints" / f"{last:08}" / "state.safetensors"
    if damage == "missing":
        shutil.rmtree(path.parent)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 64
        path.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    lab.finish(tmp_path)
    assert next(record.events("Resumed"))["step"] == before
    told = [e["text"] for e in record.events("Noticed")]
    assert (damage == "missing") == (not told)  # of one that is not there nothing is known
    assert all(f"The checkpoint of step {last} cannot be used" in text for text in told)


def test_clocks_may_jump(lab: Lab, tmp_path: Path) -> None:
    """No order in time is taken from a clock: files of tomorrow and of long ago are as good as any."""
    record, child = lab.record(tmp_path), lab.start(tmp_path)
    until(lambda: len(checkpoints.steps(record.folder)) > 1, child)
    child.send(signal.SIGKILL)
    child.wait()
    old, new = (record.folder / "checkpoints" / f"{step:08}" for step in checkpoints.steps(record.folder))
    newest = int(new.name)
    for path in (*record.folder.glob("*"), old, *old.glob("*")):
        os.utime(path, (time.time() + 1e7,) * 2)
    for path in (new, *new.glob("*")):
        os.utime(path, (1e6, 1e6))
    lab.finish(tmp_path)
    assert next(record.events("Resumed"))["step"] == newest


def test_a_file_of_rows_that_changes_is_refused(lab: Lab, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    text = "question,solution\n" + "".join(f"What is {i} + {i}?,{2 * i}\n" for i in range(20))
    rows.write_text(text, encoding="utf-8")
    task = f"own:{rows}?instruction=question&answer=solution&form=number"
    fields = {**FIELDS, "data": {"task": task, "rows": 12}, "eval": {}}
    spec, record = tmp_path / "spec.json", Run(tmp_path / RunSpec.parse(fields).id)
    spec.write_text(json.dumps(fields), encoding="utf-8")

    def start(*words: str) -> str:
        child = lab.nursery.start("run", spec, "--root", tmp_path, *words)
        if words:
            assert child.wait() == 0, child.said
        elif not checkpoints.steps(record.folder):
            until(lambda: checkpoints.steps(record.folder), child)
            child.send(signal.SIGKILL)
            child.wait()
        else:
            child.wait()
        return child.said

    start()
    kept = checkpoints.steps(record.folder)
    rows.write_text(text.replace("What is 7 + 7?,14", "What is 7 + 7?,15"), encoding="utf-8")
    said = start()
    assert "the train rows changed" in said and "--fresh" in said and "Traceback" not in said
    assert checkpoints.steps(record.folder) == kept
    rows.write_text(text, encoding="utf-8")
    assert "resumes training after step" in start()
    assert record.done
    rows.write_text(text.replace("What is 7 + 7?,14", "What is 7 + 7?,15"), encoding="utf-8")
    start("--fresh")
    assert not list(record.events("Resumed"))
    assert len(list(record.events("Step"))) == STEPS
