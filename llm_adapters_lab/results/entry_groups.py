"""Many runs at once, from the entries of `run_index`: groups that differ only in the seed, and what they differ in."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llm_adapters_lab.evaluation.statistics import mean_interval
from llm_adapters_lab.results.appearance import SHORT, short_names
from llm_adapters_lab.results.run_index import Entry
from llm_adapters_lab.training.spec import NOT_IN_ID

_NO_RESULT = {"seed", "state", *(f"train.{name}" for name in NOT_IN_ID)}
_SEED = " s0"


@dataclass(frozen=True)
class EntryGroup:
    """Runs that differ only in the seed, or a single run.

    Attributes:
        name: short, without the seed if there are several; not escaped.
        entries: by seed; in any state.
    """

    name: str
    entries: tuple[Entry, ...]

    @property
    def id(self) -> str:
        """Id of its first run, which stands for the group."""
        return self.entries[0].id

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of its runs."""
        return tuple(entry.id for entry in self.entries)

    @property
    def fields(self) -> Mapping[str, Any]:
        """Fields of the spec, with the seed of the first run."""
        return self.entries[0].fields

    @cached_property
    def scored(self) -> tuple[Entry, ...]:
        """Its finished runs that have scores."""
        return tuple(entry for entry in self.entries if entry.results and entry.state.name == "finished")

    def asked(self, tasks: Sequence[str]) -> tuple[Entry, ...]:
        """Return its finished runs that were scored on all of these tasks."""
        return tuple(entry for entry in self.scored if all(task in entry.results for task in tasks))

    def means(self, tasks: Sequence[str]) -> tuple[float, ...]:
        """Return the mean accuracy, 0..1, over tasks, of each run that was scored on all of them."""
        return tuple(
            math.fsum(entry.results[task]["accuracy"] for task in tasks) / len(tasks)
            for entry in self.asked(tasks)
            if tasks
        )

    def mean(self, tasks: Sequence[str]) -> float | None:
        """Return the mean over tasks and seeds, 0..1; None if no run was scored on all of these tasks."""
        found = self.means(tasks)
        return math.fsum(found) / len(found) if found else None

    def interval(self, tasks: Sequence[str]) -> tuple[float, float]:
        """Return the 95 % interval of the mean over tasks and seeds; it covers other questions, not other seeds."""
        runs = self.asked(tasks)
        # All seeds answer the same questions, so their answers are averaged: they are no further questions.
        correct = [math.fsum(run.results[task]["correct"] for run in runs) / max(1, len(runs)) for task in tasks]
        return mean_interval(correct, [min(run.results[task]["total"] for run in runs) for task in tasks if runs])

    def value(self, key: str) -> float | None:
        """Return the mean over its finished runs of "trainable", or of a number of the training's summary."""
        found = [entry.trainable if key == "trainable" else entry.train.get(key) for entry in self.entries]
        known = [value for value in found if isinstance(value, int | float)]
        return statistics.fmean(known) if known else None


def by_seed(entries: Sequence[Entry], names: Mapping[str, str], together: bool = True) -> list[EntryGroup]:
    """Return runs grouped by everything but the seed, in order of appearance.

    Args:
        entries: in any state; those whose spec cannot be read stay alone.
        names: of the runs, by id.
        together: False leaves every run alone.
    """
    if not together:
        return [EntryGroup(names.get(entry.id, entry.id), (entry,)) for entry in entries]
    found: dict[Any, list[Entry]] = {}
    for entry in entries:
        found.setdefault(_but_seed(entry.fields) or entry.id, []).append(entry)
    members = [sorted(group, key=lambda entry: entry.fields.get("seed", 0)) for group in found.values()]
    several = {group[0].id: {**group[0].fields, "seed": 0} for group in members if len(group) > 1}
    single = {group[0].id: group[0].fields for group in members if len(group) == 1}
    short = short_names(several | single)
    return [
        EntryGroup(_unseeded(short[group[0].id]) if len(group) > 1 else short[group[0].id], tuple(group))
        for group in members
    ]


def _but_seed(fields: Mapping[str, Any]) -> str:
    return repr([(key, value) for key, value in fields.items() if key not in _NO_RESULT]) if fields else ""


def _unseeded(name: str) -> str:
    before, found, after = name.rpartition(_SEED)
    return before + after if found else name


def shared_tasks(groups: Sequence[EntryGroup]) -> tuple[str, ...]:
    """Return the tasks to average over: those that most groups were scored on; of equally common sets, the largest."""
    found = [run.tasks for group in groups for run in group.scored[:1]]
    count = Counter(frozenset(tasks) for tasks in found)
    return max(found, key=lambda tasks: (count[frozenset(tasks)], len(tasks)), default=())


def short_labels(groups: Sequence[EntryGroup]) -> list[str]:
    """Return the names of groups without the words with which all of them begin."""
    return without_beginning([group.name for group in groups], " ")


def without_beginning(names: Sequence[str], separator: str) -> list[str]:
    """Return names without the words, up to a separator, with which all of them begin."""
    parts = [name.split(separator) for name in names]
    shared = 0
    while len(parts) > 1 and all(len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts):
        shared += 1
    return [separator.join(own[shared:]) for own in parts]


def field_name(key: str) -> str:
    """Return the name of a field, given by dotted key, for a head or an axis."""
    return SHORT.get(key) or key.rpartition(".")[2].replace("_", " ")


def informative(entries: Sequence[Entry], keys: Sequence[str] | None = None) -> list[str]:
    """Return the fields in which specs differ, those first that tell most runs apart; the seed comes last."""
    rank = {}
    for key in differing(entries) if keys is None else keys:
        values = [repr(entry.fields[key]) for entry in entries if key in entry.fields]
        counts = Counter(values).values()
        rank[key] = -math.fsum(n / len(values) * math.log(n / len(values)) for n in counts) if key != "seed" else -1.0
    return sorted(rank, key=lambda key: -rank[key])


def differing(entries: Sequence[Entry]) -> list[str]:
    """Return the fields, by dotted key, in which specs differ.

    Adapters are compared among themselves: a field that a type does not have, and the training of a bare base, are no
    differences.
    """
    first: dict[str, Any] = {}
    apart: set[str] = set()
    for entry in entries:
        bare = entry.fields.get("adapter.type") is None
        for key, value in entry.fields.items():
            if key in apart or (bare and (key == "seed" or key.startswith(("train.", "data.")))):
                continue
            if first.setdefault(key, value) != value:
                apart.add(key)
    return [key for key in first if key in apart and key != "state"]
