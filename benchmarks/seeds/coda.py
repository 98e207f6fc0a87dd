"""CoDA: half or a quarter of the tokens run through each MLP, chosen by a trained router or by one that stays random.

    python benchmarks/seeds/coda.py [--seeds 0 1 2] [--root runs/seeds]

`mini-math` in 120 steps of 16 rows, and half of the tokens also in 400. Control: a router of random weights that does
not learn, with its threshold at the same share. Measured is the mean accuracy over the five tasks, 60 rows each, and
the share of the tokens of 60 prompts that run, by layer. Last, what is saved: the floating-point operations of a
prefill of 128 tokens with the shapes of SmolLM2-135M and random weights, and the processor time of one thread, in
pairs that take turns.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from results import accuracy, each, finished, options, record
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from llm_adapters_lab import inject
from llm_adapters_lab.core.composition import stack
from llm_adapters_lab.core.registry import adapter_config
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.tasks.registry import get_task

MATH = ["mini-addsub", "mini-multi", "mini-equation", "mini-distract", "mini-bool"]
ADAPTER: dict[str, Any] = {"type": "coda", "bottleneck": 32}
RANDOM = {"router_rate": 1e-9}
TRAIN = {"batch": 16, "max_steps": 120, "epochs": 100, "learning_rate": 0.02, "schedule": "cosine", "warmup": 5}
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "all": ({"share": 1.0}, 120),
    "learned .5": ({"share": 0.5}, 120),
    "random .5": ({"share": 0.5} | RANDOM, 120),
    "learned .25": ({"share": 0.25}, 120),
    "random .25": ({"share": 0.25} | RANDOM, 120),
    "learned .5, 400 steps": ({"share": 0.5}, 400),
    "random .5, 400 steps": ({"share": 0.5} | RANDOM, 400),
}
SMOLLM2: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
PAIRS = 15


def shares(made: Run) -> list[float]:
    """Return the share of the tokens of 60 prompts that run in each layer."""
    base, injection = restore(made)
    assert injection is not None
    for row in (row for task in MATH for row in get_task(task).load("test", None)[:12]):
        with torch.no_grad():
            base.model(base.tokenizer(row.instruction, return_tensors="pt")["input_ids"])
    counted: list[Any] = list(injection.adapters.values())
    return [round(run / seen, 3) for run, seen in (adapter.tokens_counted() for adapter in counted)]


def saved() -> dict[str, float]:
    """Return operations and processor time of a prefill, with all tokens and with a quarter of them."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMOLLM2)).eval()
    ids = torch.randint(0, 49152, (1, 128))
    names = {"all": 1.0, "quarter": 0.25}
    made = {name: inject(model, adapter_config(ADAPTER | {"share": s}), name=name) for name, s in names.items()}

    def prefill() -> None:
        with torch.no_grad():
            model(input_ids=ids, logits_to_keep=1)

    stack(model, "quarter")
    prefill_in_training(model, ids)
    found: dict[str, float] = {}
    for name in names:
        stack(model, name)
        with FlopCounterMode(display=False) as counter:
            prefill()
        found[f"GFLOP, {name}"] = round(counter.get_total_flops() / 1e9, 3)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(PAIRS):
        for name in names:
            stack(model, name)
            begun = time.process_time()
            prefill()
            times[name].append(time.process_time() - begun)
    found |= {f"seconds, {name}": round(statistics.median(own), 4) for name, own in times.items()}
    ratios = [quarter / whole for whole, quarter in zip(times["all"], times["quarter"], strict=True)]
    found["ratio of seconds"], found["ratio of GFLOP"] = (
        round(statistics.median(ratios), 3),
        round(found["GFLOP, quarter"] / found["GFLOP, all"], 3),
    )
    counted: list[Any] = list(made["quarter"].adapters.values())
    counts = [adapter.tokens_counted() for adapter in counted]
    found["share that ran"] = round(sum(run for run, _ in counts) / sum(seen for _, seen in counts), 3)
    return found


def prefill_in_training(model: Any, ids: torch.Tensor) -> None:
    """Set the thresholds to the quantiles of a text, as the first pass of a training does."""
    with torch.no_grad():
        model.train()(input_ids=ids, logits_to_keep=1)
    model.eval()


def one_seed(root: Path, seed: int) -> dict[str, Any]:
    """Return all numbers of a seed."""
    found: dict[str, Any] = {}
    for name, (fields, steps) in KINDS.items():
        plan, scored = TRAIN | {"max_steps": steps}, {"tasks": MATH, "rows": 60}
        made = finished(root, seed, adapter=ADAPTER | fields, data={"task": "mini-math"}, train=plan, eval=scored)
        found[name] = accuracy(made)
        if fields["share"] < 1:
            found[f"share by layer, {name}"] = shares(made)
    return found


def main() -> None:
    asked = options(__doc__)
    cost = saved()
    found = {seed: one_seed(asked.root, seed) for seed in asked.seeds}
    print(json.dumps({"prefill": cost, "seeds": found}, indent=1))

    def values(name: str) -> str:
        return each(found[seed][name] for seed in asked.seeds)

    record(
        "coda",
        "CoDA",
        "half of the tokens: learned ≥ random + .30 after 120 steps, learned ≥ .80 after 400; a quarter: time of a "
        "prefill ≤ .75",
        f"learned .5: {values('learned .5')}, after 400 steps {values('learned .5, 400 steps')}; .25: "
        f"{values('learned .25')}; prefill at .25: {cost['ratio of seconds']:.2f} of the time, "
        f"{cost['ratio of GFLOP']:.2f} of the operations",
        f"random .5: {values('random .5')}, after 400 steps {values('random .5, 400 steps')}; .25: "
        f"{values('random .25')}; all tokens {values('all')}",
        {"adapter": ADAPTER, "train": TRAIN, "prefill": cost, "seeds": found},
    )


if __name__ == "__main__":
    main()
