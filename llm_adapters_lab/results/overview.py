"""Many runs at a glance: seeds averaged, the best groups first, and which of them cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_adapters_lab.results import group_tests
from llm_adapters_lab.results.appearance import Look, colours, short_names
from llm_adapters_lab.results.entry_groups import EntryGroup, by_seed, shared_tasks
from llm_adapters_lab.results.formatting import count, spread
from llm_adapters_lab.results.group_tests import Rival, Tier
from llm_adapters_lab.results.run_index import Entry, entry
from llm_adapters_lab.runs.record import Run


@dataclass(frozen=True)
class Overview:
    """Runs grouped by everything but the seed.

    Attributes:
        entries: of the runs, in their order.
        groups: all groups, in order of appearance.
        tasks: what means are taken over.
        ranked: the groups that were scored on these tasks, the highest mean first.
        tiers: the same by what cannot be told apart.
        rivals: each of the others beside the best.
    """

    entries: tuple[Entry, ...]
    groups: tuple[EntryGroup, ...]
    tasks: tuple[str, ...]
    ranked: tuple[EntryGroup, ...]
    tiers: tuple[Tier, ...]
    rivals: tuple[Rival, ...]

    @property
    def verdict(self) -> str:
        """Which group is best, and whether it can be told from the others, in a sentence; "" without two groups."""
        return group_tests.verdict(self.ranked[0], self.rivals, best=True) if self.rivals else ""

    @property
    def colours(self) -> dict[str, str]:
        """The colour of each group by the id of its first run."""
        return colours({group.id: group.fields for group in self.groups})

    def looks(self) -> dict[str, Look]:
        """Return the look of each run: a short name, and the colour of its group."""
        shades, names = self.colours, _names(self.entries)
        return {
            each.id: Look(names[each.id], shades[group.id], turn)
            for group in self.groups
            for turn, each in enumerate(group.entries)
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return the ranked groups as rows of a table: name, parameters, mean over tasks and each task."""
        against = {rival.group.id: rival for rival in self.rivals}
        found = []
        for group in self.ranked:
            rival, trainable = against.get(group.id), group.value("trainable")
            row: dict[str, Any] = {"run": group.name, "trainable": count(round(trainable)) if trainable else None}
            if len(self.tasks) > 1:
                row["mean"] = spread(group.means(self.tasks))
            row |= {task: spread(group.means((task,))).partition(" (")[0] for task in self.tasks}
            row["against the best"] = (
                f"{group_tests.signed(rival.difference.points)}, {chance(rival)}" if rival else None
            )
            found.append(row)
        return found


def chance(rival: Rival) -> str:
    """Return the p-value of a group beside the best, as text."""
    return group_tests.chance(rival.p) if rival.difference.items else "no common items"


def _names(entries: Sequence[Entry]) -> dict[str, str]:
    return short_names({each.id: {k: v for k, v in each.fields.items() if k != "state"} for each in entries})


def overview(runs: Sequence[Run], tasks: Sequence[str] = ()) -> Overview:
    """Group runs, average over their seeds, and compare the best group with the others.

    Args:
        runs: in any state.
        tasks: what means are taken over; by default, the tasks that most groups were scored on.
    """
    entries = tuple(entry(run) for run in runs)
    groups = tuple(by_seed(entries, _names(entries)))
    tasks = tuple(tasks) or shared_tasks(groups)
    scored = [group for group in groups if group.means(tasks)]
    ranked = tuple(sorted(scored, key=lambda group: group.mean(tasks) or 0.0, reverse=True))
    store = group_tests.AnswerStore()
    answers = {group.id: store.of(group, tasks) for group in ranked}
    tiers = tuple(group_tests.tiers(ranked, answers))
    rivals = tuple(group_tests.rivals(ranked[0], ranked[1:], answers)) if len(ranked) > 1 else ()
    return Overview(entries, groups, tasks, ranked, tiers, rivals)
