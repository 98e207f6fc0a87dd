"""Five adapters of one task each over one base: routed by the group of each row, averaged, summed, alone.

    python benchmarks/seeds/adapterhub.py [--seeds 0 1 2] [--root runs/seeds]

The members are those of `fusion.py` (60 steps of 16 rows each). Compositions of them are scored without training:
routed by task, which must equal each adapter alone, answer by answer; the average of what they change; and their sum.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fusion import MATH, MEMBER, SCORED, TRAIN
from results import accuracy, each, finished, options, record

from llm_adapters_lab.runs.record import Run


def answers(run: Run, task: str) -> list[Any]:
    """Return what a run has answered in a task."""
    return [row["text"] for row in run.predictions() if row["task"] == task]


def one_seed(root: Path, seed: int) -> dict[str, Any]:
    """Return all accuracies of a seed."""
    members = [finished(root, seed, adapter=MEMBER, data={"task": t}, train=TRAIN, eval=SCORED) for t in MATH]
    names = [run.id for run in members]
    rules = {
        "routed": f"[{', '.join(f'{task}: {name}' for task, name in zip(MATH, names, strict=True))}]",
        "average": " | ".join(names),
        "sum": " + ".join(names),
    }
    made = {
        name: finished(root, seed, adapter={"type": "composed", "rule": rule}, data={"group": "task"}, eval=SCORED)
        if name == "routed"
        else finished(root, seed, adapter={"type": "composed", "rule": rule}, eval=SCORED)
        for name, rule in rules.items()
    }
    alone = [run.summary["scores"][task]["accuracy"] for run, task in zip(members, MATH, strict=True)]
    same = [answers(made["routed"], task) == answers(run, task) for run, task in zip(members, MATH, strict=True)]
    return {
        **{name: accuracy(run) for name, run in made.items()},
        "each alone on its task": sum(alone) / len(alone),
        "best single": max(map(accuracy, members)),
        "answers equal": all(same),
    }


def main() -> None:
    asked = options(__doc__)
    found = {seed: one_seed(asked.root, seed) for seed in asked.seeds}
    print(json.dumps(found, indent=1))

    def values(name: str) -> str:
        return each(found[seed][name] for seed in asked.seeds)

    equal = "all answers equal" if all(found[seed]["answers equal"] for seed in asked.seeds) else "answers differ"
    record(
        "adapterhub",
        "AdapterHub",
        "routed by task = each adapter alone; average and sum far below",
        f"routed {values('routed')} ({equal})",
        f"each alone on its task {values('each alone on its task')}, best single {values('best single')}, "
        f"average {values('average')}, sum {values('sum')}",
        found,
    )


if __name__ == "__main__":
    main()
