"""How a benchmark searches the settings of a method: what is tried, what it may cost, and which runs end early.

search: {runs: 6, fields: {train.learning_rate: {log-uniform: [1e-4, 3e-2]}}}      # drawn at random
search: {by: grid, runs: 6, fields: ...}           # values at even distances
search: {by: tpe, runs: 12, fields: ...}           # each run chosen by those before, by Optuna
search: {runs: 12, rule: mcnemar, fields: ...}     # runs end that are significantly worse than the best
search: {tokens: 500_000, fields: ...}             # as many runs of each method as fit into the budget
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from statistics import NormalDist
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from llm_adapters_lab.config import Part
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.evaluation.statistics import mcnemar
from llm_adapters_lab.models.blueprint import blueprint
from llm_adapters_lab.runs.forecast.size import size_of
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.sweeps.spec import MAX_COMBINATIONS, Changes, Distribution, Draws
from llm_adapters_lab.training.batches import step_count

RUNS = 6
"""Number of runs of each method without a budget."""
LEVEL = 0.02
"""Probability that the rule mcnemar ends a run that is as good as the best, over all looks."""
STARTUP = 3
"""Number of runs of each method that are random before TPE learns from them."""


class Search(Part):
    """The budget of every method, and what it may vary. One of runs, tokens and flops is given."""

    by: Literal["random", "grid", "tpe"] = Field(
        default="random",
        description="random: drawn; grid: at even distances; tpe: chosen by the runs before (needs optuna)",
    )
    rule: Literal["none", "halving", "mcnemar"] = Field(
        default="none",
        description="which runs end at each validation: none; halving: the worse half; mcnemar: those significantly "
        "worse than the best on the held-out rows",
    )
    runs: int | None = Field(
        default=None, ge=1, le=1000, description=f"runs of each method for a base and a task; default: {RUNS}"
    )
    tokens: int | None = Field(default=None, ge=1, description="training tokens of each method for a base and a task")
    flops: float | None = Field(default=None, gt=0, description="training FLOPs of each method for a base and a task")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the draws, and of the runs")
    fields: dict[str, Distribution] = Field(default_factory=dict, description="dotted fields with common ranges")

    @model_validator(mode="after")
    def _one_budget(self) -> Search:
        given = [name for name in ("runs", "tokens", "flops") if getattr(self, name) is not None]
        if len(given) > 1:
            raise BadSpec(f"The budget is given as {' and as '.join(given)}. Give one of them.")
        if self.by == "tpe" and self.rule != "none":
            raise BadSpec(
                "search.by = tpe tries one run after another, so that none can be ended by comparison. "
                "Set search.rule: none, or another search.by."
            )
        return self

    @property
    def budget(self) -> str:
        """The budget in words."""
        for name, unit in (("tokens", "tokens"), ("flops", "FLOPs")):
            if (value := getattr(self, name)) is not None:
                return f"{value:,.4g} {unit}"
        return f"{self.runs or RUNS} runs"

    def count(self, spec: RunSpec) -> int:
        """Return how many runs like `spec` the budget has room for.

        Raises:
            LabError: the rows cannot be read.
        """
        if self.tokens is None and self.flops is None:
            return self.runs or RUNS
        cost = training_cost(spec)
        room = self.tokens / cost.tokens if self.tokens else (self.flops or 0.0) / cost.flops
        return min(int(room), MAX_COMBINATIONS)

    def settings(self, fields: Mapping[str, Distribution], count: int) -> list[Changes]:
        """Return what is tried, at most `count` settings; for tpe, settings like those that it might try.

        Raises:
            BadSpec: a grid of choices is larger.
        """
        if not fields:
            return [{}]
        if self.by != "grid":
            return Draws(count=count, seed=self.seed, fields=dict(fields)).draw()
        return _grid(fields, count)


class Cost(NamedTuple):
    """What a training costs: counted before it starts, with rows of mean length.

    Attributes:
        tokens: of the rows.
        flops: 4 for each weight of the base and token, forward and backward, and those of what is trained (`Size`).
    """

    tokens: float
    flops: float


def training_cost(spec: RunSpec) -> Cost:
    """Return what the training of a spec costs.

    Raises:
        LabError: base or rows cannot be read.
    """
    rows, length = _lengths(spec)
    tokens = step_count(spec.train, rows) * spec.train.batch * length
    return Cost(tokens, tokens * size_of(spec).flops)


def _lengths(spec: RunSpec) -> tuple[int, float]:
    """Return the number of rows that a run learns from, and their mean length in tokens."""
    samples, _ = read_rows(spec).samples(blueprint(*spec.base_parts).tokenizer, spec.data)
    learnt = samples[spec.data.validation :]
    return len(learnt), sum(len(sample.ids) for sample in learnt) / len(learnt)


class Look(NamedTuple):
    """A run at a validation.

    Attributes:
        loss: of the validation, in nats.
        right: which held-out rows it answers, see `Validated`.
    """

    loss: float
    right: str


def levels(looks: Sequence[int], steps: int) -> dict[int, float]:
    """Return the significance level of each look, which together are at most `LEVEL`.

    Early looks get little of it, as a run may start slowly and end best: until a share t of the steps, 2 - 2 Φ(z / √t)
    is spent, with z the two-sided normal quantile of `LEVEL`.

    Source: Lan and DeMets (1983), "Discrete sequential boundaries for clinical trials", their function of the
    boundaries of O'Brien and Fleming (1979).
    """
    normal = NormalDist()
    z = normal.inv_cdf(1 - LEVEL / 2)
    spent = [2 - 2 * normal.cdf(z / math.sqrt(step / steps)) for step in looks]
    return {step: after - before for step, before, after in zip(looks, [0.0, *spent], spent, strict=False)}


def survivors(rule: str, runs: Mapping[str, Look], level: float = LEVEL) -> set[str]:
    """Return which runs of a method continue after a look.

    Args:
        rule: halving: the better half by loss, rounded up; mcnemar: all that are not significantly worse on the
            held-out rows than the run with most right answers, by McNemar's exact test; none: all.
        runs: by id, at the same step.
        level: of the test.
    """
    ordered = sorted(runs, key=lambda name: runs[name].loss)
    if rule == "halving":
        return {*ordered[: math.ceil(len(ordered) / 2)]}
    if rule == "none" or not runs:
        return {*ordered}
    best = max(ordered, key=lambda name: runs[name].right.count("1"))  # ties: the lowest loss
    return {name for name in ordered if not _worse(runs[name].right, runs[best].right, level)}


def _worse(right: str, best: str, level: float) -> bool:
    pairs = [*zip(right, best, strict=True)]
    wins, losses = pairs.count(("1", "0")), pairs.count(("0", "1"))
    return losses > wins and mcnemar(wins, losses) <= level


def _grid(fields: Mapping[str, Distribution], count: int) -> list[Changes]:
    fixed = math.prod(len(field.choice) for field in fields.values() if field.choice is not None)
    ranges = sum(field.choice is None for field in fields.values())
    each = int((count / fixed) ** (1 / ranges) + 1e-9) if ranges else 1
    if each < 1 or fixed > count:
        raise BadSpec(f"A grid of the choices alone has {fixed} runs, and the budget has room for {count}. Raise it.")
    axes = [field.choice if field.choice is not None else field.spread(each) for field in fields.values()]
    return [dict(zip(fields, values, strict=True)) for values in product(*axes)]


class Asker:
    """Chooses settings one after another from the losses so far: the tree-structured Parzen estimator of Optuna.

    The same losses lead to the same settings, so that a search that was interrupted is continued by repeating it.

    Source: Bergstra et al. (2011), "Algorithms for hyper-parameter optimization"; `optuna.samplers.TPESampler`.
    """

    def __init__(self, fields: Mapping[str, Distribution], seed: int) -> None:
        """Begin a search over these fields.

        Raises:
            LabError: Optuna is not installed.
        """
        try:
            import optuna
        except ImportError as error:
            raise LabError("search.by = tpe needs Optuna: pip install optuna.") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
        self._study, self._fields = optuna.create_study(sampler=sampler), fields
        self._failed = optuna.trial.TrialState.FAIL

    def ask(self) -> tuple[Changes, Callable[[float], None]]:
        """Return a setting, and what is to be called with its loss; infinite if it has failed."""
        trial = self._study.ask()
        changes = {name: field.suggested(trial, name) for name, field in self._fields.items()}

        def tell(loss: float) -> None:
            if math.isfinite(loss):
                self._study.tell(trial, loss)
            else:
                self._study.tell(trial, state=self._failed)

        return changes, tell
