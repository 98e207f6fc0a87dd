"""Several processes that do one run together: the same result as one alone, and one end for all of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fault_lab import Lab, until
from nursery import ROOT
from safetensors.torch import load_file, save_file
from teams import (
    FIELDS,
    FSDP,
    SECONDS,
    assert_all_same,
    assert_same,
    done,
    free_port,
    longer,
    losses,
    programs,
    refused,
    spec,
    team,
    two,
)

from llm_adapters_lab.models.source import NANO
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec


@pytest.mark.parametrize("variables", [{}, FSDP], ids=["data parallel", "fsdp"])
def test_two_processes_do_what_one_does(lab: Lab, tmp_path: Path, alone: Run, variables: dict[str, str]) -> None:
    children = team(lab, spec(tmp_path), tmp_path / "runs", **variables)
    record = done(children, Run(tmp_path / "runs" / alone.id))
    assert_same(record, alone)
    assert not list(record.events("FellBack"))
    assert "training 8/8" in children[0].said
    assert not children[1].said.replace("\n", "").strip() or "training" not in children[1].said


def test_two_processes_draw_the_answers_that_one_draws(lab: Lab, tmp_path: Path) -> None:
    rows = [{"instruction": f"Tom has {i} apples .", "answer": "how"} for i in range(12)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    train = {"objective": "reward", "batch": 4, "max_steps": 3, "learning_rate": 1e-3}
    own = {"data": {"task": f"own:{file}?template=qa&labels=how|what"}, "train": train, "eval": {"max_new_tokens": 6}}
    path = spec(tmp_path, **own)
    folders = [tmp_path / name / RunSpec.load(path).id for name in ("alone", "team")]
    single = done([lab.nursery.start("run", path, "--root", folders[0].parent)], Run(folders[0]))
    record = done(team(lab, path, folders[1].parent), Run(folders[1]))
    found = [[(e["measures"], pytest.approx(e["loss"], abs=1e-5)) for e in r.events("Step")] for r in (single, record)]
    assert found[0] == found[1] and any(measures["idle"] < 1 for measures, _ in found[0])
    text = refused(team(lab, path, tmp_path / "sharded", **FSDP), tmp_path / "no")[0]
    assert "reward" in text and "sharded" in text


def test_adapted_experts_that_are_spread_over_processes_do_the_same(lab: Lab, tmp_path: Path) -> None:
    path = spec(
        tmp_path, base="nano-moe", adapter={"type": "lora", "rank": 4, "at": "q,experts"}, **longer(max_steps=3)
    )
    folders = [tmp_path / name / RunSpec.load(path).id for name in ("alone", "team")]
    single = done([lab.nursery.start("run", path, "--root", folders[0].parent)], Run(folders[0]))
    record = done(team(lab, path, folders[1].parent, **FSDP), Run(folders[1]))
    assert losses(record) == pytest.approx(losses(single), abs=1e-5, rel=0)
    mine, theirs = (load_file(run.folder / "adapter" / "adapter.safetensors") for run in (record, single))
    # In its first steps Adam makes much of a rounding difference where gradients are tiny.
    assert {key: (mine[key] - theirs[key]).abs().max().item() < 1e-3 for key in theirs} == dict.fromkeys(mine, True)


def test_rows_keep_their_groups_in_all_processes(lab: Lab, tmp_path: Path) -> None:
    adapter = {"type": "poly", "rank": 1, "skills": 2, "at": "down"}
    data = {"task": "mini-rules", "group": "task", "rows": 24, "validation": 3}
    score = {**FIELDS["eval"], "tasks": ["mini-rules-plus", "mini-rules-minus-there"], "max_new_tokens": 16}
    path = spec(tmp_path, adapter=adapter, data=data, eval=score)
    folders = [tmp_path / name / RunSpec.load(path).id for name in ("alone", "team")]
    single = done([lab.nursery.start("run", path, "--root", folders[0].parent)], Run(folders[0]))
    record = done(team(lab, path, folders[1].parent), Run(folders[1]))
    assert losses(record) == pytest.approx(losses(single), abs=1e-5, rel=0)
    assert [p["text"] for p in record.predictions()] == [p["text"] for p in single.predictions()]


def test_other_adapters_and_shortcuts_do_the_same(lab: Lab, tmp_path: Path) -> None:
    specs, program = programs()
    starts = {"alone": [lab.nursery.start("-c", program(tmp_path / "alone"))]}
    starts["dp"] = two(lab, "-c", program(tmp_path / "dp"))
    starts["fsdp"] = two(lab, "-c", program(tmp_path / "fsdp"), **FSDP)
    for child in [child for children in starts.values() for child in children]:
        assert child.wait() == 0, child.said
    assert_all_same(specs, *(tmp_path / name for name in starts))


WAITING = """
import os, time
from llm_adapters_lab.training.distributed import ProcessGroup
with ProcessGroup() as ranks:
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
    assert "it resumes after step" in failures[0]["advice"]
    done([lab.nursery.start("run", path, "--root", root)], record)
    whole = lab.nursery.start("run", path, "--root", tmp_path / "whole")
    assert_same(record, done([whole], Run(tmp_path / "whole" / record.id)))
    assert next(record.events("Resumed"))["step"] >= 4


