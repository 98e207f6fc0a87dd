"""Houlsby whole: bottlenecks that start near zero, trained with and without the layer norms, and the norms alone.

    python benchmarks/seeds/houlsby.py [--seeds 0 1 2] [--root runs/seeds]

60 steps of 16 rows of `mini-math`; scored on its five tasks.
"""

from __future__ import annotations

import json
from typing import Any

from results import accuracy, each, finished, options, record

MATH = ["mini-addsub", "mini-multi", "mini-equation", "mini-distract", "mini-bool"]
NEAR = {"type": "houlsby", "init": "normal", "init_std": 0.01}
KINDS: dict[str, Any] = {
    "whole": "houlsby-whole",
    "without norms": NEAR,
    "without norms, start at the base": "houlsby",
    "norms alone": "norm-tuning",
}
TRAIN = {"batch": 16, "max_steps": 60, "epochs": 100, "learning_rate": 0.005}


def main() -> None:
    asked = options(__doc__)
    found: dict[str, Any] = {}
    for name, adapter in KINDS.items():
        fields = {
            "adapter": adapter,
            "data": {"task": "mini-math"},
            "train": TRAIN,
            "eval": {"tasks": MATH, "rows": 60},
        }
        runs = [finished(asked.root, seed, **fields) for seed in asked.seeds]
        found[name] = {
            "accuracy": [accuracy(run) for run in runs],
            "parameters": runs[0].summary["trainable_parameters"],
        }
    print(json.dumps(found, indent=1))
    shown = {name: each(values["accuracy"]) for name, values in found.items()}
    record(
        "houlsby",
        "Houlsby",
        "with trained norms not worse than without",
        f"{shown['whole']} ({found['whole']['parameters']:,} parameters)",
        f"without norms {shown['without norms']}, norms alone {shown['norms alone']}",
        found,
    )


if __name__ == "__main__":
    main()
