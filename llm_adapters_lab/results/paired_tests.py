"""Paired tests: which of two runs is better on the same items, by how much, how surely, and on which items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_adapters_lab.evaluation.statistics import bootstrap_difference, mcnemar
from llm_adapters_lab.results.appearance import looks
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.tasks.prompts import short_name

SETTINGS = {"protocol": "protocol", "shots": "shots", "extraction": "rule", "max_new_tokens": "limit of tokens"}
"""What must be the same in two scores, and its name."""
LEVEL = 0.05
"""Largest p-value at which a difference is called one."""
APART = "asked differently"

Answers = dict[tuple[str, str], dict[str, Any]]


def pairs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Compare the first run with each of the others on the items that both were asked in the same way.

    Args:
        runs: two or more; unfinished ones are left out, since the short questions are answered first.

    Returns:
        One dict for each other run and task: first and second (names as in every figure), task, items, only_first
        and only_second (items that only one got right), difference (accuracy of the first minus that of the second),
        low and high (its 95% bootstrap interval), p (exact McNemar), all four None without items; verdict: who is
        better, "not distinguishable", or "asked differently" if no item was asked in the same way; differs: in what the
        questions differ, "" for nothing (where only some prompts or gold answers do, those items are left out); and
        trained: in what the trainings differ that makes their losses or prompts incomparable, "" for nothing.
    """
    unique = list({run.id: run for run in runs if run.done}.values())
    names = {name: look.name for name, look in looks(unique).items()}
    answers = {run.id: run.answers() for run in unique}
    result = []
    for second in unique[1:]:
        first = unique[0]
        mine, other = answers[first.id], answers[second.id]
        for task in dict.fromkeys(task for task, id in mine if (task, id) in other):
            keys, differs = _alike(first, second, task, mine, other)
            a, b = ([bool(given[key]["correct"]) for key in keys] for given in (mine, other))
            row = {"first": names[first.id], "second": names[second.id], "task": task} | _test(a, b)
            verdict = _verdict(row) if keys else APART
            result.append(row | {"verdict": verdict, "differs": differs, "trained": _trained(first, second)})
    return result


def _alike(first: Run, second: Run, task: str, mine: Answers, other: Answers) -> tuple[list[tuple[str, str]], str]:
    """Return the items of a task that both runs were asked in the same way, and in what the others differ."""
    shared = [key for key in mine if key[0] == task and key in other]
    scores = [run.summary.get("scores", {}).get(task, {}) for run in (first, second)]
    words = []
    for key, name in SETTINGS.items():
        a, b = (score.get(key) for score in scores)
        # Records of earlier versions do not have all of them.
        if a != b and (None not in (a, b) or key in ("protocol", "shots")):
            words.append(f"{name} {a} and {b}")
    kept = [] if words else shared
    templates = [score.get("template") for score in scores]
    prompt = "prompt" if templates[0] == templates[1] else f"prompts {templates[0]} and {templates[1]}"
    for key, name in {"prompt_hash": prompt, "gold": "gold answer"}.items():
        known = [at for at in shared if None not in (mine[at].get(key), other[at].get(key))]
        if unlike := {at for at in known if mine[at][key] != other[at][key]}:
            words.append(f"{name} of {len(unlike)} of {len(shared)} items")
            kept = [at for at in kept if at not in unlike]
    return kept, ", ".join(words)


def _trained(first: Run, second: Run) -> str:
    """Return in what the trainings of two adapters differ that changes what their losses mean."""
    if first.spec.adapter is None or second.spec.adapter is None:
        return ""
    names = ("form", "loss_on", "template", "system", "control_tokens")
    fields = [(name, *(getattr(run.spec.data, name) for run in (first, second))) for name in names]
    fields = [(name, *(short_name(x) if name == "template" and x else x for x in both)) for name, *both in fields]
    return ", ".join(f"{name} {a} and {b}" for name, a, b in fields if a != b)


def _test(a: list[bool], b: list[bool]) -> dict[str, Any]:
    won = sum(x and not y for x, y in zip(a, b, strict=True))
    lost = sum(y and not x for x, y in zip(a, b, strict=True))
    counts = {"items": len(a), "only_first": won, "only_second": lost}
    if not a:
        return counts | dict.fromkeys(("difference", "low", "high", "p"))
    low, high = bootstrap_difference(a, b)
    return counts | {"difference": (won - lost) / len(a), "low": low, "high": high, "p": mcnemar(won, lost)}


def _verdict(test: dict[str, Any]) -> str:
    if test["p"] > LEVEL:
        return "not distinguishable"
    return f"{test['first'] if test['difference'] > 0 else test['second']} is better"


def differing_questions(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what a reader of the rows of `pairs` has to know: in what questions or trainings differ."""
    found = []
    for row in rows:
        names = f"{row['first']} and {row['second']}"
        if row["differs"]:
            left = "nothing is paired" if not row["items"] else "these items are left out"
            found.append(f"{names}, {row['task']}: {APART} ({row['differs']}); {left}.")
        if row["trained"]:
            found.append(f"{names}: trained differently ({row['trained']}).")
    return list(dict.fromkeys(found))


def disagreements(first: Run, second: Run) -> list[dict[str, Any]]:
    """Return the items that exactly one of two runs got right, those of the first run before those of the second.

    Only items that both were asked in the same way.

    Returns:
        Dicts with against (name of the second run), task, id, right ("first" or "second"), gold, first and second (the
        answers that were read, None where there was none), first_text and second_text (what was generated),
        first_options and second_options (log-likelihoods of the options, see `choice_scores`; None where they were
        not scored) and prompt.
    """
    mine, other, against = first.answers(), second.answers(), looks([first, second])[second.id].name
    found = []
    for task in dict.fromkeys(task for task, _ in mine):
        for key in _alike(first, second, task, mine, other)[0]:
            right = "first" if mine[key]["correct"] else "second"
            item = {"against": against, "task": task, "id": key[1], "right": right, "gold": mine[key]["gold"]}
            for which, row in {"first": mine[key], "second": other[key]}.items():
                item[which] = row["extracted"]
                item |= {f"{which}_{name}": row.get(name) for name in ("text", "options")}
            if mine[key]["correct"] != other[key]["correct"]:
                found.append(item | {"prompt": mine[key]["prompt"]})
    return sorted(found, key=lambda item: item["right"])
