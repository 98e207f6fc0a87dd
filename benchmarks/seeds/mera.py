"""MerA: two bottleneck adapters into one, with their hidden units aligned first, against their plain mean.

    python benchmarks/seeds/mera.py [--seeds 0 1 2] [--root runs/seeds]

Two ReLU adapters of different seeds learn from 1,000 random rows of `mini-math` each (120 steps). Their blends are
scored as they are (a run of one step at a rate of 1e-9), and after ten steps on 160 rows. The control aligns the second
adapter to the first by a random permutation.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from results import accuracy, each, finished, options, record

from llm_adapters_lab.core.blending import blend
from llm_adapters_lab.core.saved_adapters import looking_in, read_saved, saved_folder
from llm_adapters_lab.runs.restoring import calibration

MATH = ["mini-addsub", "mini-multi", "mini-equation", "mini-distract", "mini-bool"]
SERIES = {"type": "series", "bottleneck": 16, "at": "mlp", "nonlinearity": "relu", "bias": True}
TRAIN = {"batch": 16, "max_steps": 120, "epochs": 100, "learning_rate": 0.005, "warmup": 10}
STILL = {"batch": 16, "max_steps": 1, "learning_rate": 1e-9}
FEW = {"batch": 16, "max_steps": 10, "learning_rate": 0.002}
SCORED = {"tasks": MATH, "rows": 60}


def shuffled(name: str, seed: int) -> Any:
    """Return a saved adapter with its units in a random order: the same function."""
    saved, generator = read_saved(saved_folder(name)), torch.Generator().manual_seed(seed)
    tensors = dict(saved.tensors)
    for key in [key for key in tensors if key.endswith("down.weight")]:
        order = torch.randperm(SERIES["bottleneck"], generator=generator)  # type: ignore[call-overload]
        site = key.removesuffix("down.weight")
        tensors[key], tensors[f"{site}down.bias"] = tensors[key][order], tensors[f"{site}down.bias"][order]
        tensors[f"{site}up.weight"] = tensors[f"{site}up.weight"][:, order]
    return replace(saved, tensors=tensors)


def farther_apart(root: Path, seed: int) -> dict[str, Any]:
    """Return the accuracies of adapters that were trained three times as long, before and after alignment."""
    fields = {"adapter": SERIES, "data": {"task": "mini-math", "rows": 1000}, "eval": SCORED}
    pair = [finished(root, 2 * seed + i, train=TRAIN | {"max_steps": 360}, **fields) for i in (0, 1)]
    found: dict[str, Any] = {"singles, 360 steps": [accuracy(run) for run in pair]}
    for name, how in (("plain", "average"), ("aligned by weights", "align")):
        with looking_in(root):
            made = blend([run.id for run in pair], how)  # type: ignore[arg-type]
        made.save(folder := root / "blends" / f"{how}-{pair[1].id}")
        adapter, data = SERIES | {"start": str(folder)}, {"task": "mini-math", "rows": 160}
        run = finished(root, seed, adapter=adapter, data=data, train=STILL, eval=SCORED)
        found[f"{name}, 360 steps"] = accuracy(run)
    return found


def one_seed(root: Path, seed: int) -> dict[str, Any]:
    """Return all accuracies of a seed."""
    rows = {"task": "mini-math", "rows": 1000}
    pair = [finished(root, 2 * seed + i, adapter=SERIES, data=rows, train=TRAIN, eval=SCORED) for i in (0, 1)]
    names = [run.id for run in pair]
    found: dict[str, Any] = {"singles": [accuracy(run) for run in pair]}
    with looking_in(root):
        shuffled(names[1], seed).save(root / "shuffled" / str(seed))
        blends = {
            "plain": blend(names),
            "random permutation": blend([names[0], str(root / "shuffled" / str(seed))]),
            "aligned by weights": blend(names, "align"),
            "aligned by activations": blend(names, "align", **calibration(pair[0], 64)),
        }
    for name, made in blends.items():
        made.save(folder := root / "blends" / f"{name.replace(' ', '-')}-{names[1]}")
        adapter = SERIES | {"start": str(folder)}
        for label, train in (("", STILL), (", ten steps", FEW)):
            data = {"task": "mini-math", "rows": 160}
            found[name + label] = accuracy(finished(root, seed, adapter=adapter, data=data, train=train, eval=SCORED))
    return found


def main() -> None:
    asked = options(__doc__)
    found = {seed: one_seed(asked.root, seed) | farther_apart(asked.root, seed) for seed in asked.seeds}
    print(json.dumps(found, indent=1))

    def values(name: str) -> str:
        return each(found[seed][name] for seed in asked.seeds)

    record(
        "mera",
        "MerA",
        "aligned ≥ .84, plain mean ≤ .76, in the size of one",
        f"by weights {values('aligned by weights')}, by activations {values('aligned by activations')}; "
        f"after ten steps {values('aligned by weights, ten steps')}",
        f"plain {values('plain')} (after 360 steps {values('plain, 360 steps')}, aligned "
        f"{values('aligned by weights, 360 steps')}), random permutation {values('random permutation')}; singles "
        + ", ".join(each(found[seed]["singles"]) for seed in asked.seeds),
        found,
    )


if __name__ == "__main__":
    main()
