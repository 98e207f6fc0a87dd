"""Generated bottlenecks against five separate ones and one shared one; a new task by its embedding alone.

    python benchmarks/seeds/hyper.py [--seeds 0 1 2] [--root runs/seeds]

Everything sees equally many rows of the five mini tasks: 200 steps of 16 for the network and for one shared bottleneck,
40 for each of five separate ones. Then the network is trained on four tasks, and the fifth is learnt from 32 rows by
its embedding alone (32 numbers), from the mean embedding; the control does the same on an untrained network. Then the
same comparison on three languages that contradict one another (`mini-tongue:1+2+3`), by the loss on held-out rows.
Last, the remedy of Hyper-adapters for large networks: the spread of generated matrices and the loss after 60 steps,
with the division by the root of the code's size and without it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from results import accuracy, each, finished, options, record

from llm_adapters_lab import inject
from llm_adapters_lab.adapters.hyper import HyperConfig
from llm_adapters_lab.evaluation.predictions import evaluate
from llm_adapters_lab.models import load_base
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.tasks.registry import get_task

TASKS = ["mini-addsub", "mini-multi", "mini-equation", "mini-distract", "mini-bool"]
FIFTH = "mini-distract"
HYPER: dict[str, Any] = {"type": "hyper", "bottleneck": 8, "at": "mlp", "embedding": 32, "hidden": 64, "code": 32}
PLAIN = {"type": "series", "bottleneck": 8, "at": "mlp", "nonlinearity": "relu"}
TRAIN = {"batch": 16, "max_steps": 200, "epochs": 100, "learning_rate": 0.01}
ROWS = 100
TONGUES = (1, 2, 3)
CODES = (16, 64, 256, 1024)


def trained(root: Path, seed: int, adapter: dict[str, Any], task: str, tasks: list[str], steps: int = 200) -> Run:
    """Return a run of the mini tasks."""
    data, plan = {"task": task, "group": "task"}, TRAIN | {"max_steps": steps}
    return finished(root, seed, adapter=adapter, data=data, train=plan, eval={"tasks": tasks, "rows": ROWS})


def four_tasks(root: Path) -> str:
    """Return the name of a task with the rows of all tasks but one, and their task in a column."""
    path = root / "four-tasks.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in get_task("mini-math").load("train", None) if not row.id.startswith(f"{FIFTH}/")]
        lines = [
            json.dumps({"instruction": row.instruction, "output": row.output, "task": row.id.partition("/")[0]})
            for row in rows
        ]
        path.write_text("\n".join(lines), encoding="utf-8")
    return f"own:{path}?template=qa"


def by_embedding(root: Path, seed: int, start: str) -> float:
    """Return the accuracy on the fifth task after 30 steps on 32 rows, by its embedding alone."""
    adapter = HYPER | {"train": "groups"} | ({"start": start} if start else {})
    data, plan = {"task": FIFTH, "group": "task", "rows": 32}, TRAIN | {"max_steps": 30, "learning_rate": 0.1}
    return accuracy(finished(root, seed, adapter=adapter, data=data, train=plan, eval={"tasks": [FIFTH], "rows": ROWS}))


def by_mean(made: Run) -> float:
    """Return the accuracy of a run's adapter on the fifth task with the mean of all embeddings."""
    base, _ = restore(made)
    task = get_task(FIFTH)
    found = list(evaluate(base.model, base.tokenizer, task, task.load("test", None)[:ROWS]))
    return statistics.fmean(prediction["correct"] for prediction in found)


def spread(code: int, rescale: bool) -> float:
    """Return the standard deviation of what an untrained network generates."""
    torch.manual_seed(0)
    base = load_base("nano")
    injection = inject(base.model, HyperConfig(bottleneck=8, at="mlp", code=code, rescale=rescale, groups=("a", "b")))
    made = [adapter.network([0], adapter.site)["down"].detach() for adapter in injection.adapters.values()]
    return float(torch.cat([matrix.flatten() for matrix in made]).std())


