"""Teams: two processes that do one run together, as a launcher starts them, and what they must come to."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from nursery import Child
from safetensors.torch import load_file

from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec

if TYPE_CHECKING:
    from fault_lab import Lab

SECONDS = 30.0
FIELDS: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4},
    "data": {"task": "mini-math", "rows": 24, "validation": 3},
    "train": {"batch": 4, "max_steps": 8, "epochs": 9.0, "learning_rate": 1e-2, "evaluate_every": 4},
    "eval": {"tasks": ["mini-bool", "mini-addsub"], "rows": 7, "batch": 2, "max_new_tokens": 4},
}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


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
    """Start the processes of a run, two or as many as `each` has."""
    return two(lab, "run", path, "--root", root, each=each, **variables)


def two(lab: Lab, *words: object, each: Sequence[dict[str, Any]] = ({}, {}), **variables: str) -> list[Child]:
    """Start two processes, or as many as `each` has, as a launcher does."""
    world = str(len(each))
    common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", **variables}
    common["MASTER_PORT"] = str(free_port())
    ranks = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(len(each))]
    return [lab.nursery.start(*words, variables=own, **more) for own, more in zip(ranks, each, strict=True)]


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


KINDS: list[dict[str, Any]] = [
    {"adapter": {"type": "prefix", "virtual_tokens": 4}},
    {"adapter": {"type": "full-fine-tuning"}},
    {"adapter": {"type": "dora", "rank": 2}, "train": {"micro_tokens": 90, "gradient_checkpointing": True}},
    {"adapter": {"type": "parallel", "bottleneck": 4, "sparse": {"score": "random", "warmup": 1}}},
    {"adapter": None, "eval": {"protocol": "options", "tasks": ["mini-bool"], "rows": 5, "batch": 2}},
]
PROGRAM = """
import json, sys
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec
for fields in json.loads({specs!r}):
    run(RunSpec.parse(fields), root={root!r}, on_event=lambda event: None)
"""


def programs() -> tuple[list[dict[str, Any]], Callable[[Path], str]]:
    """Return specs of other adapters and shortcuts, and what makes a program that does them in a root."""
    short = {"batch": 4, "max_steps": 2, "learning_rate": 1e-3}
    specs = [{**FIELDS, "eval": {"tasks": []}, **kind, "train": {**short, **kind.get("train", {})}} for kind in KINDS]
    return specs, lambda root: PROGRAM.format(specs=json.dumps(specs), root=str(root))


def assert_all_same(specs: list[dict[str, Any]], alone: Path, *others: Path) -> None:
    """See that runs in several roots have the same losses and scores."""
    for fields in specs:
        one, *found = [Run(root / RunSpec.parse(fields).id) for root in (alone, *others)]
        for record in found:
            assert losses(record) == pytest.approx(losses(one), abs=1e-5, rel=0)
            assert record.summary["scores"] == one.summary["scores"]
        assert len(losses(one)) == (3 if fields["adapter"] else 0)


def refused(children: list[Child], root: Path) -> list[str]:
    """Return what processes say that all refuse a run, soon and before any work."""
    began = time.monotonic()
    codes = [child.wait(SECONDS) for child in children]
    assert codes == [2] * len(children), [child.said for child in children]
    assert time.monotonic() - began < SECONDS
    assert not list(root.glob("**/spec.json"))
    return [child.said.partition("error: ")[2].replace("\n", " ") for child in children]
