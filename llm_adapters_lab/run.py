"""run(spec): the one entry point. A click, a notebook, papermill and the command line all call it."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Generator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm_adapters_lab import models
from llm_adapters_lab.batches import step_count
from llm_adapters_lab.checkpoint import Checkpoint
from llm_adapters_lab.environment import base_hash
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluate import decoder, evaluate
from llm_adapters_lab.events import Finished, Noticed, Resumed, Scored, Scoring, Step, Stopped
from llm_adapters_lab.inject import Injection, inject
from llm_adapters_lab.keeper import Keeper, Stopping, Taken, alone, refuse_changes, take_up, unlock
from llm_adapters_lab.leaks import overlap
from llm_adapters_lab.memory import WORTH_IT, estimate, estimated
from llm_adapters_lab.merge import written
from llm_adapters_lab.outcome import explained, failed, started, summary, training
from llm_adapters_lab.prepare import changed_files
from llm_adapters_lab.record import Run, append_line, check_writable
from llm_adapters_lab.room import ready
from llm_adapters_lab.saving import load_adapter, read_json, read_tensors, save_adapter
from llm_adapters_lab.scores import score
from llm_adapters_lab.spec import RunSpec
from llm_adapters_lab.tasks import get_task
from llm_adapters_lab.train import make_accelerator, train
from llm_adapters_lab.work import Listener, Stand, Work, load_base
from llm_adapters_lab.wrappers.quantize import load


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
    was interrupted goes on: in training after its last checkpoint, in scoring at the next row, and on the CPU to the
    same result, bit for bit. One process works on a run; another waits for it, and then has its result.

    Args:
        spec: what to do.
        root: folder of all runs.
        fresh: do it again even if there is a finished record.
        stop: set it from another thread to stop after the current step or batch of prompts; the training is saved.
        on_event: called with every event, in addition to the log.

    Returns:
        The record. After a stop it is unfinished, and the same call takes it up again.

    Raises:
        LabError: the spec, the model, the data, the training or the disk is at fault.
        BadSpec: the run was interrupted, and its rows or its base are no longer those it began with.
    """
    record = Run(Path(root) / spec.id)
    if record.done and not fresh:
        unlock(record)
        _check_files(spec, record, on_event)
        return record
    check_writable(record.folder)
    rows = ready(spec)
    mine = partial(alone, record, stop, lambda text: _notice(text, on_event))
    try:
        if record.lock.exists():  # two models of one run would be one too many
            with mine():
                pass
        if fresh or not record.done:
            base = load_base(spec)
            keeper = Keeper(record, spec, {"base": base_hash(base.model), "data": rows.digests()}, stop)
            record.folder.mkdir(parents=True, exist_ok=True)
            with mine():
                if fresh or not record.done:
                    for _ in stages(Work(spec, base, rows, record, keeper, on_event), fresh):
                        pass
    except Stopping:  # while another process worked on it
        pass
    return record


def stages(work: Work, fresh: bool = False) -> Generator[int]:
    """Do a run that no other process works on, and yield where it stands between its stages and steps."""
    spec, base, rows, record = work.spec, work.base, work.rows, work.record
    began, stage, hashes = time.perf_counter(), "loading", work.keeper.facts["hashes"]
    if not fresh:
        refuse_changes(record, spec, hashes)
    try:
        taken = take_up(record, spec, hashes, fresh)
        leaks = {name: overlap(rows.train, test) for name, test in rows.test.items()} if spec.adapter else {}
        torch.manual_seed(spec.seed)
        kind: dict[str, Any] = {"tokenizer": base.tokenizer, "name": work.name}
        injection = inject(base.model, spec.adapter, **kind) if spec.adapter else None
        yield Stand.INJECTED
        stage = "training"
        trained = yield from _adapt(work, injection, taken)
        stage = "scoring"
        with written(injection):
            scores = {name: _score(work, name) for name in spec.eval.tasks}
        record.keep_last_answers()
        record.write("summary.json", summary(spec, base, injection, scores, trained, hashes) | {"leaks": leaks})
        record.append(finished := Finished(spec.id, time.perf_counter() - began))
    except Stopping:
        work.tell(Stopped(spec.id, stage))
    except (Exception, KeyboardInterrupt) as error:
        with suppress(Exception):  # the disk may be what has failed
            work.keeper.save()
        told = explained(error, record)
        with suppress(OSError):
            record.append(failed(spec, record, stage, told))
        if told is error:
            raise
        raise told from error
    else:
        if work.on_event:  # outside: what a listener does wrong now does not undo the run
            work.on_event(finished)


