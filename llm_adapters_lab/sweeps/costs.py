"""Estimate: what a sweep would cost, before it starts. Sizes are counted; times are those of finished runs alike."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llm_adapters_lab.runs.background import State, state
from llm_adapters_lab.runs.forecast.duration import matching, times_by_kind
from llm_adapters_lab.runs.forecast.size import Size, size_of
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.sweeps.spec import Changes, Point


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
    known = times_by_kind(root)
    found = []
    for changes, spec in points:
        run = Run(Path(root).resolve() / spec.id)
        times = matching(spec, known)
        middle = statistics.median(times) if times else None
        amount = size_of(spec)
        found.append(Cost(changes, run, state(run), amount, middle, len(times)))
    return found
