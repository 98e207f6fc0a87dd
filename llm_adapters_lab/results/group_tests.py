"""Paired tests of groups of runs: which is better, by how much, how surely, and which cannot be told apart.

Two single runs are compared by McNemar's exact test, as in `paired_tests`. If one of them has several seeds, both the
questions and the seeds count as samples of more: see `Difference`.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.statistics import bootstrap_difference, holm, mcnemar, student, student_quantile
from llm_adapters_lab.results.entry_groups import EntryGroup
from llm_adapters_lab.results.formatting import percent
from llm_adapters_lab.results.paired_tests import LEVEL, SETTINGS
from llm_adapters_lab.results.run_index import Entry

ENOUGH = 8
"""Degrees of freedom from which on the spread of two groups over seeds is estimated from these two alone."""
Numbers = npt.NDArray[np.int32]
Rights = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Answers:
    """Which questions the seeds of a group answered correctly.

    Attributes:
        questions: number of each question, ascending, of shape (questions,). Questions that were asked in another way
            have another number.
        right: whether the answer was correct, of shape (seeds, questions).
    """

    questions: Numbers
    right: Rights


@dataclass(frozen=True)
class Difference:
    """The difference in accuracy of two groups on the questions that both were asked in the same way.

    With the difference dᵢ of the two means over seeds on question i of n, the variance s² over seeds and the numbers of
    seeds a and b, its squared error is var(d)/n + s²(1/a + 1/b); the degrees of freedom are those of Welch and
    Satterthwaite. The variance s² is pooled over the two groups if they have five seeds each or more, since an unstable
    method must not hide what others do, and else over all groups that are compared. If no group has several seeds, two
    runs are compared by McNemar's exact test, with a bootstrap interval.

    Attributes:
        items: number of questions.
        wins: number of questions on which the first is better.
        losses: number of questions on which the second is better.
        seeds: of the first and the second group.
        points: accuracy of the first minus that of the second, -1..1.
        p: two-sided p-value; 1 without questions.
        error: standard error of `points`; 0 for two single runs.
        freedom: its degrees of freedom; 0 for two single runs.
    """

    items: int
    wins: int
    losses: int
    seeds: tuple[int, int]
    points: float
    p: float
    error: float = 0.0
    freedom: int = 0

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `points`."""
        if self.freedom:
            half = self.error * student_quantile(self.freedom)
            return max(-1.0, self.points - half), min(1.0, self.points + half)
        both = self.items - self.wins - self.losses
        first = [True] * self.wins + [False] * (self.losses + both)
        second = [False] * self.wins + [True] * self.losses + [False] * both
        return bootstrap_difference(first, second)

    @property
    def method(self) -> str:
        """The name of the test and what it is based on."""
        if not self.freedom:
            return f"exact McNemar, {self.items} items"
        first, second = self.seeds
        seeds = (
            f"{first} and {second} seeds" if first != second else f"{first} seeds each" if first > 1 else "1 seed each"
        )
        return f"t-test, {self.items} items, {seeds}"


@dataclass(frozen=True)
class Spread:
    """How much the accuracy depends on the seed.

    Attributes:
        variance: of the accuracies of seeds, pooled over groups.
        freedom: its degrees of freedom; 0 if no group has several seeds.
    """

    variance: float = 0.0
    freedom: int = 0

    @classmethod
    def of(cls, groups: Iterable[Answers]) -> Spread:
        """Return the spread within groups."""
        squares, freedom = 0.0, 0
        for group in groups:
            if len(group.right) > 1 and group.right.size:
                means = group.right.mean(axis=1)
                squares += float(((means - means.mean()) ** 2).sum())
                freedom += len(means) - 1
        return cls(squares / freedom, freedom) if freedom else cls()


def compare(first: Answers, second: Answers, spread: Spread | None = None) -> Difference:
    """Compare two groups on the questions they share.

    Args:
        first: answers of the first group.
        second: answers of the second group.
        spread: over seeds, of all groups that are compared, if these two have too few seeds for one of their own
            (`ENOUGH`); by default, of these two in any case.
    """
    own = Spread.of((first, second))
    spread = own if spread is None or own.freedom >= ENOUGH else spread
    _, i, j = np.intersect1d(first.questions, second.questions, assume_unique=True, return_indices=True)
    a, b = first.right[:, i], second.right[:, j]
    seeds, items = (len(a), len(b)), len(i)
    if not items:
        return Difference(0, 0, 0, seeds, 0.0, 1.0)
    each = a.mean(axis=0) - b.mean(axis=0)
    wins, losses, points = int((each > 0).sum()), int((each < 0).sum()), float(each.mean())
    if not spread.freedom:
        return Difference(items, wins, losses, seeds, points, mcnemar(wins, losses))
    over_items = float(each.var(ddof=1)) / items if items > 1 else 1.0
    over_seeds = spread.variance * (1 / seeds[0] + 1 / seeds[1])
    error = math.sqrt(over_items + over_seeds)
    if not error:  # every question and every seed says the same
        return Difference(items, wins, losses, seeds, points, mcnemar(wins, losses))
    freedom = error**4 / (over_items**2 / max(1, items - 1) + over_seeds**2 / spread.freedom)
    whole = max(1, int(freedom))
    return Difference(items, wins, losses, seeds, points, student(points / error, whole), error, whole)


