"""A shelf of ten adapters, and questions that do not say which one they need.

    python benchmarks/seeds/stylus.py [--seeds 0 1 2] [--root runs/seeds]

On the shelf are the five members of `fusion.py`, of one mini task each, and five of languages that contradict English
(`mini-tongue:1` to 5). For 40 test questions of each mini task, whose forms do not occur in training, `Picker` chooses;
the question is answered by the mix that it returns. Controls: the adapter of the task (oracle), one drawn at random,
the picks with the cards exchanged, and the average of all ten.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusion import MATH, MEMBER, SCORED, TRAIN
from results import each, finished, options, record

from llm_adapters_lab.core.saved_adapters import looking_in
from llm_adapters_lab.evaluation.predictions import evaluate
from llm_adapters_lab.models import load_base
from llm_adapters_lab.results.picking import Picker
from llm_adapters_lab.results.shelf import Shelf
from llm_adapters_lab.tasks.registry import get_task

QUESTIONS = 40
TONGUES = [f"mini-tongue:{number}" for number in range(1, 6)]
PLAIN = ("Once upon a time, a king lived in a castle.", "The weather is fine today.", "def f(x): return x + 1")
Choice = Callable[[str, str], dict[str, float]]


def card_name(task: str) -> str:
    """Return the name of a task's adapter on the shelf."""
    return task.replace(":", "-")


def stocked(root: Path, seed: int) -> Shelf:
    """Return the shelf with the ten adapters."""
    runs = [finished(root, seed, adapter=MEMBER, data={"task": t}, train=TRAIN, eval=SCORED) for t in MATH]
    told = {"loss_on": "all"}
    runs += [
        finished(root, seed, adapter=MEMBER, data={"task": t} | told, train=TRAIN, eval={"tasks": []}) for t in TONGUES
    ]
    shelf = Shelf(root / f"shelf-{seed}")
    with looking_in(root):
        for task, run in zip([*MATH, *TONGUES], runs, strict=True):
            shelf.add(run.id, card_name(task))
    return shelf


def scored(picker: Picker, shelf: Shelf, choose: Choice) -> float:
    """Return the accuracy on all questions, each answered by the mix that is chosen for it."""
    right = count = 0
    for name in MATH:
        task, together = get_task(name), defaultdict[tuple[Any, ...], list[Any]](list)
        for row in task.load("test", None)[:QUESTIONS]:
            chosen = {key: round(share, 2) for key, share in choose(name, row.instruction).items()}
            together[tuple(chosen.items())].append(row)
        for chosen_, rows in together.items():
            shelf.use(picker.model, dict(chosen_), picker.tokenizer)
            found = list(evaluate(picker.model, picker.tokenizer, task, rows))
            right, count = right + sum(p["correct"] for p in found), count + len(found)
    return right / count


def one_seed(root: Path, seed: int) -> dict[str, Any]:
    """Return the shares and accuracies of a seed."""
    base = load_base("nano")
    shelf = stocked(root, seed)
    picker = Picker(shelf.questions(), base.model, base.tokenizer)
    questions = [(name, row.instruction) for name in MATH for row in get_task(name).load("test", None)[:QUESTIONS]]
    picks = {question: picker.pick(question) for _, question in questions}
    first = [next(iter(picks[question]), "") == card_name(name) for name, question in questions]
    draw, exchanged = random.Random(seed), picker.names[:]
    draw.shuffle(exchanged)
    other = dict(zip(picker.names, exchanged, strict=True))
    ways: dict[str, Choice] = {
        "picked": lambda _, question: picks[question],
        "oracle": lambda name, _: {card_name(name): 1.0},
        "random": lambda *_: {draw.choice(picker.names): 1.0},
        "cards exchanged": lambda _, question: {other[name]: share for name, share in picks[question].items()},
        "average of all": lambda *_: dict.fromkeys(picker.names, 1 / len(picker.names)),
    }
    foreign = {card_name(task) for task in TONGUES}
    most = max(sum(s for n, s in picks[q].items() if n in foreign) for _, q in questions)
    found: dict[str, Any] = {"right card first": sum(first) / len(first), "largest share of a foreign language": most}
    found["none for plain text"] = all(picker.pick(text) == {} for text in PLAIN)
    found |= {name: scored(picker, shelf, choose) for name, choose in ways.items()}
    print(seed, found, flush=True)
    return found


def main() -> None:
    asked = options(__doc__)
    found = {seed: one_seed(asked.root, seed) for seed in asked.seeds}
    print(json.dumps(found, indent=1))

    def values(name: str) -> str:
        return each(found[seed][name] for seed in asked.seeds)

    record(
        "stylus",
        "Stylus",
        "right card first ≥ .90; accuracy ≥ oracle − .03 and ≥ average of all + .15",
        f"right card {values('right card first')}; accuracy {values('picked')}, oracle {values('oracle')}",
        f"average of all {values('average of all')}, random {values('random')}, cards exchanged "
        f"{values('cards exchanged')}",
        found,
    )


if __name__ == "__main__":
    main()
