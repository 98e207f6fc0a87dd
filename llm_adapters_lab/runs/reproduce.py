"""Repeat a run and list what differs: results to the bit, and their possible causes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import torch

from llm_adapters_lab.core.saved_adapters import looking_in
from llm_adapters_lab.core.tensor_files import read_tensors
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.base_files import NAMES
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.session import Listener

TIMES = {"seconds", "seconds_left", "tokens_per_second", "peak_memory_bytes"}
CIRCUMSTANCES = ("environment", "hashes")
LOGGED = ("Step", "Validated", "Norms", "Probed", "Merged")
UNEXPLAINED = (
    "nothing on record: versions, threads, base and data are the same. On a GPU some sums have no fixed order without "
    "train.deterministic; on a CPU look for changed code"
)


@dataclass(frozen=True)
class Difference:
    """A difference between two runs of a spec.

    Attributes:
        field: e.g. ``environment.torch``, ``Step 3.loss`` or ``answer boolq/test/7.text``.
        before: the value in the record; None if it has none.
        now: the value in the repetition; likewise.
        cause: a possible cause, in words.
    """

    field: str
    before: Any
    now: Any
    cause: str


def rerun(record: Run, on_event: Listener | None = None) -> list[Difference]:
    """Repeat a finished run in a temporary folder and compare everything but durations and memory.

    Args:
        record: of the run; it is not changed.
        on_event: as in `run`.

    Returns:
        Differences in versions, machine, base and data first, then in losses, scores, answers and tensors.

    Raises:
        BadSpec: the run is not finished.
        LabError: it cannot be repeated, for instance because its data are missing.
    """
    if (status := record.summary["status"]) != "finished":
        raise BadSpec(f"The run {record.id} is {status}: there is nothing to compare with.")
    with tempfile.TemporaryDirectory(prefix="lab-rerun-") as root, looking_in(record.folder.parent):
        return compare(record, run(record.spec, root=root, on_event=on_event))


def compare(before: Run, now: Run) -> list[Difference]:
    """Compare two records of one spec, like `rerun`; circumstances missing from the earlier one are left out."""
    old, new = ({part: run.summary.get(part, {}) for part in CIRCUMSTANCES} for run in (before, now))
    known = _flat(old)
    reasons = [Difference(*unlike, _kind(unlike[0])) for unlike in _unlike(known, _flat(new)) if unlike[0] in known]
    due = ", ".join(dict.fromkeys(reason.cause for reason in reasons)) or UNEXPLAINED
    unlike = _unlike(_results(before), _results(now)) + _unlike_tensors(before, now)
    return reasons + [Difference(*found, due) for found in unlike]


def _kind(name: str) -> str:
    """Return in words what kind of circumstance differs."""
    part, _, last = name.partition(".")
    if part == "hashes":
        known = {"base": "another base", "data": "other data"}
        key = name.split(".")[1]
        return known.get(key) or NAMES[key].replace("the ", "another ")
    known = {"threads": "number of threads", "commit": "code of the lab", "dtype": "another dtype"}
    return known.get(last) or ("another machine" if last in ("device", "platform") else f"version of {last}")


def _results(run: Run) -> dict[str, Any]:
    """Return everything that a repetition must reproduce, by dotted names."""
    found: dict[str, Any] = {}
    for event in run.events(*LOGGED):  # the last one counts if a step was repeated
        rest = {key: value for key, value in event.items() if key not in ("event", "step")}
        found |= _flat(rest, f"{event['event']} {event['step']}.")
    derived = (*CIRCUMSTANCES, "sites")  # older records lack them; they follow from spec and base
    found |= _flat({key: value for key, value in run.summary.items() if key not in derived})
    for row in run.predictions():
        found |= _flat({key: value for key, value in row.items() if key != "id"}, f"answer {row['id']}.")
    return found


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of plain data by dotted names, without durations; `name` ends in a dot."""
    if not isinstance(value, dict | list):
        return {name.removesuffix("."): value}
    found: dict[str, Any] = {}
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        found |= {} if key in TIMES else _flat(inner, f"{name}{key}.")
    return found


def _unlike(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = dict.fromkeys([*before, *now])
    found = [(name, before.get(name), now.get(name)) for name in names]
    return [row for row in found if repr(row[1]) != repr(row[2])]  # repr, because nan differs from itself


def _unlike_tensors(before: Run, now: Run) -> list[tuple[str, Any, Any]]:
    files = [run.folder / "adapter" / "adapter.safetensors" for run in (before, now)]
    old, new = (read_tensors(file) if file.is_file() else {} for file in files)
    found = []
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        if a is None or b is None or a.dtype != b.dtype or not torch.equal(a, b):
            found.append((f"tensor {name}", _described(a), _described(b)))
    return found


def _described(tensor: torch.Tensor | None) -> str | None:
    if tensor is None:
        return None
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}, norm {tensor.double().norm():.9g}"