class AnswerStore:
    """The answers of many runs, each read once; a run whose files change is read again. May be used by threads."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._tasks: list[str] = []
        self._known: dict[str, tuple[Any, Numbers, Rights]] = {}

    def of(self, group: EntryGroup, tasks: Sequence[str]) -> Answers:
        """Return the answers of a group to tasks, to the questions that all its seeds were asked.

        Raises:
            BadSpec: the stored answers are not those that the summary counts.
            OSError: they cannot be read.
        """
        found = [self._read(entry) for entry in group.asked(tasks)]
        if not found:
            return Answers(np.zeros(0, np.int32), np.zeros((1, 0), np.bool_))
        shared = found[0][0]
        for questions, _ in found[1:]:
            shared = np.intersect1d(shared, questions, assume_unique=True)
        with self._lock:
            wanted = np.array([self._tasks[number] in tasks for number in shared], np.bool_)
        shared = shared[wanted]
        return Answers(shared, np.stack([right[np.searchsorted(known, shared)] for known, right in found]))

    def _read(self, entry: Entry) -> tuple[Numbers, Rights]:
        path = entry.run.folder / "predictions.jsonl"
        stat = path.stat()
        stamp = stat.st_mtime_ns, stat.st_size
        known = self._known.get(entry.id)
        if known is None or known[0] != stamp:
            numbers = self._number(entry)
            order = sorted(numbers)
            questions = np.array(order, np.int32)
            known = self._known[entry.id] = stamp, questions, np.array([numbers[n] for n in order], np.bool_)
        return known[1], known[2]

    def _number(self, entry: Entry) -> dict[int, bool]:
        """Return whether each question was answered correctly, by its number."""
        settings = {task: tuple(score.get(key) for key in SETTINGS) for task, score in entry.results.items()}
        found: dict[int, bool] = {}
        count: dict[str, list[int]] = {}
        for row in entry.run.predictions():
            task = sys.intern(row["task"])
            key = (task, row["id"], row.get("prompt_hash"), row.get("gold"), *settings.get(task, ()))
            with self._lock:
                number = self._numbers.setdefault(key, len(self._tasks))
                if number == len(self._tasks):
                    self._tasks.append(task)
            found[number] = bool(row["correct"])
            count.setdefault(task, [0, 0])
        for number, right in found.items():
            own = count[self._tasks[number]]
            own[0], own[1] = own[0] + 1, own[1] + int(right)
        for task, score in entry.results.items():
            total, correct = count.get(task, (0, 0))
            if (total, correct) != (score["total"], score["correct"]):
                raise BadSpec(
                    f"{entry.id}: predictions.jsonl holds {total} of {score['total']} answers to {task}, {correct} of "
                    f"them right; its summary counts {score['correct']} right. "
                    "Repeat the run with --fresh (fresh=True)."
                )
        return found


@dataclass(frozen=True)
class Tier:
    """Groups that cannot be told apart from the best of them.

    Attributes:
        groups: the best first.
        differences: of each of the others from the best, in the same order, without the best.
    """

    groups: tuple[EntryGroup, ...]
    differences: tuple[Difference, ...]


def tiers(ranked: Sequence[EntryGroup], answers: Mapping[str, Answers]) -> list[Tier]:
    """Return groups by tiers: the best and all that are not separable from it, then the best of the rest, and so on.

    The p-values of a tier are corrected by Holm's procedure. Groups that share no question with the best of a tier are
    not in it.

    Args:
        ranked: the best first.
        answers: of the groups, by `EntryGroup.id`.
    """
    left, found, spread = list(ranked), list[Tier](), Spread.of(answers[group.id] for group in ranked)
    while left:
        best, *others = left
        tests = [compare(answers[group.id], answers[best.id], spread) for group in others]
        corrected = holm([test.p for test in tests])
        same = [p > LEVEL and test.items > 0 for p, test in zip(corrected, tests, strict=True)]
        together = [(group, test) for group, test, is_same in zip(others, tests, same, strict=True) if is_same]
        found.append(Tier((best, *(group for group, _ in together)), tuple(test for _, test in together)))
        left = [group for group, is_same in zip(others, same, strict=True) if not is_same]
    return found


@dataclass(frozen=True)
class Rival:
    """A group beside the reference.

    Attributes:
        group: the group.
        difference: from the reference.
        p: corrected for the number of groups, by Holm's procedure.
    """

    group: EntryGroup
    difference: Difference
    p: float

    @property
    def sign(self) -> int:
        """1 if it is better than the reference, -1 if it is worse, 0 if the two are not separable."""
        return 0 if self.p > LEVEL or not self.difference.items else 1 if self.difference.points > 0 else -1


def rivals(reference: EntryGroup, others: Sequence[EntryGroup], answers: Mapping[str, Answers]) -> list[Rival]:
    """Compare groups with a reference."""
    spread = Spread.of(answers[group.id] for group in (reference, *others))
    tests = [compare(answers[group.id], answers[reference.id], spread) for group in others]
    corrected = holm([test.p for test in tests])
    return [Rival(*both) for both in zip(others, tests, corrected, strict=True)]


def verdict(reference: EntryGroup, found: Sequence[Rival], best: bool = False) -> str:
    """Return in a sentence how groups compare with the reference; "" if there are none.

    Args:
        reference: the group they were compared with.
        found: from `rivals`.
        best: whether the reference was chosen because it has the highest mean.
    """
    if not found:
        return ""
    if len(found) == 1:
        return _pair(reference, found[0])
    better, same, worse = ([rival for rival in found if rival.sign == sign] for sign in (1, 0, -1))
    if best:
        words = [f"{reference.name} has the highest mean accuracy"]
        words += [f"not separable from {_listed(same)}"] if same else ["better than all others"]
        rest = worse[0].group.name if len(worse) == 1 else f"the other {len(worse)}"
        words += [f"better than {rest}"] if same and worse else []
        return f"{'; '.join(words)}."
    counts = {"better": better, "worse": worse, "not separable": same}
    words = [f"{len(those)} {'is' if len(those) == 1 else 'are'} {word}" for word, those in counts.items() if those]
    text = f"Compared with {reference.name}, {', '.join(words)}."
    if better:
        top = max(better, key=lambda rival: rival.difference.points)
        text += f" Largest gain: {top.group.name}, {numbers(top)}."
    return text


def numbers(rival: Rival) -> str:
    """Return the difference of a group from the reference with interval, p-value and test, in words."""
    return _numbers(rival.difference, rival.p, 1)


def _numbers(test: Difference, p: float, sign: int) -> str:
    low, high = sorted(sign * end for end in test.interval)
    ends = f"95 % {signed(low, '')} to {signed(high, '')}"
    return f"{signed(sign * test.points)} points, {ends}, {chance(p)} ({test.method})"


def signed(share: float, plus: str = "+") -> str:
    """Return a difference of shares, -1..1, in points: "+14.6", "−4.1"; without a sign of zero."""
    text = f"{abs(100 * share):.1f}"
    return text if text == "0.0" else f"{'−' if share < 0 else plus}{text}"


def chance(p: float) -> str:
    """Return a p-value as "p = 0.008"; values below 0.001 as such."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.995 else "p = 1"


