"""Paired tests: which of two runs is better on the same items, by how much, how surely, and on which items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.statistics import bootstrap_difference, mcnemar
from llm_adapters_lab.results.appearance import looks
from llm_adapters_lab.runs.record import Run

PROTOCOL = ("protocol", "shots")
LEVEL = 0.05
"""Largest p-value at which a difference is called one."""


def pairs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Compare the first run with each of the others on the items both have answered.

    Args:
        runs: two or more; unfinished ones are left out, since the short questions are answered first.

    Returns:
        One dict for each other run and task: first and second (names as in every figure), task, items, only_first
        and only_second (items that only one got right), difference (accuracy of the first minus that of the second),
        low and high (its 95% bootstrap interval), p (exact McNemar), and verdict: who is better, "not
        distinguishable", or "asked differently" if protocol or number of shots differ.
    """
    unique = list({run.id: run for run in runs if run.done}.values())
    names = {name: look.name for name, look in looks(unique).items()}
    answers = {run.id: _answers(run) for run in unique}
    result = []
    for second in unique[1:]:
        first = unique[0]
        mine, other = answers[first.id], answers[second.id]
        # The same id with another gold answer is a row of another file.
        shared = [key for key in mine if key in other and mine[key]["gold"] == other[key]["gold"]]
        for task in dict.fromkeys(task for task, _ in shared):
            keys = [key for key in shared if key[0] == task]
            a, b = ([bool(given[key]["correct"]) for key in keys] for given in (mine, other))
            row = {"first": names[first.id], "second": names[second.id], "task": task} | _test(a, b)
            asked = [[run.summary["scores"].get(task, {}).get(key) for key in PROTOCOL] for run in (first, second)]
            result.append(row | {"verdict": _verdict(row) if asked[0] == asked[1] else "asked differently"})
    return result


def _test(a: list[bool], b: list[bool]) -> dict[str, Any]:
    won = sum(x and not y for x, y in zip(a, b, strict=True))
    lost = sum(y and not x for x, y in zip(a, b, strict=True))
    low, high = bootstrap_difference(a, b)
    counts = {"items": len(a), "only_first": won, "only_second": lost, "difference": (won - lost) / len(a)}
    return counts | {"low": low, "high": high, "p": mcnemar(won, lost)}


def _verdict(test: dict[str, Any]) -> str:
    if test["p"] > LEVEL:
        return "not distinguishable"
    return f"{test['first'] if test['difference'] > 0 else test['second']} is better"


def disagreements(first: Run, second: Run) -> list[dict[str, Any]]:
    """Return the items that exactly one of two runs got right, those of the first run before those of the second.

    Returns:
        Dicts with against (name of the second run), task, id, right ("first" or "second"), gold, first and second (the
        answers that were read, None where there was none) and prompt.
    """
    mine, other, against = _answers(first), _answers(second), looks([first, second])[second.id].name
    found = [
        {
            "against": against,
            "task": key[0],
            "id": key[1],
            "right": "first" if mine[key]["correct"] else "second",
            "gold": mine[key]["gold"],
            "first": mine[key]["extracted"],
            "second": other[key]["extracted"],
            "prompt": mine[key]["prompt"],
        }
        for key in mine
        if key in other and mine[key]["correct"] != other[key]["correct"]
    ]
    return sorted(found, key=lambda item: item["right"])


def _answers(run: Run) -> dict[tuple[str, str], dict[str, Any]]:
    found = {(p["task"], p["id"]): p for p in run.predictions()}
    if run.done and not found and run.summary.get("scores"):
        raise BadSpec(f"The run {run.id} has scores but no predictions.jsonl: it cannot be compared item by item.")
    return found
