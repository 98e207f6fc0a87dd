"""How long a run will take: as long as finished runs like it."""

from __future__ import annotations

import json
from pathlib import Path

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.record import list_runs
from llm_adapters_lab.runs.spec import RunSpec

TIMES = "median of finished runs here with the same base, data, batch, steps and scoring, of the same adapter if any is"
_NO_MATTER = ("learning_rate", "warmup", "schedule", "weight_decay", "clip", "probe_every")


def alike(spec: RunSpec, root: str | Path = "runs") -> list[float]:
    """Return the seconds that finished runs like that of a spec have taken, see `TIMES`; empty if there is none."""
    return matching(spec, times_by_kind(root))


def matching(spec: RunSpec, known: dict[str, list[float]]) -> list[float]:
    """Return the seconds of finished runs like that of a spec, out of those of `times_by_kind`."""
    return known.get(_kind(spec, closely=True)) or known.get(_kind(spec)) or []


def times_by_kind(root: str | Path) -> dict[str, list[float]]:
    """Return the seconds of finished runs by what they are alike in."""
    found: dict[str, list[float]] = {}
    for record in list_runs(root):
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
