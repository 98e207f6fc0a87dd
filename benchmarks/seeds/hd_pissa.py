"""HD-PiSSA: eight heads in different singular directions of one weight, on a language that a small rank cannot learn.

    python benchmarks/seeds/hd_pissa.py [--seeds 0 1 2] [--root runs/seeds]

All runs take 80 steps of 16 rows of the same language, at the best of five learning rates. Losses are on held-out
rows, in nats for each token. Controls: PiSSA and LoRA of the rank of one head, and the same heads that all have the
first directions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from results import each, finished, options, record
from torch import nn

from llm_adapters_lab.results.loss_matrix import loss_matrix
from llm_adapters_lab.training.regimes import Heads

TONGUE = "mini-tongue:1"
RANK, RATES = 2, (0.003, 0.006, 0.01, 0.02, 0.03)
KINDS: dict[str, dict[str, Any]] = {
    "HD-PiSSA": {"init": "pissa", "heads": 8},
    "same directions": {"init": "pissa", "heads": 8},
    "PiSSA": {"init": "pissa"},
    "LoRA": {"init": "kaiming"},
    "LoRA of rank 16": {"init": "kaiming", "rank": 16},
}


def same_directions(heads: Heads, host: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factors in which all heads have the directions of the first one."""
    a, b = DIFFERENT(heads, host)
    return a[:1].repeat(len(a), 1, 1), b[:1].repeat(len(b), 1, 1)


DIFFERENT = Heads._directions


def losses(root: Path, seed: int, rate: float) -> dict[str, float]:
    """Return the loss of each kind at a learning rate."""
    runs, ranks = {}, {}
    for kind, fields in KINDS.items():
        rank = fields.get("rank", RANK)
        train: dict[str, Any] = {"learning_rate": rate, "batch": 16, "max_steps": 80}
        if "heads" in fields:
            train["regime"] = {"name": "hd-pissa", "heads": fields["heads"]}
        same = kind == "same directions"
        with patch.object(Heads, "_directions", same_directions if same else DIFFERENT):
            runs[kind] = finished(
                root / kind.replace(" ", "-") if same else root,
                seed,
                adapter={"type": "lora", "rank": rank, "alpha": rank, "at": "attn+mlp", "init": fields["init"]},
                data={"task": TONGUE, "loss_on": "all"},
                train=train,
                eval={"tasks": []},
            )
        if merges := list(runs[kind].events("Merged")):
            for name, event in (("first", merges[0]), ("last", merges[-1])):
                values = sorted(event["rank"].values())
                ranks[f"rank of {kind}, {name} step"] = float(values[len(values) // 2])
    matrix = loss_matrix(list(runs.values()), [TONGUE], 96)
    found = {kind: row[0] for kind, row in zip(KINDS, matrix.losses[1:], strict=True)}
    print(seed, rate, {key: round(value, 2) for key, value in found.items()}, ranks, flush=True)
    return found | ranks


def main() -> None:
    asked = options(__doc__)
    found = {seed: {rate: losses(asked.root, seed, rate) for rate in RATES} for seed in asked.seeds}
    print(json.dumps(found, indent=1))

    def best(kind: str) -> str:
        return each(min(found[seed][rate][kind] for rate in RATES) for seed in asked.seeds)

    first = each((found[seed][0.01]["rank of HD-PiSSA, first step"] for seed in asked.seeds), 0)
    record(
        "hd_pissa",
        "HD-PiSSA",
        "eight heads of rank 2: loss ≤ PiSSA of rank 2 − 0.15 and ≤ same directions − 0.25; rank 2 · 8 · 2 in one step",
        f"{best('HD-PiSSA')} nats; rank {first} after one step",
        f"PiSSA {best('PiSSA')}, same directions {best('same directions')}, LoRA of rank 2 {best('LoRA')}, of rank 16 "
        f"{best('LoRA of rank 16')}",
        found,
    )


if __name__ == "__main__":
    main()
