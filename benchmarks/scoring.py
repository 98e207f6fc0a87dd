"""How fast scoring is: the original procedure, plain batched generation, and the lab, on the same model and rows.

    python benchmarks/scoring.py [--base smollm2-135m] [--task arc-e] [--rows 64] [--root DATA] [--adapter FOLDER]

With an adapter the others run it in its hooks and the lab merges it for the time, as `run` does. Writes scoring.json
and scoring.md beside this file, with an adapter scoring-adapter.json and scoring-adapter.md. Seconds are of the wall
clock on the machine named there; forward FLOPs are counted by torch and do not depend on it; on a CPU torch leaves out
the products inside attention.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from llm_adapters_lab.core.merging import temporarily_merged
from llm_adapters_lab.core.saving import load_adapter
from llm_adapters_lab.evaluation.predictions import evaluate
from llm_adapters_lab.models import loading
from llm_adapters_lab.runs.environment import environment
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example, Task
from llm_adapters_lab.tasks.prompts import cut_at_stop
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import pad, prompt_ids

HERE = Path(__file__).parent
Answers = dict[str, str]


def original(base: Any, task: Task, rows: list[Example], batch: int) -> Answers:
    """One prompt at a time, 4 beams, no cache."""
    return _generate(base, task, rows, 1, {"num_beams": 4, "use_cache": False})


def plain(base: Any, task: Task, rows: list[Example], batch: int) -> Answers:
    """Greedy `generate` in batches, padded on the left, in file order, until all rows have their end token."""
    return _generate(base, task, rows, batch, {})


def _generate(base: Any, task: Task, rows: list[Example], batch: int, options: dict[str, Any]) -> Answers:
    answers: Answers = {}
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        tokens = [prompt_ids(base.tokenizer, prompts.prompt(row, task.template)) for row in part]
        ids = pad(tokens, base.tokenizer.pad_token_id, "left")
        mask = pad([[1] * len(row) for row in tokens], 0, "left")
        settings = {"do_sample": False, "max_new_tokens": task.max_new_tokens, **options}
        with torch.no_grad():
            out = base.model.generate(input_ids=ids, attention_mask=mask, **settings)[:, ids.shape[1] :]
        texts = base.tokenizer.batch_decode(out, skip_special_tokens=True)
        answers |= {row.id: cut_at_stop(text, task.template).strip() for row, text in zip(part, texts, strict=True)}
    return answers


def lab(base: Any, task: Task, rows: list[Example], batch: int) -> Answers:
    """The protocol lab without likelihoods."""
    made = evaluate(base.model, base.tokenizer, task, rows, batch=batch, likelihood=False)
    return {p["id"]: p["text"] for p in made}


def likelihood(base: Any, task: Task, rows: list[Example], batch: int) -> Answers:
    """The protocol options: labels and option texts."""
    made = evaluate(base.model, base.tokenizer, task, rows, batch=batch, protocol="options")
    return {p["id"]: p["extracted"] for p in made}


def measure(
    name: str, way: Callable[..., Answers], few: int, count: int, *given: Any
) -> tuple[dict[str, Any], Answers]:
    base, task, rows, batch = given
    spread = rows[:: max(1, len(rows) // few)][:few]  # of every length
    counter, counted = FlopCounterMode(display=False), spread[:count] or spread
    # Counting takes time of its own, little beside the passes of the original, so that they are not made twice.
    with nullcontext() if count else counter:
        began = time.perf_counter()
        answers = way(base, task, spread, batch)
        seconds = time.perf_counter() - began
    if count:
        with counter:
            way(base, task, counted, batch)
    result = {
        "procedure": name,
        "what": (way.__doc__ or "").strip(),
        "samples": len(spread),
        "seconds": round(seconds, 2),
        "samples_per_second": round(len(spread) / seconds, 4),
        "forward_gflops_per_sample": round(counter.get_total_flops() / len(counted) / 1e9, 1),
        "flops_counted_on": len(counted),
    }
    print(json.dumps(result), flush=True)
    return result, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--task", default="arc-e")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--slow-rows", type=int, default=2, help="rows of the original procedure")
    parser.add_argument("--root", type=Path, default=None)
    parser.add_argument("--adapter", type=Path, default=None, help="adapter folder of a run")
    asked = parser.parse_args()
    base, task = loading.load_base(asked.base), get_task(asked.task)
    injection = load_adapter(base.model, asked.adapter) if asked.adapter else None
    rows = task.load("test", asked.root)[: asked.rows]
    ways = [("original", original, asked.slow_rows, 0), ("plain", plain, asked.rows, asked.batch)]
    ways += [("lab", lab, asked.rows, asked.batch), ("options", likelihood, asked.rows, asked.batch)]
    results, answers = [], {}
    for name, way, few, count in ways:
        with temporarily_merged(injection if name in ("lab", "options") else None):
            result, answers[name] = measure(name, way, few, count, base, task, rows, asked.batch)
        results.append(result)
    speed = {r["procedure"]: r["samples_per_second"] for r in results}
    same = sum(answers["plain"][i] == text for i, text in answers["lab"].items())
    summary = {
        "adapter": injection.config.model_dump(mode="json") if injection else None,
        **{"base": asked.base, "task": asked.task, "rows": len(rows), "batch": asked.batch, "procedures": results},
        "lab_against_original": round(speed["lab"] / speed["original"], 1),
        "lab_against_plain": round(speed["lab"] / speed["plain"], 2),
        "same_answers_as_plain": f"{same} of {len(rows)}",
        "environment": environment(str(base.model.device), base.model.dtype),
    }
    name = "scoring-adapter" if injection else "scoring"
    (HERE / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    (HERE / f"{name}.md").write_text(_table(summary), encoding="utf-8")
    print(_table(summary))


def _name(adapter: dict[str, Any] | None) -> str:
    return f"with {adapter['type']} at {adapter['at']}" if adapter else "without an adapter"


def _table(summary: dict[str, Any]) -> str:
    what = f"{summary['base']} {_name(summary['adapter'])} on {summary['task']}, batch {summary['batch']}"
    lines = [
        f"# Scoring speed: {what}",
        "",
        "| procedure | samples | seconds | samples/s | forward GFLOPs/sample |",
        "|---|---|---|---|---|",
    ]
    for r in summary["procedures"]:
        cells = (r["samples"], r["seconds"], r["samples_per_second"], r["forward_gflops_per_sample"])
        lines.append(f"| {r['procedure']}: {r['what']} | {' | '.join(map(str, cells))} |")
    lines += [
        "",
        f"The lab is {summary['lab_against_original']} times as fast as the original procedure and "
        f"{summary['lab_against_plain']} times as fast as plain batched generation; "
        f"{summary['same_answers_as_plain']} answers are the same as those of the latter.",
        "",
        f"Machine: {json.dumps(summary['environment'])}. The FLOPs of each procedure are counted in a second pass.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
