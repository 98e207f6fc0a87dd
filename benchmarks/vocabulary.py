"""What the loss holds at a vocabulary of 262,144: the output head on all labels at once and in chunks.

    python benchmarks/vocabulary.py [--rounds 3] [--rows 4]

The shape of Gemma-3-270M with random weights, LoRA at q and v, rows of 65 tokens whose 64 labels all count, packed, in
fp32. Peaks beside the weights and FLOPs are counted on fake tensors for 2, 8 and 32 rows. Steps of `--rows` rows take
turns; a ratio is the median over rounds of one processor's time against the step with all labels at once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.runs.forecast.memory import Peak
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.loss import FastPaths, Objective

WORDS = 262144
SHAPE = {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "head_dim": 256}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": WORDS}
CHUNKS = (0, 64, 128)


def build(at: str = "q,v") -> tuple[Any, Injection]:
    """Return the model and its adapter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Gemma3TextConfig(**SHAPE)).train()
    return model, inject(model, LoRAConfig(rank=8, at=at))


def samples(count: int) -> list[Sample]:
    """Return rows."""
    ids = torch.randint(4, WORDS, (count, 65), generator=torch.Generator().manual_seed(0)).tolist()
    return [Sample(str(i), tuple(row), tuple(row)) for i, row in enumerate(ids)]


def step(model: Any, chunk: int, rows: list[Sample]) -> None:
    """Do a forward and a backward pass."""
    model.zero_grad()
    paths = replace(FastPaths(label_head=True, packing=True), head_chunk=chunk)
    with Objective(model, paths).loss(model, rows) as loss:
        loss.backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for at in ("q,v", "embed,head"):
        with FakeTensorMode(allow_non_fake_inputs=True):
            model, _ = build(at)
            for count in (2, 8, 32):
                for chunk in (0, 64):
                    own = [*model.parameters(), *model.buffers()]
                    with Peak(own) as peak, FlopCounterMode(display=False) as flops:
                        step(model, chunk, samples(count))
                    found = f"{peak.most:,} bytes, {flops.get_total_flops():,} FLOPs"
                    print(f"LoRA at {at}, {count} rows, chunk {chunk}: {found}", flush=True)
    model, _ = build()
    took: dict[int, list[float]] = {chunk: [] for chunk in CHUNKS}
    rows = samples(asked.rows)
    for number in range(asked.rounds + 1):
        for chunk in CHUNKS:
            began = time.process_time()
            step(model, chunk, rows)
            if number:
                took[chunk].append(time.process_time() - began)
    for chunk, seconds in took.items():
        ratio = statistics.median(mine / whole for mine, whole in zip(seconds, took[0], strict=True))
        print(f"chunk {chunk}: {statistics.median(seconds):.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