def _notice(text: str, on_event: Listener | None) -> None:
    on_event(Noticed(text)) if on_event else warnings.warn(text, stacklevel=4)


def restore(record: Run) -> tuple[models.Base, Injection | None]:
    """Load the base of a run with its trained adapter.

    Raises:
        BadSpec: the run has an adapter that was not trained to the end.
        WrongBase: the base is no longer the one it was trained on.
    """
    spec = record.spec
    base = load_base(spec)
    if spec.adapter is None:
        return base, None
    if not (record.folder / "adapter" / "adapter.json").is_file():
        raise BadSpec(f"The run {record.id} has no trained adapter ({record.summary['status']}). Run its spec again.")
    return base, load_adapter(base.model, record.folder / "adapter", tokenizer=base.tokenizer)


def _check_files(spec: RunSpec, record: Run, on_event: Listener | None) -> None:
    """Say so, if own files, which a spec knows by name alone, have changed since a run was done."""
    if changed := changed_files(spec, record.summary.get("hashes", {}).get("data", {})):
        said = f"Since the run {spec.id} was done, {changed} has changed. Its result is that of the earlier rows: "
        said += "do it again with fresh (--fresh), or save the new rows under a new name."
        _notice(said, on_event)


def _adapt(work: Work, injection: Injection | None, taken: Taken) -> Generator[int, None, dict[str, Any] | None]:
    """Train the adapter, or load what an interrupted run has trained; return how training went."""
    spec, base, record = work.spec, work.base, work.record
    if taken.faults:
        work.tell(Noticed(" ".join(taken.faults)))
    if injection is not None and not taken.trained:
        trained = yield from _train(work, injection, taken.saved)
        yield Stand.TRAINED
        save_adapter(injection, record.folder / "adapter", spec.base)
        record.write("train.json", trained)
        work.keeper.close()
        yield Stand.SAVED
        return trained
    models.to_device(base.model, make_accelerator(spec.train.precision).device)
    work.tell(Resumed(spec.id, "scoring", 0) if taken.trained else started(spec, base, injection, 0))
    work.keeper.check()
    if injection is None:
        return None
    load(injection, read_tensors(record.folder / "adapter" / "adapter.safetensors"))
    yield Stand.SAVED
    return read_json(record.folder / "train.json")


def _train(work: Work, injection: Injection, saved: Checkpoint | None) -> Generator[int, None, dict[str, Any]]:
    spec, base = work.spec, work.base
    samples, too_long = work.rows.samples(base.tokenizer, spec.data)
    held_out, learnt = samples[: spec.data.validation], samples[spec.data.validation :]
    if not learnt:
        raise BadSpec(f"After {too_long} rows too long for data.max_tokens, validation leaves none to train on.")
    accelerator = make_accelerator(spec.train.precision)
    models.to_device(base.model, accelerator.device)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begun = started(spec, base, injection, step_count(spec.train, len(learnt)))
    work.tell(Resumed(spec.id, "training", saved.facts["step"]) if saved else begun)
    large = base.model.get_memory_footprint() >= WORTH_IT
    if large and not saved and (memory := estimate(spec, learnt, base.tokenizer)):
        work.tell(estimated(memory))
    pad_id = base.tokenizer.pad_token_id
    gradients = work.gradients(base.model, injection, learnt, spec.train, pad_id)
    yield Stand.READY
    yield saved.facts["step"] if saved else 0
    work.keeper.check()
    options: dict[str, Any] = {"validation": held_out, "seed": spec.seed, "pad_id": pad_id, "gradients": gradients}
    options |= {"saved": saved, "after_step": work.keeper}
    for event in train(base.model, injection, learnt, spec.train, accelerator, **options):
        work.tell(event)
        if isinstance(event, Step):
            yield event.step
    return training(work.record) | {"rows": len(learnt), "rows_too_long": too_long}


def _score(work: Work, name: str) -> dict[str, Any]:
    spec, base, record = work.spec, work.base, work.record
    task, plan, test = get_task(name), spec.eval, work.rows.test[name]
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
        exemplars=work.rows.shots.get(name, ()),
        done=done,
    ):
        predictions.append(prediction)
        if prediction is not done.get(prediction["id"]):
            append_line(record.folder / "predictions.jsonl", prediction)
        if len(predictions) % plan.batch == 0 or len(predictions) == len(test):
            work.tell(Scoring(name, len(predictions), len(test)))
            work.keeper.check()
    result = score(task, predictions, test, protocol=plan.protocol, rule=plan.extraction, shots=plan.shots)
    result["decoding"] = decoder(base.model, plan.protocol)
    work.tell(Scored(name, result))
    work.keeper.check()
    return result