def final_loss(root: Path, seed: int, rescale: bool) -> float:
    """Return the mean loss of the last ten of 60 steps with a code of 512 numbers."""
    adapter = HYPER | {"code": 512, "rescale": rescale}
    data, plan = {"task": "mini-math", "group": "task"}, TRAIN | {"max_steps": 60}
    made = finished(root, seed, adapter=adapter, data=data, train=plan)
    return statistics.fmean(event["loss"] for event in list(made.events("Step"))[-10:])


def tongue_loss(root: Path, seed: int, adapter: dict[str, Any], tongues: Sequence[int], steps: int) -> float:
    """Return the loss on held-out rows of languages that contradict one another, in nats for each token."""
    data = {"task": f"mini-tongue:{'+'.join(map(str, tongues))}", "group": "task", "loss_on": "all", "validation": 96}
    made = finished(root, seed, adapter=adapter, data=data, train=TRAIN | {"max_steps": steps})
    return float(list(made.events("Validated"))[-1]["loss"])


def five_tasks(root: Path, seed: int) -> dict[str, Any]:
    """Return the accuracies on the five tasks."""
    hyper = trained(root, seed, HYPER, "mini-math", TASKS)
    shared = trained(root, seed, PLAIN, "mini-math", TASKS)
    apart = [trained(root, seed, PLAIN, task, [task], 40) for task in TASKS]
    counts = {"hyper": [hyper], "shared": [shared], "separate": apart}
    sizes = {name: sum(r.summary["trainable_parameters"] for r in of) for name, of in counts.items()}
    return {name: statistics.fmean(map(accuracy, of)) for name, of in counts.items()} | {"parameters": sizes}


def new_task(root: Path, seed: int) -> dict[str, Any]:
    """Return the accuracies on a task that the network has not seen."""
    fields = {"data": {"task": four_tasks(root), "group": "column:task"}, "train": TRAIN}
    others = [task for task in TASKS if task != FIFTH]
    four = finished(root, seed, adapter=HYPER, **fields, eval={"tasks": others, "rows": ROWS, "group": "task"})
    return {
        "four tasks": accuracy(four),
        "fifth, mean embedding": by_mean(four),
        "fifth, embedding alone": by_embedding(root, seed, four.id),
        "fifth, embedding alone, untrained network": by_embedding(root, seed, ""),
    }


def rescaling(root: Path, seed: int) -> dict[str, Any]:
    """Return the losses with a large code."""
    return {f"loss at code 512, {name}": final_loss(root, seed, name == "rescaled") for name in ("rescaled", "plain")}


def tongues(root: Path, seed: int) -> dict[str, Any]:
    """Return the losses on languages that contradict one another."""
    kinds = {"hyper": HYPER, "shared": PLAIN, "shared, of equal size": PLAIN | {"bottleneck": 48}}
    found = {name: tongue_loss(root, seed, adapter, TONGUES, 201) for name, adapter in kinds.items()}
    apart = statistics.fmean(tongue_loss(root, seed, PLAIN, [one], 67) for one in TONGUES)
    return {"loss on three tongues": found | {"separate": apart}}


def main() -> None:
    asked = options(__doc__)
    found: dict[int, dict[str, Any]] = {seed: {} for seed in asked.seeds}
    for part in (five_tasks, new_task, rescaling, tongues):
        for seed in asked.seeds:
            found[seed] |= part(asked.root, seed)
        print(json.dumps(found), flush=True)
    spreads = {str(rescale): {code: spread(code, rescale) for code in CODES} for rescale in (True, False)}

    def values(name: str) -> list[float]:
        return [found[seed][name] for seed in asked.seeds]

    record(
        "hyper",
        "HyperFormer and Hyper-adapters",
        "≥ five separate + .05; a fifth task by its embedding alone ≥ .95 and > mean embedding + .10",
        f"{each(values('hyper'))}; fifth task {each(values('fifth, embedding alone'))}",
        f"five separate {each(values('separate'))}, one shared {each(values('shared'))}; fifth task by the mean "
        f"embedding {each(values('fifth, mean embedding'))}, on an untrained network "
        f"{each(values('fifth, embedding alone, untrained network'))}",
        {"adapter": HYPER, "train": TRAIN, "seeds": found, "spread by code": spreads},
    )


if __name__ == "__main__":
    main()
