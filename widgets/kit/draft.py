"""The draft: what Start would run. One spec, or all combinations if fields hold lists."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.results.appearance import spec_fields
from llm_adapters_lab.results.run_index import words
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.spec import Point, Sweep

MOST = 500
"""Maximum number of runs of a draft; larger sweeps are for sweep files."""
SHOWN = 3
"""Number of changed fields that are named."""


@dataclass(frozen=True)
class Draft:
    """A valid draft.

    Attributes:
        points: its runs, with what distinguishes them.
        fields: of its sweep file, as plain data; empty for a single run.
        parent: the spec that it is a copy of; None for a new one.
        parent_name: of the run of that spec.
        tied: fields that follow from others.
    """

    points: Sequence[Point]
    fields: Mapping[str, Any] = field(default_factory=dict)
    parent: RunSpec | None = None
    parent_name: str = ""
    tied: Collection[str] = ()

    @property
    def spec(self) -> RunSpec:
        """The spec of the first run."""
        return self.points[0].spec

    @property
    def specs(self) -> list[RunSpec]:
        """The specs of all runs."""
        return [point.spec for point in self.points]

    @property
    def varied(self) -> dict[str, list[Any]]:
        """The values of each field that the runs differ in, by dotted key."""
        names = dict.fromkeys(name for point in self.points for name in point.changes)
        found = {name: list(dict.fromkeys(point.changes[name] for point in self.points)) for name in names}
        return {name: values for name, values in found.items() if len(values) > 1}

    def changes(self) -> list[tuple[str, str, str]]:
        """Return what differs from the parent as (field, before, after), in words."""
        if self.parent is None:
            return []
        before, after = spec_fields(self.parent), spec_fields(self.spec)
        found = []
        for key in dict.fromkeys([*before, *after]):
            old, new = (words(given[key]) if key in given else "–" for given in (before, after))
            new = ", ".join(map(words, self.varied[key])) if key in self.varied else new
            if old != new:
                found.append((_short(key), old, new))
        return found

    def changed(self) -> str:
        """Return in one line what the draft is a copy of and what was changed; "" for a new one."""
        if self.parent is None:
            return ""
        if not (found := self.changes()):
            return f"copy of {self.parent_name}: change something to get a new run"
        shown = ", ".join(f"{name} {old} → {new}" for name, old, new in found[:SHOWN])
        return f"from {self.parent_name}: {shown}" + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")

    def count(self) -> str:
        """Return the number of runs and how it comes about, as in "9 runs (3 rank × 3 seed)"; "" for one."""
        if len(self.points) == 1:
            return ""
        free = {key: values for key, values in self.varied.items() if key not in self.tied}
        factors = [f"{len(values)} {_short(key, values)}" for key, values in free.items()]
        return f"{len(self.points)} runs ({' × '.join(factors)})"

    def sweep_file(self) -> str:
        """Return the sweep file of several runs as YAML."""
        return yaml.safe_dump(dict(self.fields), sort_keys=False, allow_unicode=True)


def make_draft(
    spec: RunSpec,
    varied: Mapping[str, Sequence[Any]],
    tied: Mapping[str, tuple[str, float]] | None = None,
    parent: RunSpec | None = None,
    parent_name: str = "",
) -> Draft:
    """Make a draft.

    Args:
        spec: with the first value of every list.
        varied: the values of the fields that hold lists, by dotted key.
        tied: fields that are a multiple of another: its key and the factor.
        parent: the spec that it is a copy of.
        parent_name: of the run of that spec.

    Raises:
        BadSpec: combinations are invalid, or there are more than `MOST`.
    """
    if not varied:
        return Draft([Point({}, spec)], {}, parent, parent_name)
    factors = dict[str, float]()
    grid = {key: list(values) for key, values in varied.items() if key != "seed"}
    several: list[dict[str, Any]] = []
    for key, (other, factor) in (tied or {}).items():
        if other in grid:
            factors[key] = factor
            several = several or [{other: value} for value in grid[other]]
            for entry in several:
                if other in entry:
                    entry[key] = factor * entry[other]
    for key in {key for entry in several for key in entry}:
        grid.pop(key, None)
    fields: dict[str, Any] = {"spec": explicit(spec)}
    fields |= {"list": several} if several else {}
    fields |= {"grid": grid} if grid else {}
    fields |= {"seeds": list(varied["seed"])} if "seed" in varied else {}
    count = math.prod(map(len, grid.values())) * max(1, len(several)) * len(fields.get("seeds", "1"))
    if count > MOST:
        raise BadSpec(f"These lists make {count:,} runs, and a draft has at most {MOST}. Shorten a list.")
    return Draft(Sweep.parse(fields).points(), fields, parent, parent_name, frozenset(factors))


def explicit(spec: RunSpec) -> dict[str, Any]:
    """Return the fields of a spec as plain data, without defaults except for those that decide most.

    These are base, seed, learning rate, epochs or steps, and all fields of the adapter that are its own.
    """
    fields = spec.model_dump(mode="json", exclude_defaults=True)
    if spec.adapter is not None:
        own = spec.adapter.model_dump(mode="json")
        inherited = {key for key in AdapterConfig.model_fields if key not in ("type", "at")}
        kept = {key: value for key, value in own.items() if key not in inherited and value is not None}
        fields["adapter"] = {"type": spec.adapter.type, **kept, **fields["adapter"]}
        length = {"max_steps": spec.train.max_steps} if spec.train.max_steps else {"epochs": spec.train.epochs}
        fields["train"] = {"learning_rate": spec.train.learning_rate, **length, **fields.get("train", {})}
    return {"base": spec.base, **fields, "seed": spec.seed}


def _short(key: str, several: Sequence[Any] = ()) -> str:
    names = {"adapter.type": "method", "adapter.at": "placement"}
    return names.get(key, key.rpartition(".")[2].replace("_", " ")) + "s" * (len(several) > 1)
