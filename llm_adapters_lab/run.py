"""run(spec): the one entry point. A click, a notebook, papermill and the command line all call it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llm_adapters_lab import models
from llm_adapters_lab.batches import encode
from llm_adapters_lab.environment import environment, peak_memory
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluate import decoder, evaluate
from llm_adapters_lab.events import Event, Failed, Finished, Scored, Scoring, Started, Step, Stopped
from llm_adapters_lab.inject import Injection, inject
from llm_adapters_lab.leaks import overlap
from llm_adapters_lab.merge import written
from llm_adapters_lab.prepare import Rows, preflight, read_rows
from llm_adapters_lab.record import Run, append_line
from llm_adapters_lab.saving import load_adapter, read_tensors, save_adapter
from llm_adapters_lab.scores import score
from llm_adapters_lab.spec import RunSpec
from llm_adapters_lab.tasks import Example, get_task
from llm_adapters_lab.train import make_accelerator, step_count, train
from llm_adapters_lab.wrappers.quantize import load

Listener = Callable[[Event], None]


class _Stop(Exception):
    """The stop event was set."""


def run(
    spec: RunSpec,
    *,
    root: str | Path = "runs",
    fresh: bool = False,
    stop: threading.Event | None = None,
    on_event: Listener | None = None,
) -> Run:
    """Do a run, or return its record if it has been done.

    Everything that can be known to be wrong is found before any weight loads and before a folder is made. A run that
    was interrupted while it was scored goes on at the next row; one that was interrupted in training starts again.

    Args:
        spec: what to do.
        root: folder of all runs.
        fresh: do it again even if there is a finished record.
        stop: set it from another thread to stop after the current step or batch of prompts.
        on_event: called with every event, in addition to the log.

    Returns:
        The record. After a stop it is unfinished, and the same call takes it up again.

    Raises:
        LabError: the spec, the model, the data or the training is at fault.
    """
    record = Run(Path(root) / spec.id)
    if record.done and not fresh:
        return record
    rows = read_rows(spec)
    preflight(spec)
    leaks = {name: overlap(rows.train, test) for name, test in rows.test.items()} if spec.adapter else {}
    began = time.perf_counter()
    base = models.load(spec.base, spec.dtype, trust_remote_code=spec.trust_remote_code)
    if base.tokenizer is None:
        raise BadSpec(f"{spec.base} is random and has no tokenizer: it can be inspected, not run. Use base: nano.")
    resumes = not fresh and record.is_trained(spec)
    record.mend() if resumes else record.clear()
    record.write("spec.json", spec.model_dump(mode="json"))
    stage = "loading"

    def tell(event: Event) -> None:
        record.append(event)
        if on_event:
            on_event(event)
        if stop is not None and stop.is_set():
            raise _Stop

    try:
        torch.manual_seed(spec.seed)
        injection = inject(base.model, spec.adapter, tokenizer=base.tokenizer) if spec.adapter else None
        stage = "training"
        trained = _adapt(spec, base, injection, rows, record, tell, resumes)
        stage = "scoring"
        with written(injection):
            scores = {name: _score(spec, base, name, rows, record, tell) for name in spec.eval.tasks}
        record.mend()
        record.write("summary.json", _summary(spec, base, injection, scores, trained) | {"leaks": leaks})
        record.append(finished := Finished(spec.id, time.perf_counter() - began))
    except _Stop:
        record.append(Stopped(spec.id, stage))
        if on_event:
            on_event(Stopped(spec.id, stage))
    except (Exception, KeyboardInterrupt) as error:
        record.append(Failed(spec.id, stage, f"{type(error).__name__}: {error}"))
        raise
    else:
        if on_event:  # outside: what a listener does wrong now does not undo the run
            on_event(finished)
    return record


def restore(record: Run) -> tuple[models.Base, Injection | None]:
    """Load the base of a run with its trained adapter.

    Raises:
        BadSpec: the run has an adapter that was not trained to the end.
        WrongBase: the base is no longer the one it was trained on.
    """
    spec = record.spec
    base = models.load(spec.base, spec.dtype, trust_remote_code=spec.trust_remote_code)
    if spec.adapter is None:
        return base, None
    if not (record.folder / "adapter" / "adapter.json").is_file():
        raise BadSpec(f"The run {record.id} has no trained adapter ({record.summary['status']}). Run its spec again.")
    return base, load_adapter(base.model, record.folder / "adapter", tokenizer=base.tokenizer)


def _started(spec: RunSpec, base: models.Base, injection: Injection | None, steps: int) -> Started:
    trainable = injection.count() if injection else 0
    total = sum(p.numel() for p in base.model.parameters())
    return Started(spec.id, steps, trainable, total - trainable, str(base.model.device))


def _adapt(
    spec: RunSpec,
    base: models.Base,
    injection: Injection | None,
    rows: Rows,
    record: Run,
    tell: Listener,
    resumes: bool,
) -> dict[str, Any] | None:
    """Train the adapter, or load what an interrupted run has trained; return how training went."""
    if injection is not None and not resumes:
        trained = _train(spec, base, injection, rows.train, tell)
        save_adapter(injection, record.folder / "adapter", spec.base)
        record.write("train.json", trained)
        return trained
    base.model.to(make_accelerator(spec.train.precision).device)
    if injection is None:
        tell(_started(spec, base, None, 0))
        return None
    load(injection, read_tensors(record.folder / "adapter" / "adapter.safetensors"))
    tell(_started(spec, base, injection, 0))
    earlier: dict[str, Any] = json.loads((record.folder / "train.json").read_text(encoding="utf-8"))
    return earlier


def _train(
    spec: RunSpec, base: models.Base, injection: Injection, rows: list[Example], tell: Listener
) -> dict[str, Any]:
    template = spec.data.template or get_task(spec.data.task).template
    samples, too_long = encode(base.tokenizer, rows, template, spec.data.max_tokens, spec.data.loss_on)
    held_out, learnt = samples[: spec.data.validation], samples[spec.data.validation :]
    if not learnt:
        raise BadSpec(f"After {too_long} rows too long for data.max_tokens, validation leaves none to train on.")
    accelerator = make_accelerator(spec.train.precision)
    base.model.to(accelerator.device)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    tell(_started(spec, base, injection, step_count(spec.train, len(learnt))))
    steps: list[Step] = []
    pad_id = base.tokenizer.pad_token_id
    for event in train(
        base.model, injection, learnt, spec.train, accelerator, validation=held_out, seed=spec.seed, pad_id=pad_id
    ):
        steps += [event] if isinstance(event, Step) else []
        tell(event)
    last = steps[-1]
    return {
        "steps": last.step,
        "tokens": last.tokens,
        "seconds": last.seconds,
        "tokens_per_second": last.tokens_per_second,
        "loss_first": steps[0].loss,
        "loss_last": last.loss,
        "peak_memory_bytes": peak_memory(),
        "rows": len(learnt),
        "rows_too_long": too_long,
    }


def _score(spec: RunSpec, base: models.Base, name: str, rows: Rows, record: Run, tell: Listener) -> dict[str, Any]:
    task, plan, test = get_task(name), spec.eval, rows.test[name]
    done = {p["id"]: p for p in record.predictions() if p["task"] == name}
    predictions: list[dict[str, Any]] = []
    for prediction in evaluate(
        base.model,
        base.tokenizer,
        task,
        test,
        protocol=plan.protocol,
        template=spec.data.template,
        batch=plan.batch,
        max_new_tokens=plan.max_new_tokens,
        rule=plan.extraction,
        likelihood=plan.likelihood,
        exemplars=rows.shots.get(name, ()),
        done=done,
    ):
        predictions.append(prediction)
        if prediction is not done.get(prediction["id"]):
            append_line(record.folder / "predictions.jsonl", prediction)
        if len(predictions) % plan.batch == 0 or len(predictions) == len(test):
            tell(Scoring(name, len(predictions), len(test)))
    result = score(task, predictions, test, protocol=plan.protocol, rule=plan.extraction, shots=plan.shots)
    result["decoding"] = decoder(base.model, plan.protocol)
    tell(Scored(name, result))
    return result


def _summary(
    spec: RunSpec,
    base: models.Base,
    injection: Injection | None,
    scores: dict[str, Any],
    trained: dict[str, Any] | None,
) -> dict[str, Any]:
    started = _started(spec, base, injection, 0)
    return {
        "id": spec.id,
        "status": "finished",
        "adapter": spec.adapter.model_dump(mode="json") if spec.adapter else None,
        "base": spec.base,
        "trainable_parameters": started.trainable_parameters,
        "base_parameters": started.base_parameters,
        "scores": scores,
        "train": trained,
        "environment": environment(started.device),
    }
