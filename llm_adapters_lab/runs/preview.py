"""What a run would be, before it is one: checked, counted and estimated from the base's configuration alone."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import DataUnavailable, ModelUnavailable
from llm_adapters_lab.models import loading
from llm_adapters_lab.models.blueprint import named as quantised
from llm_adapters_lab.models.blueprint import outline
from llm_adapters_lab.runs.background import state
from llm_adapters_lab.runs.forecast.duration import TIMES, alike
from llm_adapters_lab.runs.forecast.fits import ROWS, memory_of_machine, samples
from llm_adapters_lab.runs.forecast.memory import Memory, estimate
from llm_adapters_lab.runs.forecast.size import size_of
from llm_adapters_lab.runs.preflight import check_spec
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.rows import Rows, read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.batches import step_count


@dataclass(frozen=True)
class DryRun:
    """What a run would be.

    Attributes:
        id: of the run.
        state: of its record, as in a sweep, or "new".
        base_parameters: shared ones once.
        quantization: of the base, by the spec or by its files.
        sites: number of places of the adapter by role; empty for one of the whole model.
        trainable_parameters: of the adapter.
        weights: bytes of the base's weights.
        memory: at the peak of the training; None for a bare base, or a model that cannot run without numbers.
        available: bytes of memory of the GPU, else of the computer.
        rows: to train on; None where they cannot be read.
        steps: updates of the adapter; None where that depends on the rows.
        asked: rows to score on, by task.
        seconds: of the whole run; None where no finished run is like it.
        notes: what is not known and why, and what was assumed.
    """

    id: str
    state: str
    base_parameters: int
    quantization: str
    sites: dict[str, int]
    trainable_parameters: int
    weights: int
    memory: Memory | None
    available: int
    rows: int | None
    steps: int | None
    asked: dict[str, int]
    seconds: float | None
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the memory is enough, as far as that is known."""
        return not self.available or (self.memory.total if self.memory else self.weights) <= self.available

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        found = asdict(self) | {"fits": self.fits}
        return found | {"memory": found["memory"] | {"total": self.memory.total} if self.memory else None}


def dry_run(spec: RunSpec, root: str | Path = "runs") -> DryRun:
    """Check a spec against its base and say what its run would be; no weight is read, and nothing is written.

    The configuration of the base is enough. Rows and a tokenizer that are not there leave unknown what depends on them.

    Args:
        spec: what would be done.
        root: folder of all runs; finished ones alike tell how long it would take.

    Raises:
        LabError: the spec, the base's configuration, the placement or the rows are at fault.
    """
    check_spec(spec)
    record, times, amount = Run(Path(root).resolve() / spec.id), alike(spec, root), size_of(spec)
    seconds = statistics.median(times) if times else None
    model, anatomy = outline(spec.base, spec.trust_remote_code)
    notes: list[str] = []
    rows, tokenizer = _rows(spec, notes), _tokenizer(spec, notes)
    sites, memory, learnt = Counter[str](), None, None
    if spec.adapter:
        entry = get_adapter(spec.adapter.type)
        sites.update(site.role for site in entry.cls.sites(anatomy, model, spec.adapter.at or entry.at))
        memory, learnt = _training(spec, rows, tokenizer, notes)
    notes.append(f"The time is the {TIMES}: {len(times)}." if times else "No finished run is like it: no time.")
    return DryRun(
        id=spec.id,
        state=state(record).name if record.folder.exists() else "new",
        base_parameters=amount.base,
        quantization=quantised(model, spec.quantization),
        sites=dict(sites),
        trainable_parameters=amount.trainable,
        weights=amount.weights,
        memory=memory,
        available=memory_of_machine(spec.device_map == "auto"),
        rows=learnt,
        steps=step_count(spec.train, learnt) if learnt else spec.train.max_steps if spec.adapter else 0,
        asked={name: len(test) for name, test in rows.test.items()} if rows else {},
        seconds=seconds,
        notes=tuple(notes),
    )


def _rows(spec: RunSpec, notes: list[str]) -> Rows | None:
    try:
        return read_rows(spec)
    except DataUnavailable as error:
        notes.append(f"The rows are not there: {error}")
        return None


def _tokenizer(spec: RunSpec, notes: list[str]) -> Any:
    try:
        found = loading.tokenizer(spec.base, trust_remote_code=spec.trust_remote_code)
    except ModelUnavailable:
        found = None
    if found is None:
        notes.append(f"{spec.base} has no tokenizer, so that the length of a row is not known.")
    return found


def _training(spec: RunSpec, rows: Rows | None, tokenizer: Any, notes: list[str]) -> tuple[Memory | None, int | None]:
    """Return the memory that training needs, and the number of rows that are learnt."""
    count = len(rows.train) - spec.data.validation if rows else None
    learnt = samples(spec, rows.train, tokenizer) if rows and tokenizer else []
    if learnt and count:
        if count <= ROWS:
            count = len(learnt)
        else:
            notes.append(f"Memory is that of the first {ROWS:,} rows; rows too long for data.max_tokens are counted.")
    else:
        notes.append(f"Memory is at most this: every row is taken to have {spec.data.max_tokens} tokens, all counted.")
        learnt = _longest(spec)
    if (memory := estimate(spec, learnt, tokenizer)) is None:
        notes.append("Its memory cannot be told beforehand: the model decides by numbers what it computes.")
    return memory, count


def _longest(spec: RunSpec) -> list[Sample]:
    """Return a step of rows as long as the spec lets them be, which begin differently."""
    rows = [(row + 1, *[0] * (spec.data.max_tokens - 1)) for row in range(spec.train.batch)]
    return [Sample(f"row {row[0]}", row, row) for row in rows]
