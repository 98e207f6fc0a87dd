"""How long a run will take: by finished runs of the same kind or of the same base, or roughly by its operations.

The duration of a run counts from the reading of its rows to its summary. Of runs that worked at the same time, as in a
study, each is charged its share.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.files import _lines, read_json
from llm_adapters_lab.models.blueprint import blueprint
from llm_adapters_lab.runs.event_log import last_event
from llm_adapters_lab.runs.forecast import rough
from llm_adapters_lab.runs.rows import Rows, scored_rows, training_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.readers import folder_of
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.training.batches import step_count

Source = Literal["same run", "same base", "rough", "unknown"]
SAMPLE = 64
"""Number of training rows whose tokens are counted where no finished run has them."""
FEWEST = 3
"""Number of runs from which a speed is taken, if there are: what else the machine had to do changes it."""
_IRRELEVANT = ("learning_rate", "warmup", "schedule", "weight_decay", "clip", "probe_every")
_SPEED = ("precision", "gradient_checkpointing", "compile", "packing", "share_prefix", "label_head", "micro_batch")
"""Fields of the training that change its speed."""


@dataclass(frozen=True)
class Duration:
    """An expected duration.

    Attributes:
        seconds: of the whole run, from the reading of its rows on; None if unknown.
        source: "same run": finished runs that differ in no field which costs time; "same base": the speed of finished
            runs of the same base; "rough": number of operations and speed of this machine.
        why: the source in a sentence.
    """

    seconds: float | None
    source: Source
    why: str

    def __str__(self) -> str:
        """Return the sentence."""
        return self.why


@dataclass(frozen=True)
class _Finished:
    """A finished run: what it did, and how long that took.

    Attributes:
        spec: of the run.
        kinds: what it must share with a run that takes as long, first with the adapter's type, then without.
        seconds: of the whole run.
        training: of these, those of the training; 0 without.
        tokens: of the training rows, over all steps.
        steps: number of them.
        rows: number of training rows that were not too long.
        scored: number of answers.
        began: when it began, in seconds since 1970; None if its files do not tell.
    """

    spec: RunSpec
    kinds: tuple[str, str]
    seconds: float
    training: float
    tokens: int
    steps: int
    rows: int
    scored: int
    began: float | None

    @property
    def row_tokens(self) -> float:
        """Mean number of tokens of a training row."""
        return self.tokens / max(1, self.steps * self.spec.train.batch)


_READ: dict[Path, tuple[tuple[int, int], _Finished | None]] = {}
"""What is known of each finished run, with the stamp of its summary."""
_LENGTHS: dict[str, float] = {}
"""Mean number of tokens of the training rows, by base and data."""


def estimate(spec: RunSpec, root: str | Path = "runs") -> Duration:
    """Estimate how long a run will take; after the first call for a root, within milliseconds.

    Only where no finished run helps, rows are read and tokenized, and the speed of this machine is measured, once.
    """
    known = _finished(Path(root).resolve())
    for closely in (True, False):
        kind = _kind(spec, closely)
        if times := [share for run, share in known if run.kinds[not closely] == kind]:
            many = f"The median of {len(times)} finished runs like this one."
            why = many if len(times) > 1 else "The time of a finished run like this one."
            return Duration(statistics.median(times), "same run", why)
    try:
        same = [(run, share) for run, share in known if _base(run.spec) == _base(spec)]
        if same and (seconds := _by_base(spec, same)) is not None:
            runs = f"{len(same)} finished run{'s' * (len(same) > 1)}"
            return Duration(seconds, "same base", f"By the speed of {runs} with the base {Path(spec.base).name}.")
        return Duration(_by_operations(spec), "rough", "A rough figure: number of operations, speed of this machine.")
    except (LabError, OSError) as error:
        return Duration(None, "unknown", f"Unknown: {error}")


def total(durations: Iterable[Duration]) -> Duration:
    """Return how long runs take one after the other; what one of them leaves unknown is not counted."""
    found = list(durations)
    known = [each.seconds for each in found if each.seconds is not None]
    order: tuple[Source, ...] = ("unknown", "rough", "same base", "same run")
    worst = min((each for each in found), key=lambda each: order.index(each.source), default=None)
    if not known or worst is None:
        return Duration(None, "unknown", worst.why if worst else "")
    return Duration(math.fsum(known), worst.source, worst.why)


def _by_base(spec: RunSpec, same: Sequence[tuple[_Finished, float]]) -> float | None:
    """Return the time by the speed of runs of the same base; None if they do not tell."""
    shares = {id(run): share / run.seconds for run, share in same}
    training = 0.0
    if spec.learns:
        near = [run for run, _ in same if run.training and run.spec.train.objective == spec.train.objective]
        if not near:
            return None
        near = _nearest(spec, near)
        rates = [shares[id(run)] * run.training / _work(run.spec, run.steps, run.row_tokens) for run in near]
        like = [run for run, _ in same if run.steps and _data(run.spec) == _data(spec)]
        of_rows = [run for run in like if run.spec.data.rows == spec.data.rows]
        rows = of_rows[-1].rows if of_rows else training_rows(spec.data)
        length = statistics.median(run.row_tokens for run in like) if like else _row_tokens(spec)
        training = statistics.median(rates) * _work(spec, step_count(spec.train, rows), length)
    scored = sum(scored_rows(spec).values())
    others = [(run.scored, shares[id(run)] * (run.seconds - run.training)) for run in _asked_alike(spec, same)]
    if not others or (scored and not any(rows for rows, _ in others)):
        return None
    return training + _line(others, scored)


def _work(spec: RunSpec, steps: int, length: float) -> float:
    """Return the tokens of a training, those of a validation counted by a third: they have no backward pass."""
    plan = spec.train
    validations = (1 + steps // plan.evaluate_every if plan.evaluate_every else 1) if spec.data.validation else 0
    return length * (steps * plan.batch + validations * spec.data.validation / 3)


def _nearest(spec: RunSpec, runs: Sequence[_Finished]) -> list[_Finished]:
    """Return the runs whose speed of training says most, by adapter, settings and batch; several, if there are."""
    assert spec.adapter is not None
    kind = spec.adapter.type

    def distance(run: _Finished) -> tuple[bool, int, float]:
        plan, wanted = run.spec.train, spec.train
        other = bool(run.spec.adapter and run.spec.adapter.type != kind)
        apart = sum(getattr(plan, name) != getattr(wanted, name) for name in _SPEED)
        return other, apart, abs(math.log2(plan.batch / wanted.batch))

    last = sorted(map(distance, runs))[:FEWEST][-1]
    return [run for run in runs if distance(run) <= last]


def _asked_alike(spec: RunSpec, same: Sequence[tuple[_Finished, float]]) -> list[_Finished]:
    """Return the runs whose speed of scoring says most: of the same protocol, and adapter where there are any."""
    found = [run for run, _ in same if run.spec.eval.protocol == spec.eval.protocol or not run.scored]
    kind = spec.adapter.type if spec.adapter else None
    own = [run for run in found if (run.spec.adapter.type if run.spec.adapter else None) == kind]
    return own if any(run.scored for run in own) else found


def _line(points: Sequence[tuple[int, float]], at: int) -> float:
    """Return the seconds for `at` rows by a line through points (rows, seconds) that starts at 0 s or above."""
    slopes = [
        (b - a) / (n - m) for i, (m, a) in enumerate(points) for n, b in points[i + 1 :] if max(m, n) > 2 * min(m, n)
    ]
    slope = max(0.0, statistics.median(slopes)) if slopes else 0.0
    start = max(0.0, min(seconds - slope * rows for rows, seconds in points)) if slopes else 0.0
    rates = [(seconds - start) / rows for rows, seconds in points if rows]
    return start + at * (max(0.0, statistics.median(rates)) if rates else 0.0)


def _by_operations(spec: RunSpec) -> float:
    base = blueprint(*spec.base_parts)
    steps, length = 0, 0.0
    if spec.learns:
        steps, length = step_count(spec.train, training_rows(spec.data)), _row_tokens(spec)
    rows = {name: (count, _answer_tokens(spec, name)) for name, count in scored_rows(spec).items()}
    return rough.seconds(spec, base, _work(spec, steps, length), steps, length, rows)


def _answer_tokens(spec: RunSpec, task: str) -> int:
    """Return the number of tokens that are generated for an answer, at most."""
    if spec.eval.protocol == "options":
        return 1
    return spec.eval.most_tokens(get_task(task))


def _row_tokens(spec: RunSpec) -> float:
    """Return the mean number of tokens of the first training rows."""
    return float(spec.data.max_tokens) if spec.data.form == "text" else _mean_tokens(spec)


def _mean_tokens(spec: RunSpec) -> float:
    key = json.dumps([spec.base_parts, spec.data.model_dump(mode="json")])
    if key not in _LENGTHS:
        rows = Rows(get_task(spec.data.task).load("train", folder_of(spec.data.root))[:SAMPLE])
        tokenizer = blueprint(*spec.base_parts).tokenizer_if_any
        plain = spec.data.model_copy(update={"validation": 0})
        lengths = [len(sample.ids) for sample in rows.samples(tokenizer, plain)[0]] if tokenizer else []
        _LENGTHS[key] = statistics.fmean(lengths or [spec.data.max_tokens])
    return _LENGTHS[key]


def _finished(root: Path) -> list[tuple[_Finished, float]]:
    """Return the finished runs under a root, each with the seconds that it would have taken alone."""
    found: list[_Finished] = []
    try:
        with os.scandir(root) as folders:
            names = [folder.path for folder in folders if folder.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    for name in names:
        folder = Path(name)
        try:
            stat = os.stat(folder / "summary.json")
        except OSError:
            continue
        stamp = stat.st_mtime_ns, stat.st_size
        if folder not in _READ or _READ[folder][0] != stamp:
            _READ[folder] = stamp, _read(folder, stat.st_mtime)
        if run := _READ[folder][1]:
            found.append(run)
    return list(zip(found, _alone(found), strict=True))


def _read(folder: Path, ended: float) -> _Finished | None:
    """Return what is known of a finished run; None if it was resumed, which hides its duration, or cannot be read."""
    try:
        last = last_event(folder / "events.jsonl") or {}
        started = sum(event["event"] == "Started" for event in _lines(folder / "events.jsonl", ["Started"]))
        if last.get("event") != "Finished" or started != 1:
            return None
        spec, summary = RunSpec.parse(read_json(folder / "spec.json")), read_json(folder / "summary.json")
        train, seconds = summary.get("train") or {}, float(last["seconds"])
        began = (folder / "spec.json").stat().st_mtime
        return _Finished(
            spec,
            (_kind(spec, True), _kind(spec, False)),
            seconds,
            float(train.get("seconds") or 0),
            int(train.get("tokens") or 0),
            int(train.get("steps") or 0),
            int(train.get("rows") or 0),
            sum(score["total"] for score in summary["scores"].values()),
            began if abs(ended - began - seconds) < max(5.0, 0.2 * seconds) else None,
        )
    except (LabError, OSError, ValueError, KeyError, TypeError, AttributeError):  # of another version, or damaged
        return None


def _alone(runs: Sequence[_Finished]) -> list[float]:
    """Return the seconds that each run would have taken alone: time that several shared is divided among them."""
    spans = [(run.began, run.began + run.seconds) for run in runs if run.began is not None]
    times = sorted({time for span in spans for time in span})
    change = dict.fromkeys(times, 0)
    for start, end in spans:
        change[start] += 1
        change[end] -= 1
    shares, working = [0.0], 0
    for time, following in pairwise(times):
        working += change[time]
        shares.append(shares[-1] + (following - time) / max(1, working))

    def share(run: _Finished) -> float:
        if run.began is None:
            return run.seconds
        return shares[bisect_left(times, run.began + run.seconds)] - shares[bisect_left(times, run.began)]

    return [share(run) for run in runs]


def _base(spec: RunSpec) -> tuple[str, ...]:
    return spec.base, spec.dtype, spec.quantization, spec.device_map


def _data(spec: RunSpec) -> tuple[object, ...]:
    data = spec.data
    return data.task, data.root, data.form, data.template, data.system, data.max_tokens


def _kind(spec: RunSpec, closely: bool) -> str:
    """Return the fields that decide how long a run takes; `closely` includes the adapter's type."""
    fields = json.loads(spec.canonical())
    fields.pop("seed", None)
    if spec.adapter:
        fields["adapter"] = spec.adapter.type if closely else "any"
        fields["train"] = {k: v for k, v in fields.get("train", {}).items() if k not in _IRRELEVANT}
    return json.dumps(fields, sort_keys=True)
