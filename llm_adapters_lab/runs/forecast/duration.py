"""How long a run will take, judged by finished runs with a similar spec."""

from __future__ import annotations

import json
from pathlib import Path

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.record import list_runs
from llm_adapters_lab.runs.spec import RunSpec

TIMES = "median of finished runs here with the same base, data, batch, steps and scoring, of the same adapter if any is"
_IRRELEVANT = ("learning_rate", "warmup", "schedule", "weight_decay", "clip", "probe_every")


def alike(spec: RunSpec, root: str | Path = "runs") -> list[float]:
    """Return the durations in seconds of finished runs similar to a spec, see `TIMES`."""
    return matching(spec, times_by_kind(root))


def matching(spec: RunSpec, known: dict[str, list[float]]) -> list[float]:
    """Return the durations in seconds of similar runs among those of `times_by_kind`."""
    return known.get(_kind(spec, closely=True)) or known.get(_kind(spec)) or []


def times_by_kind(root: str | Path) -> dict[str, list[float]]:
    """Return the durations of all finished runs, grouped by what makes runs similar."""
    found: dict[str, list[float]] = {}
    for record in list_runs(root):
        # The duration of a run that was resumed is not known.
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
    """Return the fields that decide how long a run takes; `closely` includes the adapter's type."""
    fields = json.loads(spec.canonical())
    fields.pop("seed", None)
    if spec.adapter:
        fields["adapter"] = spec.adapter.type if closely else "any"
        fields["train"] = {k: v for k, v in fields.get("train", {}).items() if k not in _IRRELEVANT}
    return json.dumps(fields, sort_keys=True)
