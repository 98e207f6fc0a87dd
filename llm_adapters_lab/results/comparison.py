"""Compare runs: scores and costs of several runs as plain values, for every front end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llm_adapters_lab.results.appearance import looks
from llm_adapters_lab.results.formatting import SHARES, percent
from llm_adapters_lab.results.published_results import general_remarks
from llm_adapters_lab.runs.record import Run

SCORE = (
    *("accuracy", "low", "high", "correct", "total", "chance", "majority", "in_format"),
    # Older records lack these.
    *("protocol", "shots", "extraction", "by_label", "by_text", "acc_norm", "by_limit", "too_long"),
    *("decoding", "template", "trained_with", "dtype", "batch", "max_new_tokens"),
)
LEAK = 0.01
"""Share of test rows found in the training data from which on a score is marked."""
FORMAT = 0.5
"""Share of answers in the requested format below which a score says more about the format than about the answers."""
FORMAT_NOTE = (
    "Where few answers of a run are in the requested format ('in format'), a jump in accuracy can be format, not "
    "knowledge. 'by label' and 'by text' show how often the right option is the likeliest one, as its label and as its "
    "words, whatever is generated."
)


def mean_accuracy(run: Run, tasks: Sequence[str] | None = None) -> float | None:
    """Return the unweighted mean accuracy (0..1) over tasks; None where one of them was not scored.

    Args:
        run: the run.
        tasks: the tasks to count; default: all that this run was scored on.
    """
    scores = run.summary.get("scores", {})
    names = list(scores) if tasks is None else tasks
    if not names or any(name not in scores for name in names):
        return None
    return math.fsum(scores[name]["accuracy"] for name in names) / len(names)


def task_names(runs: Sequence[Run]) -> list[str]:
    """Return the tasks any of the runs was scored on, in order of appearance."""
    return list(dict.fromkeys(task for run in runs for task in run.summary.get("scores", {})))


def leak(summary: Mapping[str, Any], task: str | None) -> float | None:
    """Return the share of a task's test rows that are in the training data; None if below 1%, or unknown.

    Args:
        summary: of a run; its optional key "leaks" holds what `contamination.overlap` counts for each task.
        task: the task.
    """
    found = (summary.get("leaks") or {}).get(task)
    share = max(found["exact"], found.get("ngram", 0)) / found["total"] if found and found.get("total") else 0.0
    return share if share >= LEAK else None


def notes(score: Mapping[str, Any], leaking: float | None) -> list[str]:
    """Return what belongs beside an accuracy, in words, as far as it is known.

    Args:
        score: one of a summary.
        leaking: what `leak` returns for the task.
    """
    shares = {name: score.get(name.replace(" ", "_")) for name in SHARES if name not in ("chance", "majority")}
    words = [f"{percent(share, 0)} {name}" for name, share in shares.items() if share is not None]
    words += [f"{score['too_long']} too long, not asked"] if score.get("too_long") else []
    shots = f", {score['shots']} shots" if score.get("shots") else ""
    words += [f"protocol {score['protocol']}{shots}"] if score.get("protocol") else []
    words += [f"prompt {score['template']}, {score['dtype']}, batch {score['batch']}"] if score.get("template") else []
    return words + ([f"{percent(leaking, 0)} of the rows seen in training"] if leaking else [])


def remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a reader of `compare`'s rows has to know: leaked test rows, and answers that cannot be read."""
    found = [
        f"{row['task']}, {row['name']}: {percent(row['leak'], 0)} of the test rows are in the training data."
        for row in rows
        if row.get("leak")
    ]
    found += sorted({f"{row['name']}: {row['note']}" for row in rows if row.get("contaminated")})
    found += [
        f"{row['task']}, {row['name']}: asked with the prompt {row['template']}, trained with {row['trained_with']}."
        for row in rows
        if row.get("trained_with")
    ]
    made: dict[str, dict[str, None]] = {}
    for row in rows:
        for text in row.get("remarks", ()):
            made.setdefault(text, {})[row["name"]] = None
    general = general_remarks() & made.keys()
    found += [f"{', '.join(names)}: {text}" for text, names in made.items() if text not in general]
    if general:
        found.append(f"{len(general)} more remarks hold for all published rows: see docs/published, or --json.")
    unread = any(row.get("in_format") is not None and row["in_format"] < FORMAT for row in rows)
    return found + [FORMAT_NOTE] * unread


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the results as plain rows, one for each run and dataset.

    Args:
        runs: finished or not; a run without scores gets one row whose `task` is None.

    Returns:
        Dicts with the keys run, name, adapter, base, status, trainable_parameters, share_of_base, steps, seconds,
        tokens_per_second, task, those of `SCORE`, and leak (share of test rows in the training data, from 1% on).
        Shares, accuracies and their 95% interval are 0..1; a value that is not known is None.
    """
    rows: list[dict[str, Any]] = []
    names = looks(runs)
    for run in {run.id: run for run in runs}.values():
        spec, summary = run.spec, run.summary
        trained, size = summary.get("train") or {}, summary.get("trainable_parameters")
        fixed = {
            "run": run.id,
            "name": names[run.id].name,
            "adapter": spec.adapter.type if spec.adapter else None,
            "base": spec.base,
            "status": summary["status"],
            "trainable_parameters": size,
            "share_of_base": size / summary["base_parameters"] if size is not None else None,
        } | {key: trained.get(key) for key in ("steps", "seconds", "tokens_per_second")}
        scores = summary.get("scores") or {None: {}}
        rows += [
            fixed | {"task": task} | {key: score.get(key) for key in SCORE} | {"leak": leak(summary, task)}
            for task, score in scores.items()
        ]
    return rows
