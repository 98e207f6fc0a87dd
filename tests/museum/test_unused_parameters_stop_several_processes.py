"""Parameters that a batch does not use stop or falsify a training in several processes.

Area: training
Elsewhere: peft#899, #951, PR #905: "Expected to have finished reduction", or gradients that are not averaged.
Here: two processes have the losses of one with an adapter that has an unused branch. Where every pass draws a random
part, as in dropout, their training is complete too, and its losses are close.
Verdict: right → right
"""

import json
from pathlib import Path
from typing import Any

import pytest
from fault_lab import Lab
from nursery import Nursery
from teams import FIELDS, PROGRAM, assert_all_same, losses, two

from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec

KINDS: list[dict[str, Any]] = [
    {"type": "hydra", "rank": 2},
    {"type": "parallel", "bottleneck": 4, "split": {"parts": 2}},
]


def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    short = {"batch": 4, "max_steps": 2, "learning_rate": 1e-3}
    specs = [{**FIELDS, "eval": {"tasks": []}, "train": short, "adapter": adapter} for adapter in KINDS]
    with Nursery(tmp_path) as nursery:
        lab = Lab(nursery, tmp_path, "", {})
        one, both = (PROGRAM.format(specs=json.dumps(specs), root=str(tmp_path / name)) for name in ("one", "two"))
        for child in [nursery.start("-c", one), *two(lab, "-c", both)]:
            assert child.wait() == 0, child.said
    assert_all_same(specs[:1], tmp_path / "one", tmp_path / "two")
    split = [Run(tmp_path / name / RunSpec.parse(specs[1]).id) for name in ("one", "two")]
    assert losses(split[0]) == pytest.approx(losses(split[1]), abs=1e-2)  # every pass draws its own parts
