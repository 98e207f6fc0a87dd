"""Sweep files: one spec, varied over any of its fields.

    spec: ../specs/nano-lora.yaml         # a file (beside this one or in the working directory), a preset, or fields
    grid: {adapter.rank: [2, 8, 32]}      # every value with every value of the others
    list: [{adapter.at: attn}, {adapter.at: mlp, train.learning_rate: 0.001}]   # each entry as it is
    random: {count: 4, seed: 0, fields: {train.learning_rate: {log-uniform: [1e-4, 1e-2]}}}
    seeds: [0, 1, 2]

Every part is optional, and all are multiplied: this file has 3 x 2 x 4 x 3 = 72 runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Annotated, Any, NamedTuple

from pydantic import Field, field_validator, model_validator

from llm_adapters_lab.config import Part, change
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.runs.presets import read_spec
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.signatures import checked

Changes = dict[str, Any]
Values = Annotated[list[Any], Field(min_length=1)]
Range = tuple[float, float]
MAX_COMBINATIONS = 10_000
"""Maximum number of combinations; larger sweeps are rejected as likely mistakes."""
SHOWN = 5
"""Number of invalid combinations that a message explains."""


class Point(NamedTuple):
    """One run of a sweep.

    Attributes:
        changes: the dotted fields that are set for it ("seed" among them), with their values.
        spec: the resulting spec.
    """

    changes: Changes
    spec: RunSpec


class Distribution(Part):
    """A distribution to draw a value from; exactly one field is given. Ranges are [lowest, highest]."""

    choice: Values | None = Field(default=None, description="one of these values")
    uniform: Range | None = Field(default=None, description="a number, uniformly")
    log_uniform: Range | None = Field(default=None, alias="log-uniform", description="a number, log-uniformly")
    integer: tuple[int, int] | None = Field(default=None, description="a whole number, uniformly")

    @model_validator(mode="after")
    def _one(self) -> Distribution:
        given = self.model_dump(mode="json", exclude_none=True, by_alias=True)
        if len(given) != 1:
            raise BadSpec(
                f"A distribution is one of choice, uniform, log-uniform and integer; given was {given or 'none'}."
            )
        low, high = self.uniform or self.log_uniform or self.integer or (0, 1)
        if not low < high or (self.log_uniform and low <= 0):
            least = " above 0" if self.log_uniform else ""
            raise BadSpec(f"A range is [lowest, highest]{least}; given was {given}.")
        return self

    def draw(self, rng: Random) -> Any:
        """Return a value; numbers other than whole ones are rounded to four digits, to be readable."""
        if self.choice is not None:
            return rng.choice(self.choice)
        if self.integer is not None:
            return rng.randint(*self.integer)
        low, high = self.uniform or self.log_uniform or (0.0, 1.0)
        value = rng.uniform(low, high) if self.uniform else math.exp(rng.uniform(math.log(low), math.log(high)))
        return self._rounded(value)

    def spread(self, count: int) -> list[Any]:
        """Return values of a range at even distances, both ends among them; its middle if `count` is 1."""
        low, high = self.uniform or self.integer or [math.log(end) for end in self.log_uniform or (1.0, 2.0)]
        parts = [i / (count - 1) for i in range(count)] if count > 1 else [0.5]
        values = [low + part * (high - low) for part in parts]
        if self.integer is not None:
            return list(dict.fromkeys(map(round, values)))
        return [self._rounded(value if self.uniform else math.exp(value)) for value in values]

    def suggested(self, trial: Any, name: str) -> Any:
        """Return a value that a trial of Optuna suggests, rounded as in `draw`."""
        if self.choice is not None:
            return trial.suggest_categorical(name, self.choice)
        if self.integer is not None:
            return trial.suggest_int(name, *self.integer)
        low, high = self.uniform or self.log_uniform or (0.0, 1.0)
        return self._rounded(trial.suggest_float(name, low, high, log=self.uniform is None))

    def _rounded(self, value: float) -> float:
        low, high = self.uniform or self.log_uniform or (0.0, 1.0)
        return min(max(float(f"{value:.4g}"), low), high)


class Draws(Part):
    """Combinations drawn at random. Raising the count or adding fields leaves earlier draws unchanged."""

    count: int = Field(ge=1, le=MAX_COMBINATIONS, description="combinations to draw")
    seed: int = Field(ge=0, description="random seed of the draws")
    fields: dict[str, Distribution] = Field(min_length=1, description="dotted fields with their distributions")

    def draw(self) -> list[Changes]:
        """Return the combinations."""
        rngs = {name: Random(f"{self.seed} {name}") for name in self.fields}
        return [{name: field.draw(rngs[name]) for name, field in self.fields.items()} for _ in range(self.count)]


class Sweep(Part):
    """A spec and the fields that vary."""

    name: str = Field(default="sweep", pattern=r"^[\w.-]+$", description="of the report; default: that of the file")
    spec: dict[str, Any] = Field(description="common to all runs: fields of a spec, a spec file or a preset")
    grid: dict[str, Values] = Field(default_factory=dict, description="dotted fields with the values of each")
    several: list[Changes] = Field(default_factory=list, alias="list", description="dotted fields set together")
    random: Draws | None = Field(default=None, description="dotted fields drawn at random")
    seeds: list[int] = Field(default_factory=list, description="seeds to repeat every run with")

    @field_validator("spec", mode="before")
    @classmethod
    def _spec(cls, value: Any) -> Any:
        return read_spec(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _once(self) -> Sweep:
        parts = self._varied()
        for (one, mine), (other, theirs) in itertools.combinations(parts.items(), 2):
            if twice := sorted(mine & theirs):
                raise BadSpec(f"{', '.join(twice)} is varied by {one} and by {other}. Remove it from one of them.")
        count = math.prod(map(len, self._parts()))
        if count > MAX_COMBINATIONS:
            raise BadSpec(
                f"The sweep has {count:,} combinations, and at most {MAX_COMBINATIONS:,} are allowed. "
                "Draw some of them with `random`."
            )
        return self

    def _varied(self) -> dict[str, set[str]]:
        """Return the fields that each part varies."""
        return {
            "grid": set(self.grid),
            "list": {name for entry in self.several for name in entry},
            "random": set(self.random.fields) if self.random else set(),
            "seeds": {"seed"} if self.seeds else set(),
        }

    @classmethod
    @checked
    def load(cls, path: str | Path, changes: Changes | None = None) -> Sweep:
        """Read a sweep file.

        Args:
            path: of the YAML file.
            changes: dotted fields of the common spec with new values.

        Raises:
            BadSpec: the file is missing, cannot be read, or holds no valid sweep; or it varies a changed field.
        """
        path = Path(path)
        fields = {"name": path.stem, **read_spec(path)}
        if "spec" not in fields:
            raise BadSpec(f"{path} is no sweep: it has no key `spec`. If it is the spec of one run, use `run {path}`.")
        beside = path.parent / spec if isinstance(spec := fields["spec"], str) else None
        found = cls.parse(fields | ({"spec": str(beside)} if beside and beside.is_file() else {}))
        for name in changes or {}:
            for part, varied in found._varied().items():
                if over := next((field for field in varied if f"{name}.".startswith(f"{field}.")), None):
                    raise BadSpec(f"{name} cannot be set: {over} is varied by {part}. Change it in {path}.")
        return found.model_copy(update={"spec": change(found.spec, changes or {})})

    def specs(self) -> list[RunSpec]:
        """Return the specs of all runs; see `points`."""
        return [point.spec for point in self.points()]

    def points(self) -> list[Point]:
        """Return all runs, the last field varying fastest; of runs with the same id, the first one.

        Raises:
            BadSpec: some combinations are no valid spec; the message names their fields.
        """
        found: dict[str, Point] = {}
        faults = {}
        for parts in itertools.product(*self._parts()):
            changes = {name: value for part in parts for name, value in part.items()}
            try:
                spec = RunSpec.parse(change(self.spec, changes))
            except LabError as error:
                faults[describe_changes(changes)] = str(error)
            else:
                found.setdefault(spec.id, Point(changes, spec))
        reject(faults)
        return list(found.values())

    def _parts(self) -> list[list[Changes]]:
        """Return the factors of the product: each part with its entries."""
        grid = [[{name: value} for value in values] for name, values in self.grid.items()]
        drawn = self.random.draw() if self.random else []
        return [part for part in (self.several, *grid, drawn, [{"seed": seed} for seed in self.seeds]) if part]


def describe_changes(changes: Changes) -> str:
    """Return what distinguishes a run in one line: "adapter.rank = 4, seed = 1"."""
    return ", ".join(f"{name} = {describe_value(value)}" for name, value in changes.items()) or "the spec as it is"


def describe_value(value: Any) -> str:
    """Return a value in a few words; an adapter's fields as "type (rank 8)"."""
    if not isinstance(value, dict):
        return "null" if value is None else str(value)
    kind = str(value.get("type", ""))
    fields = ", ".join(f"{name} {describe_value(inner)}" for name, inner in value.items() if name != "type")
    return f"{kind} ({fields})" if kind and fields else kind or fields


def reject(faults: Mapping[str, str]) -> None:
    """Raise an error that lists invalid combinations, if there are any.

    Args:
        faults: what is wrong, by combination.

    Raises:
        BadSpec: there are.
    """
    if faults:
        lines = [f"{name}: {error}" for name, error in itertools.islice(faults.items(), SHOWN)]
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise BadSpec("Nothing was started. These combinations are invalid:\n  " + "\n  ".join([*lines, *more]))
