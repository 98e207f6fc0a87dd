"""Several processes that do one run together: the same result as one alone, and one end for all of them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Lab, until
from nursery import ROOT, Child
from safetensors.torch import load_file, save_file

from llm_adapters_lab.models import NANO
from llm_adapters_lab.record import Run
from llm_adapters_lab.spec import RunSpec

SECONDS = 30.0
FIELDS: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4},
    "data": {"task": "mini-math", "rows": 24, "validation": 3},
    "train": {"batch": 4, "max_steps": 8, "epochs": 9.0, "learning_rate": 1e-2, "evaluate_every": 4},
    "eval": {"tasks": ["mini-bool", "mini-addsub"], "rows": 7, "batch": 2, "max_new_tokens": 4},
}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def spec(folder: Path, **changes: Any) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps({**FIELDS, **changes}), encoding="utf-8")
    return path


def longer(**train: Any) -> dict[str, Any]:
    return {"train": {**FIELDS["train"], **train}}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def team(
    lab: Lab, path: Path, root: Path | str, each: Sequence[dict[str, Any]] = ({}, {}), **variables: str
) -> list[Child]:
    """Start the two processes of a run."""
    return two(lab, "run", path, "--root", root, each=each, **variables)


def two(lab: Lab, *words: object, each: Sequence[dict[str, Any]] = ({}, {}), **variables: str) -> list[Child]:
    """Start two processes as a launcher does."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", **variables}
    common["MASTER_PORT"] = str(free_port())
    ranks = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return [lab.nursery.start(*words, variables=ranks[i], **each[i]) for i in (0, 1)]


def done(children: list[Child], record: Run) -> Run:
    for child in children:
        assert child.wait() == 0, child.said
    assert record.done
    return record


def losses(record: Run) -> list[float]:
    return [event["loss"] for event in record.events("Step", "Validated")]


def assert_same(record: Run, other: Run) -> None:
    """See that two runs have the same losses, tensors, answers and scores, and that each was written once."""
    for run in (record, other):
        assert [e["step"] for e in run.events("Step")] == list(range(1, run.spec.train.max_steps + 1))
        assert sum(1 for _ in run.events("Finished")) == 1
    assert losses(record) == pytest.approx(losses(other), abs=1e-5, rel=0)
    mine, theirs = (load_file(run.folder / "adapter" / "adapter.safetensors") for run in (record, other))
    assert {key: (mine[key] - theirs[key]).abs().max().item() < 1e-4 for key in theirs} == dict.fromkeys(mine, True)
    assert record.summary["scores"] == other.summary["scores"]
    assert record.summary["hashes"] == other.summary["hashes"]
    answers = [[(p["id"], p["text"], p["correct"]) for p in run.predictions()] for run in (record, other)]
    assert answers[0] == answers[1]
    names = [{path.name for path in run.folder.iterdir()} for run in (record, other)]
    assert names[0] == names[1]


