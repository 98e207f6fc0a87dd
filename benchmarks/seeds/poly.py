"""Polytropon and MHR: an inventory of skills against one shared LoRA, and new tasks by their router alone.

    python benchmarks/seeds/poly.py [--seeds 0 1 2] [--root runs/seeds]

Six of eight tasks with hidden rules are trained (`mini-rules`): the question does not tell which rule holds, only the
group does. Then each of the two unseen combinations of known choices is learnt from 16 rows: by the router's row alone
(MHR-z), by a LoRA that starts from the mean of the inventory (MHR-mu), by everything from nothing, and by the router of
an untrained inventory. `mini-math`, whose tasks do not conflict, is the case in which nothing is gained.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from results import accuracy, each, finished, options, record

from llm_adapters_lab.core import bake, save_adapter
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.mini_rules import RULES, UNSEEN

SEEN = [name for name in RULES if name not in UNSEEN]
MATH = ["mini-addsub", "mini-multi", "mini-equation", "mini-distract", "mini-bool"]
POLY: dict[str, Any] = {"type": "poly", "skills": 6, "rank": 1, "at": "down"}
MHR = POLY | {"blocks": 4}
LORA = {"type": "lora", "rank": 6, "at": "down"}
TRAIN = {"batch": 16, "max_steps": 250, "epochs": 100, "learning_rate": 0.01}
FEW = TRAIN | {"max_steps": 60, "learning_rate": 0.02}


def scored(tasks: list[str]) -> dict[str, Any]:
    """Return what is scored: 100 rows of each task."""
    return {"tasks": tasks, "rows": 100}


def trained(root: Path, seed: int, adapter: dict[str, Any], task: str, tasks: list[str]) -> Any:
    """Return a run over a mixed task."""
    data = {"task": task, "group": "task"}
    return finished(root, seed, adapter=adapter, data=data, train=TRAIN, eval=scored(tasks))


def new_task(root: Path, seed: int, adapter: dict[str, Any], task: str) -> float:
    """Return the accuracy on an unseen task after 16 rows."""
    data = {"task": task, "group": "task", "rows": 16}
    return accuracy(finished(root, seed, adapter=adapter, data=data, train=FEW, eval=scored([task])))


def one_seed(root: Path, seed: int) -> dict[str, Any]:
    """Return all accuracies of a seed."""
    kinds = {"MHR": MHR, "Poly": POLY, "LoRA": LORA}
    runs = {name: trained(root, seed, adapter, "mini-rules", SEEN) for name, adapter in kinds.items()}
    found: dict[str, Any] = {f"seen, {name}": accuracy(each_run) for name, each_run in runs.items()}
    found |= {f"parameters, {name}": each_run.summary["trainable_parameters"] for name, each_run in runs.items()}
    folder = root / f"mu-{seed}"
    if not folder.is_dir():
        save_adapter(bake(_loaded(runs["MHR"]), "mean"), folder, "nano")
    starts = {
        "MHR-z": MHR | {"start": runs["MHR"].id, "train": "groups"},
        "Poly-z": POLY | {"start": runs["Poly"].id, "train": "groups"},
        "MHR-mu": {"type": "lora", "rank": 1, "alpha": 16, "at": "down", "start": str(folder)},
        "all, from nothing": MHR,
        "router of an untrained inventory": MHR | {"train": "groups"},
    }
    found |= {f"unseen, {name}": [new_task(root, seed, made, task) for task in UNSEEN] for name, made in starts.items()}
    found |= {f"mini-math, {name}": accuracy(trained(root, seed, kinds[name], "mini-math", MATH)) for name in kinds}
    return found


def _loaded(made: Any) -> Any:
    _, injection = restore(made)
    return injection


def main() -> None:
    asked = options(__doc__)
    found = {seed: one_seed(asked.root, seed) for seed in asked.seeds}

    def values(name: str) -> list[float]:
        return [statistics.fmean(v) if isinstance(v := found[s][name], list) else v for s in asked.seeds]

    print(json.dumps(found, indent=1))
    record(
        "poly",
        "MHR and Polytropon",
        "six tasks ≥ .95; two new tasks by the router alone ≥ .90, 16 rows each",
        f"MHR {each(values('seen, MHR'))}, Poly {each(values('seen, Poly'))}; "
        f"MHR-z {each(values('unseen, MHR-z'))}, MHR-mu {each(values('unseen, MHR-mu'))}",
        f"one LoRA of equal size {each(values('seen, LoRA'))}; router of an untrained inventory "
        f"{each(values('unseen, router of an untrained inventory'))}",
        {"fields": RunSpec.parse({"adapter": MHR, "train": TRAIN}).model_dump(mode="json"), "seeds": found},
    )


if __name__ == "__main__":
    main()
