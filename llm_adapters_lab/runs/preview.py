"""A dry run: check a spec and forecast its run from the base's configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_adapters_lab.core.injection import find_sites, inject
from llm_adapters_lab.core.saved_adapters import looking_in
from llm_adapters_lab.core.sites import placement_counts
from llm_adapters_lab.errors import DataUnavailable
from llm_adapters_lab.events import row_remarks
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.forecast.duration import Duration
from llm_adapters_lab.runs.forecast.duration import estimate as estimate_duration
from llm_adapters_lab.runs.forecast.fits import ROWS, memory_of_machine
from llm_adapters_lab.runs.forecast.machine import Choice
from llm_adapters_lab.runs.forecast.memory import Memory, estimate
from llm_adapters_lab.runs.forecast.size import size_of
from llm_adapters_lab.runs.preflight import check_rows, check_spec
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.rows import Rows, read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import state
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.batches import describe_steps, step_count
from llm_adapters_lab.training.fast_paths import eligible


@dataclass(frozen=True)
class Forecast:
    """What a run will be and what it will need.

    Attributes:
        spec: of the run.
        state: of its record, as in a sweep, or "new".
        base_parameters: number of them, shared ones counted once.
        quantization: of the base, by the spec or by its files.
        sites: number of sites of the adapter by role; empty for an adapter of the whole model.
        sites_by_layer: the same by role, then by layer.
        trainable_parameters: number of them in the adapter.
        weights: bytes of the base's weights.
        memory: at the peak of the training; None for a bare base, or a model whose computation depends on numbers.
        available: bytes of memory of the GPU, or of the computer if it has none.
        rows: number of training rows; None if they cannot be read.
        steps: number of updates of the adapter; None if that depends on the rows.
        steps_in_words: the same with what limits it; "" if unknown.
        asked: number of rows to score on, by task.
        duration: of the whole run, as expected.
        fast_paths: which fast paths the training takes, and why not the others.
        notes: what is unknown and why, and what was assumed.
    """

    spec: RunSpec
    state: str
    base_parameters: int
    quantization: str
    sites: dict[str, int]
    sites_by_layer: dict[str, dict[int, int]]
    trainable_parameters: int
    weights: int
    memory: Memory | None
    available: int
    rows: int | None
    steps: int | None
    steps_in_words: str
    asked: dict[str, int]
    duration: Duration
    fast_paths: tuple[Choice, ...]
    notes: tuple[str, ...]

    @property
    def id(self) -> str:
        """The id of the run."""
        return self.spec.id

    @property
    def fits(self) -> bool:
        """Whether the memory is enough, as far as that is known."""
        return (self.memory.total if self.memory else self.weights) <= self.available

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        found = {"id": self.id, **asdict(self), "fits": self.fits}
        del found["spec"]
        found["seconds"] = self.duration.seconds
        return found | {"memory": found["memory"] | {"total": self.memory.total} if self.memory else None}


def dry_run(spec: RunSpec, root: str | Path = "runs") -> Forecast:
    """Check a spec against its base and forecast its run. No weight is read, and nothing is written.

    The configuration of the base is enough. Where rows or tokenizer are missing, what depends on them stays unknown.

    Args:
        spec: of the run.
        root: folder of all runs; finished runs with a similar spec tell how long it will take.

    Raises:
        LabError: the spec, the base's configuration, the placement or the rows are at fault.
    """
    with looking_in(root):
        return _dry_run(spec, root)


def _dry_run(spec: RunSpec, root: str | Path) -> Forecast:
    base = Blueprint(*spec.base_parts)
    check_spec(spec, base)
    record, amount = Run(Path(root).resolve() / spec.id), size_of(spec, base)
    notes: list[str] = []
    rows = _rows(spec, notes)
    count = len(rows.train) - spec.data.validation if rows else None
    if rows and base.tokenizer_if_any:
        if spec.data.form == "rows":
            rows.train = rows.train[: spec.data.validation + ROWS]
        check_rows(spec, rows, base)
        notes += row_remarks({"rows": rows.told()})
    counts: dict[str, dict[int, int]] = {}
    memory, learnt = None, None
    paths: tuple[Choice, ...] = ()
    if spec.adapter:
        counts = placement_counts(find_sites(spec.adapter, base.anatomy, base.skeleton).values())
        notes += [base.anatomy.remark] if counts and base.anatomy.left_out else []
    if spec.learns:
        examined, learnt = _training_rows(spec, rows, count, base, notes)
        paths = _fast_paths(spec, examined, base)
        if (memory := estimate(spec, examined, base)) is None:
            notes.append("Its memory cannot be estimated beforehand: the model's computation depends on numbers.")
    return Forecast(
        spec=spec,
        state=state(record).name if record.folder.exists() else "new",
        base_parameters=amount.base,
        quantization=base.quantization(spec.quantization),
        sites={role: sum(by_layer.values()) for role, by_layer in counts.items()},
        sites_by_layer=counts,
        trainable_parameters=amount.trainable,
        weights=amount.weights,
        memory=memory,
        available=memory_of_machine(spec.device_map == "auto"),
        rows=learnt,
        steps=step_count(spec.train, learnt) if learnt else spec.train.max_steps if spec.learns else 0,
        steps_in_words=describe_steps(spec.train, learnt) if learnt and spec.learns else "",
        asked={name: len(test) for name, test in rows.test.items()} if rows else {},
        duration=estimate_duration(spec, root),
        fast_paths=paths,
        notes=tuple(notes),
    )


def _rows(spec: RunSpec, notes: list[str]) -> Rows | None:
    try:
        return read_rows(spec)
    except DataUnavailable as error:
        notes.append(f"The rows are missing: {error}")
        return None


def _training_rows(
    spec: RunSpec, rows: Rows | None, count: int | None, base: Blueprint, notes: list[str]
) -> tuple[list[Sample], int | None]:
    """Return tokenized rows to examine, made up ones if need be, and the number of training rows."""
    if (tokenizer := base.tokenizer_if_any) is None:
        notes.append(f"{spec.base} has no tokenizer, so the length of a row is not known.")
    if rows and count and tokenizer:
        found = rows.samples(tokenizer, spec.data)[0][spec.data.validation :]
        if count <= ROWS or spec.data.form == "text":
            return found, len(found)
        notes.append(f"Memory and left-out rows are computed from the first {ROWS:,} of {count:,} training rows.")
        return found, count
    notes.append(f"Memory is an upper bound: every row is taken to have {spec.data.max_tokens} tokens, all counted.")
    longest = [(row + 1, *[0] * (spec.data.max_tokens - 1)) for row in range(spec.train.batch)]  # no common prefix
    return [Sample(f"row {row[0]}", row, row) for row in longest], count


def _fast_paths(spec: RunSpec, rows: Sequence[Sample], base: Blueprint) -> tuple[Choice, ...]:
    """Return which fast paths model, adapter and rows allow."""
    assert spec.injected is not None
    injection = inject(base.skeleton, spec.injected, tokenizer=base.tokenizer_if_any)
    try:
        taken, reasons = eligible(base.skeleton, injection, rows, spec.train)
    finally:
        injection.eject()
    found = []
    for name, on in vars(taken).items():
        if name == "head_chunk" and not on:  # no logits are that large
            continue
        why = reasons.get(name, "exact up to rounding" if on else "as the spec says, or because packing is off")
        found.append(Choice(f"train.{name}", "on" if on else "off", why))
    return tuple(found)