def test_two_processes_go_on_where_one_was_stopped(lab: Lab, tmp_path: Path) -> None:
    path, root = spec(tmp_path, **longer(max_steps=24, checkpoint_every=1, learning_rate=1e-3)), tmp_path / "runs"
    record, whole = (Run(folder / RunSpec.load(path).id) for folder in (root, tmp_path / "whole"))
    alone = done([lab.nursery.start("run", path, "--root", tmp_path / "whole")], whole)
    child = lab.nursery.start("run", path, "--root", root)
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


def test_a_batch_that_cannot_be_shared_is_refused(lab: Lab, tmp_path: Path) -> None:
    said = refused(team(lab, spec(tmp_path, **longer(batch=5)), tmp_path / "runs"), tmp_path)
    assert said[0] == said[1]
    assert "train.batch = 5 cannot be divided evenly among 2 processes" in said[0]


@pytest.mark.parametrize(
    ("variables", "changes", "expected"),
    [
        ({"FSDP_VERSION": "1"}, {}, "fsdp_version: 2"),
        ({}, {"quantization": "int8"}, "which loses its scales. Choose nf4, or ZeRO 3"),
        ({}, {"device_map": "auto"}, "each of 2 processes has one"),
        ({}, longer(compile=True), "train.compile does not work with FSDP"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    lab: Lab, tmp_path: Path, variables: dict[str, str], changes: dict[str, Any], expected: str
) -> None:
    path = spec(tmp_path, **changes)
    for said in refused(team(lab, path, tmp_path / "runs", **FSDP | variables), tmp_path):
        assert expected in said


def test_a_launcher_that_starts_one_of_several_is_refused(lab: Lab, tmp_path: Path) -> None:
    variables = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}
    child = lab.nursery.start("run", spec(tmp_path), "--root", tmp_path / "runs", variables=variables)
    (said,) = refused([child], tmp_path)
    assert "--multi_gpu in place of --cpu" in said


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
    assert "Another process could not continue. process 1 of 2 on" in said[0]
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


@pytest.mark.parametrize("kind", ["lte", "hd-pissa"])
def test_the_heads_of_a_regime_do_in_four_processes_what_they_do_in_one(lab: Lab, tmp_path: Path, kind: str) -> None:
    adapter = {"type": "lora", "rank": 1, "at": "q,down"} | ({"init": "pissa"} if kind == "hd-pissa" else {})
    regime = {"name": kind, "heads": 4} | ({"every": 3} if kind == "lte" else {})
    changes = {"adapter": adapter, **longer(regime=regime, batch=8, max_steps=24, learning_rate=1e-3)}
    path, four = spec(tmp_path, **changes), [{}] * 4
    records = [Run(tmp_path / name / RunSpec.load(path).id) for name in ("alone", "team", "parts")]
    done([lab.nursery.start("run", path, "--root", records[0].folder.parent)], records[0])
    done(team(lab, path, records[1].folder.parent, four), records[1])
    children = team(lab, path, records[2].folder.parent, four)
    until(lambda: sum(1 for _ in records[2].events("Step")) >= 4, children[0])
    children[1].send(signal.SIGTERM)
    assert [child.wait(SECONDS) for child in children][:2] == [1, 143], children[0].said
    done(team(lab, path, records[2].folder.parent), records[2])  # two continue what four began
    assert next(records[2].events("Resumed"))["step"] >= 4
    for record in records[1:]:
        assert_same(record, records[0])
        merges = [[(e["step"], e["merges"], e["rank"]) for e in r.events("Merged")] for r in (record, records[0])]
        assert merges[0] == merges[1]


def test_heads_that_cannot_be_shared_are_refused(lab: Lab, tmp_path: Path) -> None:
    path = spec(tmp_path, **longer(regime={"name": "lte", "heads": 3}, batch=6))
    for variables, text in (({}, "heads = 3 cannot be divided evenly among 2"), (FSDP, "FSDP")):
        assert text in refused(team(lab, path, tmp_path / "runs", **variables), tmp_path / "runs")[0]
