"""DoRA beside LoRA at the same sites: processor time of training, scoring and generating, on one thread.

    python benchmarks/dora.py --rounds 20

Both adapters are in one model and alternate, so that other work on the machine affects both. Prints the median of the
ratios of processor times, and of the smallest times, as JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from llm_adapters_lab import inject, load_base, stack
from llm_adapters_lab.core.registry import get_adapter

KINDS = ("lora", "dora")
AT, RANK = "q,k,v,up,down", 16


def bases() -> dict[str, Callable[[], Any]]:
    """Return the models to measure on."""
    wide = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=2000,
    )
    return {
        "nano": lambda: load_base("nano").model,
        "tiny": lambda: load_base("tiny:llama").model,
        "576 wide": lambda: AutoModelForCausalLM.from_config(wide),
    }


def work(model: Any) -> dict[str, Callable[[], object]]:
    """Return what is measured: a step on 8 rows of 64 tokens, a pass over them, 12 new tokens for 4 rows of 16."""
    ids, short = torch.randint(3, 90, (8, 64)), torch.randint(3, 90, (4, 16))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def train() -> None:
        model.train()(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def score() -> None:
        model.eval()(input_ids=ids)

    def generate() -> None:
        model.eval().generate(short, max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0)

    return {"train": train, "score": score, "generate": generate}


def main() -> None:
    """Measure all and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="number of pairs; two more warm up")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    for name, make in bases().items():
        torch.manual_seed(0)
        model = make()
        for kind in KINDS:
            injection = inject(model, get_adapter(kind).config(type=kind, rank=RANK, at=AT), name=kind)
            with torch.no_grad():
                for p in injection.parameters():
                    p.add_(torch.randn_like(p) * 0.01)
        for what, call in work(model).items():
            seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for number in range(rounds + 2):
                for kind in KINDS if number % 2 else reversed(KINDS):
                    stack(model, kind)
                    began = time.process_time()
                    call()
                    seconds[kind].append(time.process_time() - began)
            lora, dora = seconds["lora"][2:], seconds["dora"][2:]
            ratios = [d / x for d, x in zip(dora, lora, strict=True)]
            result = {"median": round(statistics.median(ratios), 3), "smallest": round(min(dora) / min(lora), 3)}
            found.setdefault(name, {})[what] = result
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