@pytest.fixture(scope="module")
def alone(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What one process makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    child = lab.nursery.start("run", spec(folder), "--root", folder / "runs")
    return done([child], Run(folder / "runs" / RunSpec.parse(FIELDS).id))


@pytest.mark.parametrize("variables", [{}, FSDP], ids=["data parallel", "fsdp"])
def test_two_processes_do_what_one_does(lab: Lab, tmp_path: Path, alone: Run, variables: dict[str, str]) -> None:
    children = team(lab, spec(tmp_path), tmp_path / "runs", **variables)
    record = done(children, Run(tmp_path / "runs" / alone.id))
    assert_same(record, alone)
    assert not list(record.events("FellBack"))
    assert "training 8/8" in children[0].said
    assert not children[1].said.replace("\n", "").strip() or "training" not in children[1].said


KINDS: list[dict[str, Any]] = [
    {"adapter": {"type": "prefix", "virtual_tokens": 4}},
    {"adapter": {"type": "full-fine-tuning"}},
    {"adapter": {"type": "dora", "rank": 2}, "train": {"micro_tokens": 90, "gradient_checkpointing": True}},
    {"adapter": {"type": "parallel", "bottleneck": 4, "sparse": {"score": "random", "warmup": 1}}},
    {"adapter": None, "eval": {"protocol": "options", "tasks": ["mini-bool"], "rows": 5, "batch": 2}},
]
PROGRAM = """
import json, sys
from llm_adapters_lab.run import run
from llm_adapters_lab.spec import RunSpec
for fields in json.loads({specs!r}):
    run(RunSpec.parse(fields), root={root!r}, on_event=lambda event: None)
"""


def test_other_adapters_and_shortcuts_do_the_same(lab: Lab, tmp_path: Path) -> None:
    short = {"batch": 4, "max_steps": 2, "learning_rate": 1e-3}
    specs = [{**FIELDS, "eval": {"tasks": []}, **kind, "train": {**short, **kind.get("train", {})}} for kind in KINDS]

    def program(root: Path) -> str:
        return PROGRAM.format(specs=json.dumps(specs), root=str(root))

    starts = {"alone": [lab.nursery.start("-c", program(tmp_path / "alone"))]}
    starts["dp"] = two(lab, "-c", program(tmp_path / "dp"))
    starts["fsdp"] = two(lab, "-c", program(tmp_path / "fsdp"), **FSDP)
    for child in [child for children in starts.values() for child in children]:
        assert child.wait() == 0, child.said
    for fields in specs:
        found = [Run(tmp_path / name / RunSpec.parse(fields).id) for name in starts]
        for record in found[1:]:
            assert losses(record) == pytest.approx(losses(found[0]), abs=1e-5, rel=0)
            assert record.summary["scores"] == found[0].summary["scores"]
        assert len(losses(found[0])) == (3 if fields["adapter"] else 0)


WAITING = """
import os, time
from llm_adapters_lab.ranks import Ranks
with Ranks() as ranks:
    ranks.on_lost(lambda error: print("told:", error, flush=True))
    print("there", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_who_asks_nobody_is_ended_too(lab: Lab, victim: int) -> None:
    children = two(lab, "-c", WAITING)
    until(lambda: all("there" in child.said for child in children), children[0])
    children[victim].send(signal.SIGKILL)
    other = children[1 - victim]
    assert other.wait(SECONDS) == 1, other.said
    assert f"told: process {victim} of 2 on" in other.said
    assert "was killed, or the connection to it broke. All others end with it." in other.said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_all_and_one_goes_on_alone(lab: Lab, tmp_path: Path, victim: int) -> None:
    changes = longer(max_steps=24, checkpoint_every=2, learning_rate=1e-3)
    path, root = spec(tmp_path, **changes), tmp_path / "runs"
    record = Run(root / RunSpec.parse({**FIELDS, **changes}).id)
    children = team(lab, path, root)
    until(lambda: sum(1 for _ in record.events("Step")) >= 5, children[0])
    children[victim].send(signal.SIGKILL)
    began = time.monotonic()
    code = children[1 - victim].wait(SECONDS)  # 1 where the machine is so busy that it has not ended by itself
    assert code in (1, 2), children[1 - victim].said
    assert time.monotonic() - began < SECONDS
    failures = list(record.events("Failed"))
    assert len(failures) == 1
    assert "ProcessLost" in failures[0]["error"]
    assert f"process {victim} of 2 on" in failures[0]["error"]
    assert "was killed" in failures[0]["error"]
    assert "goes on after step" in failures[0]["advice"]
    done([lab.nursery.start("run", path, "--root", root)], record)
    whole = lab.nursery.start("run", path, "--root", tmp_path / "whole")
    assert_same(record, done([whole], Run(tmp_path / "whole" / record.id)))
    assert next(record.events("Resumed"))["step"] >= 4


def test_two_processes_go_on_where_one_was_stopped(lab: Lab, tmp_path: Path, alone: Run) -> None:
    path, root = spec(tmp_path, **longer(checkpoint_every=1)), tmp_path / "runs"
    record, child = Run(root / alone.id), lab.nursery.start("run", path, "--root", root)
    until(lambda: sum(1 for _ in record.events("Step")) >= 3, child)
    child.send(signal.SIGTERM)
    assert child.wait() == 143, child.said
    assert record.summary["status"] == "stopped"
    assert_same(done(team(lab, path, root), record), alone)
    assert next(record.events("Resumed"))["step"] >= 3


def test_who_is_asked_to_stop_stops_all_and_they_go_on(lab: Lab, tmp_path: Path) -> None:
    changes = longer(max_steps=24)
    path, root = spec(tmp_path, **changes), tmp_path / "runs"
    record = Run(root / RunSpec.parse({**FIELDS, **changes}).id)
    children = team(lab, path, root)
    until(lambda: sum(1 for _ in record.events("Step")) >= 3, children[0])
    children[1].send(signal.SIGTERM)
    assert [child.wait(SECONDS) for child in children] == [1, 143], children[0].said
    assert record.summary["status"] == "stopped"
    done(team(lab, path, root, **FSDP), record)
    assert [e["step"] for e in record.events("Step")] == list(range(1, 25))


def refused(children: list[Child], root: Path) -> list[str]:
    """Return what processes say that all refuse a run, soon and before any work."""
    began = time.monotonic()
    codes = [child.wait(SECONDS) for child in children]
    assert codes == [2] * len(children), [child.said for child in children]
    assert time.monotonic() - began < SECONDS
    assert not list(root.glob("**/spec.json"))
    return [child.said.partition("error: ")[2].replace("\n", " ") for child in children]


def test_a_batch_that_cannot_be_shared_is_refused(lab: Lab, tmp_path: Path) -> None:
    said = refused(team(lab, spec(tmp_path, **longer(batch=5)), tmp_path / "runs"), tmp_path)
    assert said[0] == said[1]
    assert "train.batch = 5 cannot be shared equally among 2 processes" in said[0]


def test_fsdp_1_and_deepspeed_are_refused_by_name(lab: Lab, tmp_path: Path) -> None:
    path = spec(tmp_path)
    for variables, expected in (
        ({**FSDP, "FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "FSDP spreads the base as ZeRO 3 does"),
    ):
        for said in refused(team(lab, path, tmp_path / "runs", **variables), tmp_path):
            assert expected in said


def test_a_launcher_that_starts_one_of_several_is_refused(lab: Lab, tmp_path: Path) -> None:
    variables = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}
    child = lab.nursery.start("run", spec(tmp_path), "--root", tmp_path / "runs", variables=variables)
    (said,) = refused([child], tmp_path)
    assert "--multi_gpu in the place of --cpu" in said


def test_versions_that_differ_are_refused(lab: Lab, tmp_path: Path) -> None:
    other = tmp_path / "other" / "transformers-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 0.0.1\n", encoding="utf-8")
    each = [{}, {"path": str(other.parent)}]
    for said in refused(team(lab, spec(tmp_path), tmp_path / "runs", each=each), tmp_path):
        assert "transformers: " in said
        assert "0.0.1 (process 1 of 2 on " in said


@pytest.mark.parametrize("what", ["base", "root"])
def test_what_is_not_the_same_on_every_host_is_refused(lab: Lab, tmp_path: Path, what: str) -> None:
    hosts = [tmp_path / "a", tmp_path / "b"]
    for number, host in enumerate(hosts):
        shutil.copytree(NANO, host / "models" / "mine")
        if what == "base" and number:
            tensors = load_file(host / "models" / "mine" / "model.safetensors")
            tensors["model.norm.weight"][0] += 0.1
            save_file(tensors, host / "models" / "mine" / "model.safetensors", {"format": "pt"})
    root = tmp_path / "runs" if what == "base" else Path("runs")
    path = spec(tmp_path, base="./models/mine")
    children = team(lab, path, root, each=[{"folder": str(host)} for host in hosts])
    for said in refused(children, tmp_path):
        expected = "the hash of the base ./models/mine" if what == "base" else "process 1 of 2 on"
        assert expected in said
        assert ("differ in what must be the same" if what == "base" else "cannot see the run folder") in said


def test_a_fault_of_one_is_told_by_all(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rows = [{"instruction": f"{n} + 1", "answer": str(n + 1)} for n in range(8)]
    (tmp_path / "a" / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    task = "own:rows.json?answer=answer"
    path = spec(tmp_path, data={"task": task}, eval={"tasks": []})
    children = team(lab, path, tmp_path / "runs", each=[{"folder": str(tmp_path / name)} for name in "ab"])
    said = refused(children, tmp_path)
    assert "Another process could not go on. process 1 of 2 on" in said[0]
    assert all("rows.json" in text for text in said)


def test_accelerate_launch(tmp_path: Path, alone: Run) -> None:
    """The launcher itself, with the configuration of the documentation."""
    config = ROOT / "docs" / "fsdp.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", 2]
    command += ["--main_process_port", free_port(), "-m", "llm_adapters_lab", "run", spec(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command += ["--root", tmp_path / "runs"]
    subprocess.run([*map(str, command)], env=environment, check=True, timeout=150, cwd=tmp_path)
    assert_same(Run(tmp_path / "runs" / alone.id), alone)
