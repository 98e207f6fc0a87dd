"""Fusion: five adapters, each of one task, weighted token by token, without knowing the task.

    python benchmarks/seeds/fusion.py [--seeds 0 1 2] [--root runs/seeds]

Five bottlenecks learn one task each (60 steps of 16 rows). A fusion of the five then learns from 60 steps of the mixed
`mini-math`, and is scored on all five tasks. The oracle knows the task and takes its adapter. Controls: the mean of the
five changes (the fusion at its start, a run of one step at a rate of 1e-9), the best single one, and the trained fusion
with its members in another order.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from results import accuracy, each, finished, options, record

from llm_adapters_lab.core.saved_adapters import digest, read_saved, saved_folder

MATH = ["mini-addsub", "mini-multi", "mini-equation", "mini-distract", "mini-bool"]
MEMBER = {"type": "parallel", "bottleneck": 8}
TRAIN = {"batch": 16, "max_steps": 60, "epochs": 100, "learning_rate": 0.02, "schedule": "cosine", "warmup": 5}
RATES = {"vector": 0.05, "token": 0.006, "attention": 0.002}
STILL = {"batch": 16, "max_steps": 1, "learning_rate": 1e-9}
SCORED = {"tasks": MATH, "rows": 60}


def turned(folder: Path, out: Path) -> str:
    """Save a trained fusion whose weights go to the next member each, and return the name of the copy."""
    saved = read_saved(folder)
    rolled = {k: t.roll(1, 0) if k.rpartition("/")[2] in ("R", "b") else t for k, t in saved.tensors.items()}
    replace(saved, tensors=rolled).save(out)
    return str(out)


def one_seed(root: Path, seed: int) -> dict[str, Any]:
    """Return all accuracies of a seed."""
    fields = {"train": TRAIN, "eval": SCORED}
    members = [finished(root, seed, adapter=MEMBER, data={"task": task}, **fields) for task in MATH]
    before = [digest(saved_folder(str(run.folder))) for run in members]
    names = [run.folder.name for run in members]
    scores = [[run.summary["scores"][task]["accuracy"] for task in MATH] for run in members]
    found: dict[str, Any] = {
        "oracle": sum(scores[i][i] for i in range(5)) / 5,
        "best single": max(sum(row) / 5 for row in scores),
    }
    mixed = {"data": {"task": "mini-math", "rows": 1000}, "eval": SCORED}
    start = {"type": "fusion", "how": "vector", "of": names}
    found["mean"] = accuracy(finished(root, seed, adapter=start, train=STILL, **mixed))
    for how, rate in RATES.items():
        adapter = {"type": "fusion", "how": how, "of": names}
        run = finished(root, seed, adapter=adapter, train=TRAIN | {"learning_rate": rate}, **mixed)
        found[how], found[f"{how}, parameters"] = accuracy(run), run.summary["trainable_parameters"]
        if how == "token":
            longer = TRAIN | {"learning_rate": rate, "max_steps": 180}
            found["token, 180 steps"] = accuracy(finished(root, seed, adapter=adapter, train=longer, **mixed))
            order = adapter | {"start": turned(run.folder / "adapter", root / f"turned-{seed}")}
            found["token, members in another order"] = accuracy(
                finished(root, seed, adapter=order, train=STILL, **mixed)
            )
    assert before == [digest(saved_folder(str(run.folder))) for run in members], "a member has changed"
    return found


def main() -> None:
    asked = options(__doc__)
    found = {seed: one_seed(asked.root, seed) for seed in asked.seeds}
    print(json.dumps(found, indent=1))

    def values(name: str) -> str:
        return each(found[seed][name] for seed in asked.seeds)

    record(
        "fusion",
        "AdapterFusion, Audio-AdapterFusion",
        "token ≥ oracle − .03 and ≥ mean + .20",
        f"token {values('token')}, attention {values('attention')}, vector {values('vector')}; oracle "
        f"{values('oracle')}",
        f"mean {values('mean')}, best single {values('best single')}, members in another order "
        f"{values('token, members in another order')}",
        found,
    )


if __name__ == "__main__":
    main()
