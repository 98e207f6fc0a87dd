"""Estimate: what a sweep would cost, before it starts. Sizes are counted; times are those of finished runs alike."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.launch import State, state
from llm_adapters_lab.record import Run, runs
from llm_adapters_lab.sizes import Size, size_of
from llm_adapters_lab.spec import RunSpec
from llm_adapters_lab.sweep_file import Changes, Point

TIMES = "median of finished runs here with the same base, data, batch, steps and scoring, of the same adapter if any is"
_NO_MATTER = ("learning_rate", "warmup", "schedule", "weight_decay", "clip", "probe_every")


class Cost(NamedTuple):
    """What one run of a sweep would cost.

    Attributes:
        changes: what sets it apart.
        run: its record, of which nothing need be there yet.
        state: how it stands.
        size: parameters, and bytes of weights and optimiser; activations come on top.
        seconds: from loading to the last score; None where no finished run is like it.
        alike: how many finished runs that is the median of.
    """

    changes: Changes
    run: Run
    state: State
    size: Size
    seconds: float | None
    alike: int


def costs(points: Sequence[Point], root: str | Path = "runs") -> list[Cost]:
    """Estimate what every run of a sweep costs.

    Raises:
        LabError: a model or an adapter cannot be built.
    """
    known = _times(root)
    found = []
    for changes, spec in points:
        run = Run(Path(root).resolve() / spec.id)
        times = _alike(spec, known)
        middle = statistics.median(times) if times else None
        amount = size_of(spec)
        found.append(Cost(changes, run, state(run), amount, middle, len(times)))
    return found


def alike(spec: RunSpec, root: str | Path = "runs") -> list[float]:
    """Return the seconds that finished runs like that of a spec have taken, see `TIMES`; empty if there is none."""
    return _alike(spec, _times(root))


def _alike(spec: RunSpec, known: dict[str, list[float]]) -> list[float]:
    return known.get(_kind(spec, closely=True)) or known.get(_kind(spec)) or []


def _times(root: str | Path) -> dict[str, list[float]]:
    """Return the seconds of finished runs by what they are alike in."""
    found: dict[str, list[float]] = {}
    for record in runs(root):
        # What was interrupted and taken up again does not know how long all of it took.
        ends = [event["seconds"] for event in record.events("Finished")]
        if not record.done or len(ends) != 1 or len(list(record.events("Started"))) != 1:
            continue
        try:
            spec = record.spec
        except BadSpec:  # of another version
            continue
        for kind in (_kind(spec), _kind(spec, closely=True)):
            found.setdefault(kind, []).append(ends[0])
    return found


def _kind(spec: RunSpec, closely: bool = False) -> str:
    """Return what runs that take about as long have in common; `closely` also the type of their adapter."""
    fields = json.loads(spec.canonical())
    fields.pop("seed", None)
    if spec.adapter:
        fields["adapter"] = spec.adapter.type if closely else "any"
        fields["train"] = {k: v for k, v in fields.get("train", {}).items() if k not in _NO_MATTER}
    return json.dumps(fields, sort_keys=True)
