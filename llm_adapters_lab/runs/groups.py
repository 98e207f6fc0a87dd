"""The groups of a run: what its rows belong to, for adapters that have a part for each task, language or speaker.

data.group: task           # the task that a row was written for; or column:NAME of the user's own file
eval.group: mini-addsub    # the part that answers; by default as data.group; mean: the mean of all parts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llm_adapters_lab.errors import BadSpec, choices, listed
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.custom import check_group, groups_of
from llm_adapters_lab.tasks.readers import folder_of

NO_GROUP, MEAN = "none", "mean"


@dataclass(frozen=True)
class Groups:
    """The groups of a run; empty where nothing reads them.

    Attributes:
        names: what the adapter has parts for, in their order.
        train: group of each training row by its id.
        test: group of each scored row by task.
    """

    names: tuple[str, ...] = ()
    train: Mapping[str, str] = field(default_factory=dict)
    test: Mapping[str, list[str]] = field(default_factory=dict)


def read_groups(spec: RunSpec, train: Sequence[Example], test: Mapping[str, Sequence[Example]]) -> Groups:
    """Return the groups of the rows of a run.

    Raises:
        BadSpec: a group has no rows, or rows are of a group that the adapter does not have.
        LabError: the column of a file is missing.
    """
    adapter, by = spec.adapter, spec.data.group
    known = tuple(getattr(adapter, "groups", ()))
    if adapter is None or not (known or adapter.with_groups(("a",)) != adapter):
        if spec.eval.group:
            kind = f"the adapter {adapter.type!r}" if adapter else "a bare base"
            raise BadSpec(f"eval.group = {spec.eval.group}, but {kind} has no part for a group. Remove it.")
        return Groups()
    if by == NO_GROUP:
        if known or spec.eval.group:
            field = "adapter.groups" if known else "eval.group"
            raise BadSpec(f"{field} names groups, but data.group = none gives rows none. Set data.group, or remove it.")
        return Groups()
    if spec.eval.group == MEAN and not adapter.has_mean:
        raise BadSpec(f"eval.group = {MEAN}, but {adapter.type!r} sends each row to one group. {choices('', known)}")
    root = spec.eval.root or spec.data.root
    if not spec.learns:
        return Groups(known, {}, _asked(spec, known, test, root))
    learnt = groups_of(by, spec.data.task, "train", folder_of(spec.data.root), train)
    own = dict(zip((row.id for row in train), learnt, strict=True))
    names = known or tuple(sorted({*own.values()}))
    if MEAN in names:
        raise BadSpec(f"A group cannot be called {MEAN!r}, which stands for the mean of all. Rename it.")
    if strange := sorted({*own.values()} - {*names}):
        raise BadSpec(f"Rows are of the group {strange[0]!r}, not one of adapter.groups. {choices(strange[0], names)}")
    if empty := [name for name in names if name not in {*own.values()}]:
        raise BadSpec(f"No training row is of the group {listed(empty, 5, ', ')}. Remove it, or add rows.")
    return Groups(names, own, _asked(spec, names, test, root))


def _asked(
    spec: RunSpec, names: Sequence[str], test: Mapping[str, Sequence[Example]], root: str | None
) -> dict[str, list[str]]:
    """Return the group of each scored row by task."""
    asked, found = spec.eval.group or spec.data.group, dict[str, list[str]]()
    for name, rows in test.items() if asked != MEAN else ():
        found[name] = [asked] * len(rows)
        if asked == "task" or asked.startswith("column:"):
            check_group("eval.group", asked, name)
            found[name] = groups_of(asked, name, "test", folder_of(root), rows)
        if strange := sorted({*found[name]} - {*names}):
            why = "of which there is no training row" if spec.learns else "which no adapter is for"
            unknown = f"{name} is scored as the group {strange[0]!r}, {why}."
            raise BadSpec(f"{unknown} {choices(strange[0], names)} Set eval.group to one of them, or to mean.")
    return found
