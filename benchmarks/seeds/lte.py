"""LTE: eight heads of rank 1 that are merged every five steps, on a language that a small rank cannot learn.

    python benchmarks/seeds/lte.py [--seeds 0 1 2] [--root runs/seeds]

All runs take 80 steps of 16 rows of the same language, at the learning rate 0.03 and one of two scales, the better of
which counts: s = 1 or 2. Losses are on held-out rows, in nats for each token. Controls: the same heads merged once, at
the end; one head alone on its share of two rows; and the number of parameters of a head, or of all heads, as an
ordinary LoRA that sees all rows in every step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from results import each, finished, options, record

from llm_adapters_lab.results.loss_matrix import loss_matrix

TONGUE = "mini-tongue:1"
STEPS, HEADS = 80, 8
KINDS: dict[str, dict[str, Any]] = {
    "LTE": {"regime": {"name": "lte", "heads": HEADS, "every": 5}},
    "with reset": {"regime": {"name": "lte", "heads": HEADS, "every": 5, "reset": True}},
    "merged once": {"regime": {"name": "lte", "heads": HEADS, "every": STEPS}},
    "one head": {"batch": 16 // HEADS},
    "LoRA of rank 1": {},
    "LoRA of rank 8": {"rank": HEADS},
}


def losses(root: Path, seed: int, scale: float) -> dict[str, float]:
    """Return the loss of each kind, trained with a scale."""
    runs, rank_of = {}, {}
    for kind, fields in KINDS.items():
        rank = fields.get("rank", 1)
        train = {"learning_rate": 0.03, "batch": 16, "max_steps": STEPS} | fields
        train.pop("rank", None)
        runs[kind] = finished(
            root,
            seed,
            adapter={"type": "lora", "rank": rank, "alpha": scale * rank, "at": "attn+mlp"},
            data={"task": TONGUE, "loss_on": "all"},
            train=train,
            eval={"tasks": []},
        )
        if merges := list(runs[kind].events("Merged")):
            ranks = sorted(merges[-1]["rank"].values())
            rank_of[f"rank of {kind}"] = float(ranks[len(ranks) // 2])
    matrix = loss_matrix(list(runs.values()), [TONGUE], 96)
    found = {"base": matrix.losses[0][0]} | {k: row[0] for k, row in zip(KINDS, matrix.losses[1:], strict=True)}
    print(seed, scale, {key: round(value, 2) for key, value in found.items()}, rank_of, flush=True)
    return found | rank_of


def main() -> None:
    asked = options(__doc__)
    found = {seed: {scale: losses(asked.root, seed, scale) for scale in (1.0, 2.0)} for seed in asked.seeds}
    print(json.dumps(found, indent=1))

    def best(kind: str) -> str:
        return each(min(found[seed][scale][kind] for scale in (1.0, 2.0)) for seed in asked.seeds)

    ranks = each((found[seed][1.0]["rank of with reset"] for seed in asked.seeds), 0)
    record(
        "lte",
        "LTE",
        "loss on a new language ≤ 3.45, where the same heads merged once reach ≥ 3.8",
        f"{best('LTE')} nats; with reset {best('with reset')}, of rank {ranks}",
        f"merged once {best('merged once')}, one head alone {best('one head')}, LoRA of rank 1 "
        f"{best('LoRA of rank 1')}, of rank 8 {best('LoRA of rank 8')}",
        found,
    )


if __name__ == "__main__":
    main()