def _pair(reference: EntryGroup, rival: Rival) -> str:
    test = rival.difference
    if not test.items:
        return (
            f"{rival.group.name} and {reference.name} have no question in common that both were asked in the same way."
        )
    sign = -1 if test.points < 0 else 1
    first, second = (rival.group, reference) if sign > 0 else (reference, rival.group)
    words = (
        f"{first.name} is better than {second.name}"
        if rival.sign
        else f"{first.name} and {second.name} are not separable"
    )
    return f"{words}: {_numbers(test, rival.p, sign)}."


def _listed(found: Sequence[Rival]) -> str:
    names = [rival.group.name for rival in found]
    return " and ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} others"


def cautions(found: Sequence[Rival]) -> list[str]:
    """Return what a reader of the verdict has to know, most important first."""
    words = []
    if len(found) == 1 and (test := found[0].difference).items:
        share = percent((test.wins + test.losses) / test.items, 0)
        words.append(f"The two differ on {test.wins + test.losses} of {test.items} items ({share}).")
    if len(found) > 1:
        words.append(f"p corrected for {len(found)} tests (Holm).")
    if found and not any(rival.difference.freedom for rival in found):
        words.append("One seed each: another seed may change the result.")
    least = min((rival.difference.items for rival in found), default=0)
    if apart := [rival for rival in found if not rival.difference.items]:
        words.append(f"Asked differently, so not compared: {_listed(apart)}.")
    elif found and least < (most := max(rival.difference.items for rival in found)):
        words.append(f"Items that were asked differently are left out: between {least} and {most} remain.")
    return words
