"""One adapter for each language, and one for all, on languages that contradict one another: the matrix of their losses.

    python benchmarks/seeds/bactrian.py [--seeds 0 1 2] [--root runs/seeds]

The runs are those of papermill_runs/sweeps/nano-tongues.yaml: LoRA of rank 16 on one language each, and of rank 16 and
48 on all three with three times the steps. Losses are on held-out rows of each language, in nats for each token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from results import HERE, each, options, record

from llm_adapters_lab import run
from llm_adapters_lab.results.loss_matrix import loss_matrix
from llm_adapters_lab.sweeps.spec import Sweep

SWEEP = HERE.parents[1] / "papermill_runs" / "sweeps" / "nano-tongues.yaml"
TONGUES = [f"mini-tongue:{number}" for number in (1, 2, 3)]


def one_seed(root: Path, seed: int) -> dict[str, Any]:
    """Return the matrix of a seed, and what follows from it."""
    specs = Sweep.load(SWEEP, {"seed": seed}).specs()
    runs = [run(spec, root=root) for spec in specs]
    matrix = loss_matrix(runs, TONGUES, 96)
    for name, row in zip(matrix.names, matrix.losses, strict=True):
        print(seed, name, [round(value, 2) for value in row], flush=True)
    base, *single, small, large = matrix.losses
    return {
        "names": matrix.names,
        "losses": matrix.losses,
        "own": sum(single[i][i] for i in range(3)) / 3,
        "margin": min(single[i][j] - single[i][i] for i in range(3) for j in range(3) if i != j),
        "base": sum(base) / 3,
        "one of rank 16": sum(small) / 3,
        "one of rank 48": sum(large) / 3,
        "bases": len({run_.summary["hashes"]["base"] for run_ in runs}),
    }


def main() -> None:
    asked = options(__doc__)
    found = {seed: one_seed(asked.root, seed) for seed in asked.seeds}
    print(json.dumps(found, indent=1))

    def values(name: str) -> str:
        return each(found[seed][name] for seed in asked.seeds)

    record(
        "bactrian",
        "Bactrian-X",
        "own language < every other by ≥ 0.9 nats; the base unchanged",
        f"own {values('own')} nats, smallest margin {values('margin')}; one base for all runs",
        f"base {values('base')}, one adapter for all of equal size (rank 48) {values('one of rank 48')}, of rank 16 "
        f"{values('one of rank 16')}",
        found,
    )


if __name__ == "__main__":
    main()
