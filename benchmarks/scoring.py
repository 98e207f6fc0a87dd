"""How fast scoring is: the original procedure, plain batched generation, and the lab, on the same model and rows.

    python benchmarks/scoring.py [--base smollm2-135m] [--task arc-e] [--rows 64] [--root DATA] [--adapter FOLDER]
                                 [--likelihoods]

With an adapter the others run it in its hooks and the lab merges it for the time, as `run` does. Plain generation and
the lab take turns, in several rounds, with the limit of the task and, where it is lower, with the one that the lab
learns from the training rows (`eval.max_new_tokens: auto`). With `--likelihoods` both also score all options, by label
and by text: the lab as it does by default, the other as lm-evaluation-harness does; at the limit of the task only.
Writes scoring.json and scoring.md beside this file; the names of other tasks, `-adapter` and `-likelihoods` are
appended. Ratios are of processor seconds of the whole process, which on a shared machine vary less than those of the
wall clock; run it with OMP_NUM_THREADS=1 there, since waiting threads use processor time, too. Forward FLOPs are
counted by torch and depend on no machine; on a CPU torch leaves out the products inside attention.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from llm_adapters_lab.core.merging import temporarily_merged
from llm_adapters_lab.core.saving import load_adapter
from llm_adapters_lab.evaluation.decoding import common_prefix
from llm_adapters_lab.evaluation.likelihood import has_option_texts
from llm_adapters_lab.evaluation.predictions import evaluate
from llm_adapters_lab.evaluation.statistics import options as labels_of
from llm_adapters_lab.models import loading
from llm_adapters_lab.runs.environment import environment
from llm_adapters_lab.runs.rows import answer_limit
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example, Task
from llm_adapters_lab.tasks.formats import get_format
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import pad, text_ids

HERE = Path(__file__).parent
Answers = dict[str, dict[str, Any]]
"""By row: text and, where they are scored, options, as in a prediction."""


def original(base: Any, task: Task, rows: list[Example], batch: int, limit: int) -> Answers:
    """One prompt at a time, 4 beams, no cache."""
    return _generate(base, task, rows, 1, {"num_beams": 4, "use_cache": False, "max_new_tokens": limit})


def plain(base: Any, task: Task, rows: list[Example], batch: int, limit: int) -> Answers:
    """Greedy `generate` in batches, padded on the left, in file order, until all rows have their end token."""
    return _generate(base, task, rows, batch, {"max_new_tokens": limit})


def plain_scores(base: Any, task: Task, rows: list[Example], batch: int, limit: int) -> Answers:
    """Plain, then options as lm-evaluation-harness scores them: the longest first, padded on the right, no cache."""
    answers, passes = plain(base, task, rows, batch, limit), defaultdict[Any, list[Any]](list)
    form, tokenizer = get_format(base.tokenizer, task.template), base.tokenizer
    for row, (_, prompt) in zip(rows, form.prompts(rows), strict=True):
        labels, options = labels_of(row, task.labels), {"label": {}, "text": {}}
        targets = text_ids(tokenizer, [form.label_target(label, row) for label in labels])
        shared, pairs = common_prefix(targets), zip(labels, targets, strict=True)
        asked = [("label", prompt + ids[:shared], label, ids[shared:]) for label, ids in pairs]
        if has_option_texts(row):
            (cloze,) = text_ids(tokenizer, [prompts.cloze(row)], begin=True)
            texts = text_ids(tokenizer, [f" {text}" for _, text in row.options])
            asked += [("text", cloze, label, ids) for (label, _), ids in zip(row.options, texts, strict=True)]
        for kind, context, label, ids in asked:  # options that differ only in their last token share a pass there, too
            passes[(*context, *ids[:-1])].append((options[kind], label, ids))
        answers[row.id]["options"] = options
    order = sorted(passes, key=len, reverse=True)
    for part in (order[start : start + batch] for start in range(0, len(order), batch)):
        with torch.no_grad():
            logits = base.model(input_ids=pad(part, tokenizer.pad_token_id, "right"), use_cache=False).logits
        for read, each in zip(part, logits, strict=True):
            for found, label, ids in passes[read]:
                values = each[len(read) - len(ids) : len(read)].float().log_softmax(-1)
                found[label] = float(values[range(len(ids)), ids].sum())
    return answers


def _generate(base: Any, task: Task, rows: list[Example], batch: int, options: dict[str, Any]) -> Answers:
    answers: Answers = {}
    form = get_format(base.tokenizer, task.template)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        tokens = [ids for _, ids in form.prompts(part)]
        ids = pad(tokens, base.tokenizer.pad_token_id, "left")
        mask = pad([[1] * len(row) for row in tokens], 0, "left")
        with torch.no_grad():
            out = base.model.generate(input_ids=ids, attention_mask=mask, do_sample=False, **options)
        made = zip(part, out[:, ids.shape[1] :].tolist(), strict=True)
        answers |= {row.id: {"text": form.answer_text(new)} for row, new in made}
    return answers


def lab(base: Any, task: Task, rows: list[Example], batch: int, limit: int) -> Answers:
    """The protocol lab without likelihoods."""
    made = evaluate(base.model, base.tokenizer, task, rows, batch=batch, likelihood=False, max_new_tokens=limit)
    return {p["id"]: p for p in made}


def lab_scores(base: Any, task: Task, rows: list[Example], batch: int, limit: int) -> Answers:
    """The protocol lab as it comes: with the likelihoods of labels and option texts."""
    made = evaluate(base.model, base.tokenizer, task, rows, batch=batch, max_new_tokens=limit)
    return {p["id"]: p for p in made}


def likelihood(base: Any, task: Task, rows: list[Example], batch: int, limit: int) -> Answers:
    """The protocol options: labels and option texts."""
    made = evaluate(base.model, base.tokenizer, task, rows, batch=batch, protocol="options")
    return {p["id"]: p for p in made}


class Way:
    """A procedure with its limit, what it answered, and what that took."""

    def __init__(self, name: str, does: Callable[..., Answers], rows: list[Example], limit: int, merged: Any) -> None:
        """Take everything that is not the same for all ways."""
        self.name, self.does, self.rows, self.limit, self.merged = name, does, rows, limit, merged
        self.seconds, self.processor, self.gflops = list[float](), list[float](), math.nan
        self.answers: Answers = {}

    def run(self, base: Any, task: Task, batch: int, count: bool = False) -> None:
        """Answer all rows and measure it; the last time, count operations instead."""
        given = base, task, self.rows, batch, self.limit
        with temporarily_merged(self.merged):
            if count:
                with FlopCounterMode(display=False) as counter:
                    self.does(*given)
                self.gflops = counter.get_total_flops() / len(self.rows) / 1e9
                return
            began, used = time.perf_counter(), time.process_time()
            self.answers = self.does(*given)
        self.seconds.append(time.perf_counter() - began)
        self.processor.append(time.process_time() - used)
        print(f"{self.name}: {self.seconds[-1]:.1f} s, {self.processor[-1]:.1f} s of a processor", flush=True)

    def summary(self) -> dict[str, Any]:
        """Return the measurements."""
        return {
            "procedure": self.name,
            "what": (self.does.__doc__ or "").strip(),
            "limit": self.limit,
            "samples": len(self.rows),
            "seconds": [round(value, 2) for value in self.seconds],
            "processor_seconds": [round(value, 2) for value in self.processor],
            "samples_per_processor_second": round(len(self.rows) / statistics.median(self.processor), 4),
            "forward_gflops_per_sample": None if math.isnan(self.gflops) else round(self.gflops, 1),
        }


def ratio(first: Way, second: Way) -> dict[str, Any]:
    """Return how many times as fast the second way is, by round and by operations, and how many answers are equal."""
    by_round = [a / b for a, b in zip(first.processor, second.processor, strict=True)]
    pairs = [(first.answers[row], answer) for row, answer in second.answers.items()]
    scored = [(a["options"], b["options"]) for a, b in pairs if "options" in a]
    differences = [abs(a[kind][label] - b[kind][label]) for a, b in scored for kind in a for label in a[kind]]
    return {
        "of": f"{second.name} against {first.name}",
        "median": round(statistics.median(by_round), 2),
        "by_round": [round(value, 2) for value in by_round],
        "by_operations": None if math.isnan(first.gflops) else round(first.gflops / second.gflops, 2),
        "same_answers": f"{sum(a['text'] == b['text'] for a, b in pairs)} of {len(pairs)}",
        "largest_difference_nats": max(differences, default=None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--task", default="arc-e")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slow-rows", type=int, default=2, help="rows of the original procedure; 0: leave it out")
    parser.add_argument("--root", type=Path, default=None)
    parser.add_argument("--adapter", type=Path, default=None, help="adapter folder of a run")
    parser.add_argument("--no-flops", action="store_true", help="do not count operations, which takes another pass")
    parser.add_argument("--likelihoods", action="store_true", help="measure answers with the likelihoods of options")
    asked = parser.parse_args()
    base, task = loading.load_base(asked.base), get_task(asked.task)
    injection = load_adapter(base.model, asked.adapter) if asked.adapter else None
    rows = task.load("test", asked.root)[: asked.rows]
    root = str(asked.root) if asked.root else None
    plan = {"tasks": [asked.task], "max_new_tokens": "auto", "root": root}
    form, whole = get_format(base.tokenizer, task.template), task.max_new_tokens
    learnt = answer_limit(RunSpec.parse({"base": asked.base, "eval": plan}), asked.task, form, rows)
    by_plain, by_lab = (plain_scores, lab_scores) if asked.likelihoods else (plain, lab)
    ways = [Way("plain", by_plain, rows, whole, None), Way("lab", by_lab, rows, whole, injection)]
    if learnt < whole and not asked.likelihoods:
        ways += [Way("plain, learnt limit", by_plain, rows, learnt, None)]
        ways += [Way("lab, learnt limit", by_lab, rows, learnt, injection)]
    others = [Way("options", likelihood, rows, whole, injection)] if task.labels and not asked.likelihoods else []
    if (few := asked.slow_rows) and not asked.likelihoods:
        spread = rows[:: max(1, len(rows) // few)][:few]  # of every length
        others = [Way("original", original, spread, whole, None), *others]
    for way in others:
        way.run(base, task, asked.batch)
    for _ in range(asked.rounds):
        for way in ways:
            way.run(base, task, asked.batch)
    for way in () if asked.no_flops else (*others, *ways):
        way.run(base, task, asked.batch, count=True)
    ratios = [ratio(ways[0], ways[1]), *([ratio(ways[2], ways[3]), ratio(ways[0], ways[3])] if ways[2:] else [])]
    summary = {
        "adapter": injection.config.model_dump(mode="json") if injection else None,
        **{"base": asked.base, "task": asked.task, "rows": len(rows), "batch": asked.batch, "rounds": asked.rounds},
        "procedures": [way.summary() for way in (*others, *ways)],
        "ratios": ratios,
        "environment": environment(str(base.model.device), base.model.dtype),
    }
    name = "scoring" + f"-{asked.task}" * (asked.task != "arc-e") + "-adapter" * bool(injection)
    name += "-likelihoods" * asked.likelihoods
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
        "| procedure | limit | samples | processor seconds | samples per processor second | forward GFLOPs/sample |",
        "|---|---|---|---|---|---|",
    ]
    for r in summary["procedures"]:
        seconds = ", ".join(map(str, r["processor_seconds"]))
        cells = (seconds, r["samples_per_processor_second"], r["forward_gflops_per_sample"])
        cells = (r["limit"], r["samples"], *cells)
        lines.append(f"| {r['procedure']}: {r['what']} | {' | '.join(map(str, cells))} |")
    lines += ["", "| ratio of processor seconds | median | by round | by operations | same answers |"]
    lines += ["|---|---|---|---|---|"]
    for r in summary["ratios"]:
        by_round = ", ".join(map(str, r["by_round"]))
        lines.append(f"| {r['of']} | {r['median']} | {by_round} | {r['by_operations']} | {r['same_answers']} |")
    lines += [
        "",
        "Answers that the learnt limit cuts are not the same as whole ones, but their beginnings are.",
    ] * bool(summary["ratios"][1:])
    if (largest := summary["ratios"][0]["largest_difference_nats"]) is not None:
        lines += ["", f"The log-likelihoods of both differ by {largest:.1g} nats at most."]
    lines += ["", f"Machine: {json.dumps(summary['environment'])}."]
    if any(r["forward_gflops_per_sample"] is not None for r in summary["procedures"]):
        lines[-1] += " FLOPs are counted in another pass."
    return "\n".join(lines).replace("| None |", "| not counted |") + "\n"


if __name__ == "__main__":
    main()
