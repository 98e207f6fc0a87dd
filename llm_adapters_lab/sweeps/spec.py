"""Sweep file: one spec, varied over any of its fields.

    spec: ../specs/nano-lora.yaml         # a file, seen from this one or from here; a preset; or the fields themselves
    grid: {adapter.rank: [2, 8, 32]}      # every value with every value of the others
    list: [{adapter.at: attn}, {adapter.at: mlp, train.learning_rate: 0.001}]   # each entry as it stands
    random: {count: 4, seed: 0, fields: {train.learning_rate: {log-uniform: [1e-4, 1e-2]}}}
    seeds: [0, 1, 2]

Every part is optional and all are multiplied: this one has 3 x 2 x 4 x 3 = 72 runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Annotated, Any, NamedTuple

from pydantic import Field, field_validator, model_validator

from llm_adapters_lab.config import Part, change, parse
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.runs.presets import read_spec
from llm_adapters_lab.runs.spec import RunSpec

Changes = dict[str, Any]
Values = Annotated[list[Any], Field(min_length=1)]
Range = tuple[float, float]
MOST = 10_000
"""Combinations a sweep may have; more are taken for a slip of the pen."""
SHOWN = 5
"""Wrong combinations that one message explains."""


class Point(NamedTuple):
    """One run of a sweep.

    Attributes:
        changes: dotted fields that are set for it, with their values; "seed" among them.
        spec: what comes of that.
    """

    changes: Changes
    spec: RunSpec


class Distribution(Part):
    """Where a value is drawn from; exactly one field is given. Ranges are [lowest, highest]."""

    choice: Values | None = Field(default=None, description="one of these values")
    uniform: Range | None = Field(default=None, description="a number, evenly")
    log_uniform: Range | None = Field(default=None, alias="log-uniform", description="a number, its logarithm evenly")
    integer: tuple[int, int] | None = Field(default=None, description="a whole number, evenly")

    @model_validator(mode="after")
    def _one(self) -> Distribution:
        given = self.model_dump(exclude_none=True, by_alias=True)
        if len(given) != 1:
            raise BadSpec(
                f"A distribution is one of choice, uniform, log-uniform and integer; given was {given or 'none'}."
            )
        low, high = self.uniform or self.log_uniform or self.integer or (0, 1)
        if not low < high or (self.log_uniform and low <= 0):
            least = " above 0" if self.log_uniform else ""
            raise BadSpec(f"A range is [lowest, highest]{least}; given was {given}.")
        return self

    def draw(self, chance: Random) -> Any:
        """Return a value; one that is not whole has four digits, so that a person can read it."""
        if self.choice is not None:
            return chance.choice(self.choice)
        if self.integer is not None:
            return chance.randint(*self.integer)
        if self.uniform is not None:
            low, high = self.uniform
            value = chance.uniform(low, high)
        else:
            low, high = self.log_uniform or (1.0, 1.0)
            value = math.exp(chance.uniform(math.log(low), math.log(high)))
        return min(max(float(f"{value:.4g}"), low), high)


class Draws(Part):
    """Combinations drawn by chance. More of them, or more fields, leave what was drawn before as it was."""

    count: int = Field(ge=1, le=MOST, description="combinations to draw")
    seed: int = Field(ge=0, description="of the drawing; the same seed draws the same")
    fields: dict[str, Distribution] = Field(min_length=1, description="dotted fields and where they are drawn from")

    def draw(self) -> list[Changes]:
        """Return the combinations."""
        chances = {name: Random(f"{self.seed} {name}") for name in self.fields}
        return [{name: field.draw(chances[name]) for name, field in self.fields.items()} for _ in range(self.count)]


class Sweep(Part):
    """A spec and what of it is varied."""

    name: str = Field(default="sweep", pattern=r"^[\w.-]+$", description="of its report; default: that of the file")
    spec: dict[str, Any] = Field(description="what all runs share: fields of a spec, a spec file or a preset's name")
    grid: dict[str, Values] = Field(default_factory=dict, description="dotted fields with the values each takes")
    several: list[Changes] = Field(default_factory=list, alias="list", description="dotted fields set together")
    random: Draws | None = Field(default=None, description="dotted fields that are drawn")
    seeds: list[int] = Field(default_factory=list, description="seeds that everything is run with")

    @field_validator("spec", mode="before")
    @classmethod
    def _spec(cls, value: Any) -> Any:
        return read_spec(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _once(self) -> Sweep:
        parts = {"grid": set(self.grid), "list": {name for entry in self.several for name in entry}}
        parts |= {"random": set(self.random.fields) if self.random else set()}
        parts |= {"seeds": {"seed"} if self.seeds else set()}
        for (one, mine), (other, theirs) in itertools.combinations(parts.items(), 2):
            if twice := sorted(mine & theirs):
                raise BadSpec(f"{', '.join(twice)} is varied by {one} and by {other}. Leave it out of one of them.")
        count = math.prod(map(len, self._parts()))
        if count > MOST:
            raise BadSpec(f"The sweep has {count:,} combinations; at most {MOST:,} are possible. Draw some by random.")
        return self

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Sweep:
        """Make a sweep from plain data.

        Raises:
            BadSpec: a key is unknown or a value not allowed.
        """
        return parse(cls, fields)

    @classmethod
    def load(cls, path: str | Path, changes: Changes | None = None) -> Sweep:
        """Read a sweep file.

        Args:
            path: of the YAML file.
            changes: dotted fields of the shared spec with new values; what is varied is set after them.

        Raises:
            BadSpec: the file is missing, cannot be read, or holds no valid sweep.
        """
        path = Path(path)
        fields = {"name": path.stem, **read_spec(path)}
        if "spec" not in fields:
            raise BadSpec(f"{path} is no sweep: it has no key `spec`. If it is the spec of one run, use `run {path}`.")
        beside = path.parent / spec if isinstance(spec := fields["spec"], str) else None
        found = cls.parse(fields | ({"spec": str(beside)} if beside and beside.is_file() else {}))
        return found.model_copy(update={"spec": change(found.spec, changes or {})})

    def specs(self) -> list[RunSpec]:
        """Return the specs of all runs.

        Raises:
            BadSpec: some combinations are no valid spec; the message names their fields.
        """
        return [point.spec for point in self.points()]

    def points(self) -> list[Point]:
        """Return all runs, the last field varied first; of those with the same id the first one.

        Raises:
            BadSpec: some combinations are no valid spec; the message names their fields.
        """
        found: dict[str, Point] = {}
        wrong = {}
        for parts in itertools.product(*self._parts()):
            changes = {name: value for part in parts for name, value in part.items()}
            # `adapter` before `adapter.rank`, which is a part of it.
            in_order = dict(sorted(changes.items(), key=lambda field: field[0].count(".")))
            try:
                spec = RunSpec.parse(change(self.spec, in_order))
            except LabError as error:
                wrong[words(changes)] = str(error)
            else:
                found.setdefault(spec.id, Point(changes, spec))
        refuse(wrong)
        return list(found.values())

    def _parts(self) -> list[list[Changes]]:
        """Return what is multiplied: each part with its entries."""
        grid = [[{name: value} for value in values] for name, values in self.grid.items()]
        drawn = [self.random.draw()] if self.random else []
        seeds = [[{"seed": seed} for seed in self.seeds]] if self.seeds else []
        return [*([self.several] if self.several else []), *grid, *drawn, *seeds]


def words(changes: Changes) -> str:
    """Return what sets a run apart in a line: "adapter.rank = 4, seed = 1"."""
    return ", ".join(f"{name} = {value_words(value)}" for name, value in changes.items()) or "the spec as it stands"


def value_words(value: Any) -> str:
    """Return a value in a few words; an adapter's fields as "type (rank 8)"."""
    if not isinstance(value, dict):
        return "null" if value is None else str(value)
    kind = str(value.get("type", ""))
    fields = ", ".join(f"{name} {value_words(inner)}" for name, inner in value.items() if name != "type")
    return f"{kind} ({fields})" if kind and fields else kind or fields


def refuse(wrong: Mapping[str, str]) -> None:
    """Say what is wrong with which combinations, if there are any.

    Raises:
        BadSpec: there are.
    """
    if wrong:
        lines = [f"{name}: {error}" for name, error in itertools.islice(wrong.items(), SHOWN)]
        more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        raise BadSpec("Nothing was started. These combinations cannot be run:\n  " + "\n  ".join([*lines, *more]))
