"""The published results of LLM-Adapters, to compare runs with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cache
from importlib import resources
from typing import Any

from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.evaluation.statistics import wilson
from llm_adapters_lab.tasks.paper_datasets import BENCHMARKS
from llm_adapters_lab.tasks.prompts import ORIGINAL

_SIZES = {benchmark.name: benchmark.test for benchmark in BENCHMARKS}


@cache
def _paper() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((resources.files(__package__) / "paper.json").read_text(encoding="utf-8"))
    return content


def tables() -> tuple[dict[str, Any], ...]:
    """Return the published tables: name, source, contaminated (tasks), note, and rows of accuracies in per cent."""
    return tuple(_paper()["tables"])


def remarks(name: str, task: str | None = None) -> list[str]:
    """Return how a row was really made and what users report of it, for one task or for all."""
    found = []
    for remark in _paper()["remarks"]:
        tasks = remark.get("tasks", ())
        if any(fnmatch(name, rows) for rows in remark["rows"]) and (task is None or not tasks or task in tasks):
            threads = ", ".join(f"#{number}" for number in remark.get("threads", ()))
            of = f"{', '.join(tasks)}: " if tasks else ""
            found.append(of + remark["text"] + (f" (LLM-Adapters {threads})" if threads else ""))
    return found


@cache
def general_remarks() -> frozenset[str]:
    """Return the remarks on every task of every trained row, for a table of which the rows' own matter more."""
    found = Counter(text for name in names() for text in remarks(name, ""))
    return frozenset(text for text, count in found.items() if 2 * count > len(names()))


def names() -> list[str]:
    """Return the names of the rows, each a model and a method joined by a dash."""
    return list(dict.fromkeys(name for table in tables() for name in table["rows"]))


def published(name: str, tasks: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the published accuracies of one row.

    Args:
        name: of a row; see `names`.
        tasks: only these; default: all.

    Returns:
        One dict for each task: name, task, accuracy (0..1), correct, total, low and high (counted back from the rounded
        accuracy and the size of the test set, with the 95 % Wilson interval over its questions), contaminated (whether
        the paper's training set holds most of the test rows), remarks (see `remarks`), template (of the prompts),
        table, source and note. The corrected arithmetic table takes precedence over the first one, which repeats three
        of its columns.

    Raises:
        BadSpec: there is no such row.
    """
    if name not in names():
        raise BadSpec(f"The paper has no row {name!r}. {choices(name, names())}")
    found: dict[str, dict[str, Any]] = {}
    for table in sorted(tables(), key=lambda t: len(t["contaminated"])):
        for task, value in table["rows"].get(name, {}).items():
            if not tasks or task in tasks:
                fixed = {"table": table["name"], "source": table["source"], "note": table["note"]}
                total = _SIZES[task]
                low, high = wilson(correct := round(value / 100 * total), total)
                row = {"name": name, "task": task, "accuracy": round(value / 100, 4), "template": ORIGINAL}
                row |= {"correct": correct, "total": total, "low": low, "high": high}
                more = {"contaminated": task in table["contaminated"], "remarks": remarks(name, task)}
                found.setdefault(task, row | more | fixed)
    return list(found.values())
