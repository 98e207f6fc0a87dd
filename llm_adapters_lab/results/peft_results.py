"""The published results of peft's method comparison and of LLM-Adapters, with the intervals and tests that they lack.

A result is one accuracy on a known number of questions; those of peft are JSON files. Which of them were answered right
is not in it, so that two results are compared as if each had had questions of its own. Of answers to the same questions
that agree more often than by chance, as those of one base do, this overstates the p-value: a difference that is called
real is so, and some that are real are not found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_adapters_lab.errors import BadSpec, choices, listed
from llm_adapters_lab.evaluation.statistics import holm, two_shares, wilson
from llm_adapters_lab.results.formatting import interval, percent
from llm_adapters_lab.results.paired_tests import LEVEL
from llm_adapters_lab.results.plots.groups import shortened
from llm_adapters_lab.results.plots.style import BLUE, GRID, INK, new
from llm_adapters_lab.results.published_results import names, published, tables

if TYPE_CHECKING:
    import plotly.graph_objects as go

QUESTIONS = 1319
"""Number of the test questions of GSM8K, which peft's comparison on MetaMathQA is scored on."""


@dataclass(frozen=True)
class Result:
    """A published result.

    Attributes:
        name: of the experiment, such as "lora/llama-3.2-3B-rank32".
        method: as peft calls it, such as "LORA"; "full" without an adapter.
        base: hub id of the base; for LLM-Adapters the task, as its bases are compared with each other.
        correct: number of questions answered right.
        total: number of questions.
        learning_rate: of the training; None if it is not known, and so are all of the following.
        seed: of the training.
        forgetting: rise of the loss per token on other text, in nats; None if it was not measured.
        seconds: duration of the training.
        memory: largest memory of the GPU, in bytes.
        trainable: number of trainable parameters.
    """

    name: str
    method: str
    base: str
    correct: int
    total: int
    learning_rate: float | None = None
    seed: int | None = None
    forgetting: float | None = None
    seconds: float | None = None
    memory: int | None = None
    trainable: int | None = None

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.correct / self.total

    @property
    def ends(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy, over the questions."""
        return wilson(self.correct, self.total)


@dataclass(frozen=True)
class Place:
    """A result in a ranking.

    Attributes:
        result: of an experiment.
        tier: from 1; those of a tier are not distinguishable from the best of it.
        p: that it has the same accuracy as the reference, corrected for all comparisons by Holm's procedure; None for
            the reference.
    """

    result: Result
    tier: int
    p: float | None

    def verdict(self, reference: Result) -> str:
        """Return "better", "worse" or "not distinguishable", compared with the reference."""
        if self.p is None or self.p > LEVEL:
            return "" if self.p is None else "not distinguishable"
        return "better" if self.result.accuracy > reference.accuracy else "worse"


def read_peft_results(folder: str | Path, questions: int = QUESTIONS) -> tuple[list[Result], list[str]]:
    """Read a folder of peft's results, such as `method_comparison/MetaMathQA/results`.

    Args:
        folder: with JSON files; a file of an older run of the same experiment is left out.
        questions: number of test questions.

    Returns:
        The results, the best first; and why files were left out.

    Raises:
        BadSpec: there is no such folder or no result in it, or an accuracy is no share of that many questions.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise BadSpec(f"There is no folder {folder}.")
    found, when, left_out = dict[str, Result](), dict[str, str](), list[str]()
    for path in sorted(place.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            info, trained = content["run_info"], content["train_info"]
            scores = [entry for entry in trained["metrics"] if "test accuracy" in entry]
            if trained["status"] != "success" or not scores:
                left_out.append(f"{path.name}: {trained['status'] if scores else 'no test accuracy'}")
                continue
            result, begun = _result(info, trained, scores[-1], questions), str(info["created_at"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            left_out.append(f"{path.name}: no result of peft ({type(error).__name__}: {error})")
            continue
        if abs(result.correct - scores[-1]["test accuracy"] * questions) > 0.01:
            raise BadSpec(
                f"{path.name}: an accuracy of {scores[-1]['test accuracy']} is no share of {questions} questions. "
                "Set the number of test questions."
            )
        if result.name in found:
            left_out.append(f"{path.name}: another run of {result.name}; the latest counts")
        if begun >= when.get(result.name, ""):
            found[result.name], when[result.name] = result, begun
    if not found:
        raise BadSpec(f"{folder} has no result of peft. {listed(left_out, 3, '; ')}".strip())
    return sorted(found.values(), key=lambda result: (-result.correct, result.name)), left_out


def paper_results(task: str) -> list[Result]:
    """Return the published rows of LLM-Adapters on a task, the best first.

    Raises:
        BadSpec: the paper has no such task.
    """
    tasks = dict.fromkeys(name for table in tables() for row in table["rows"].values() for name in row)
    if task not in tasks:
        raise BadSpec(f"The paper has no task {task!r}. {choices(task, tasks)}")
    rows = [row for name in names() for row in published(name, [task])]
    found = [Result(r["name"], r["name"].rpartition("-")[2], task, r["correct"], r["total"]) for r in rows]
    return sorted(found, key=lambda result: (-result.correct, result.name))


def rank(results: Sequence[Result], reference: str = "") -> list[Place]:
    """Return results with their tiers, and with what tells them apart from one of them.

    A tier is its best result and all that are not distinguishable from it; the rest makes the next tiers. The p-values
    within a tier are corrected by Holm's procedure, and so are those of all comparisons with the reference.

    Args:
        results: in any order.
        reference: name of an experiment; default: the best.

    Raises:
        BadSpec: no experiment has that name, or the results have different bases.
    """
    if bases := sorted({result.base for result in results})[1:]:
        raise BadSpec(f"The results have different bases, such as {results[0].base} and {bases[-1]}. Compare one base.")
    ordered = sorted(results, key=lambda result: (-result.accuracy, result.name))
    names = [result.name for result in ordered]
    if reference and reference not in names:
        raise BadSpec(f"There is no result {reference!r}. {choices(reference, names)}")
    mine = ordered[names.index(reference)] if reference else ordered[0]
    others = [result for result in ordered if result is not mine]
    chances = dict(zip((o.name for o in others), holm([_chance(mine, other) for other in others]), strict=True))
    tiers: dict[str, int] = {}
    left, number = ordered, 0
    while left:
        number, (best, *rest) = number + 1, left
        corrected = holm([_chance(best, result) for result in rest])
        same = {r.name for r, p in zip(rest, corrected, strict=True) if p > LEVEL} | {best.name}
        tiers |= dict.fromkeys(same, number)
        left = [result for result in rest if result.name not in same]
    return [Place(result, tiers[result.name], chances.get(result.name)) for result in ordered]


def summary(places: Sequence[Place]) -> str:
    """Return in words what a ranking says about its reference."""
    (mine,) = (place.result for place in places if place.p is None)
    verdicts = [place.verdict(mine) for place in places if place.p is not None]
    counts = {word: verdicts.count(word) for word in ("not distinguishable", "better", "worse")}
    said = ", ".join(f"{word} {count}" for word, count in counts.items())
    return (
        f"Compared with {mine.name} ({percent(mine.accuracy)}, 95 % interval {interval(*mine.ends)}), the other "
        f"{len(verdicts)} results are: {said}. One seed each, unpaired."
    )


def figure(places: Sequence[Place]) -> go.Figure:
    """Show results with their intervals, best on top: those that are not distinguishable from the reference in blue.

    Its own interval is a band, and its name is bold. Lines separate tiers.
    """
    (mine,) = (place.result for place in places if place.p is None)
    alike = [place.p is None or place.p > LEVEL for place in places]
    count = f"{sum(alike) - 1} of {len(places) - 1}"
    words = f"blue: {count} not distinguishable from the band"
    chart = new("Published results", words, "accuracy in percent", "", 130 + 20 * len(places))
    rows = list(range(len(places)))
    ends = [place.result.ends for place in places]
    values = [place.result.accuracy for place in places]
    arms = [[100 * abs(end[i] - value) for value, end in zip(values, ends, strict=True)] for i in (1, 0)]
    low, high = mine.ends
    chart.add_vrect(x0=100 * low, x1=100 * high, fillcolor=BLUE, opacity=0.1, line_width=0)
    chart.add_scatter(
        x=[100 * value for value in values],
        y=rows,
        mode="markers",
        marker={"color": [BLUE if one else INK for one in alike], "size": 9},
        error_x={"array": arms[0], "arrayminus": arms[1], "thickness": 1.3, "width": 3, "color": INK},
        customdata=[
            [escape(p.result.name), interval(*p.result.ends), p.result.learning_rate or "unknown", p.verdict(mine)]
            for p in places
        ],
        hovertemplate="%{customdata[0]}<br>%{x:.1f} % (%{customdata[1]})<br>learning rate %{customdata[2]}<br>"
        "%{customdata[3]}<extra></extra>",
        showlegend=False,
    )
    for row in rows[1:]:
        if places[row].tier > max(place.tier for place in places[:row]):
            chart.add_hline(y=row - 0.5, line={"color": GRID, "width": 1, "dash": "dot"})
    names = [escape(shortened(place.result.name)) for place in places]
    names = [f"<b>{name}</b>" if place.p is None else name for name, place in zip(names, places, strict=True)]
    chart.update_yaxes(tickvals=rows, ticktext=names, range=[len(rows) - 0.5, -0.5], showgrid=False)
    return chart


def _result(info: dict[str, Any], trained: dict[str, Any], score: dict[str, Any], questions: int) -> Result:
    plan, adapter = info["train_config"], info.get("peft_config") or {}
    return Result(
        name=str(info["experiment_name"]),
        method=str(adapter.get("peft_type", "full")),
        base=str(plan["model_id"]),
        correct=round(float(score["test accuracy"]) * questions),
        total=questions,
        learning_rate=float(plan["optimizer_kwargs"]["lr"]),
        seed=int(plan["seed"]),
        forgetting=None if score.get("forgetting") is None else float(score["forgetting"]),
        seconds=float(trained["train_time"]),
        memory=int(trained.get("accelerator_memory_max", trained.get("cuda_memory_max", 0))),
        trainable=int(trained["num_trainable_params"]),
    )


def _chance(one: Result, other: Result) -> float:
    return two_shares(one.correct, one.total, other.correct, other.total)
