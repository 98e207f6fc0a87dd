"""run(spec): the one entry point. A click, a notebook, papermill and the command line all call it."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Generator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from llm_adapters_lab import zero
from llm_adapters_lab.batches import step_count
from llm_adapters_lab.busy import crowded
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
from llm_adapters_lab.outcome import explained, note_failure, started, summary, training
from llm_adapters_lab.prepare import Rows, load_base, outdated
from llm_adapters_lab.ranks import Ranks, sharded
from llm_adapters_lab.record import Run, append_line, check_writable
from llm_adapters_lab.room import ready
from llm_adapters_lab.saving import fingerprint, read_json, read_tensors, restore, save_adapter
from llm_adapters_lab.scores import score
from llm_adapters_lab.spec import RunSpec
from llm_adapters_lab.tasks import get_task
from llm_adapters_lab.trackers import Trackers
from llm_adapters_lab.train import make_accelerator, place, train
from llm_adapters_lab.work import Listener, Stand, Work
from llm_adapters_lab.wrappers.quantize import load

__all__ = ["Listener", "restore", "run"]


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
    same result, bit for bit. One process works on a run; another waits for it, and then has its result. Processes that
    a launcher has started together share the work, see `ranks`.

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
    with Ranks() as ranks:
        ranks.begin(spec, fresh)
        _notice(zero.news() if ranks.leads else "", on_event)
        if ranks.first(record.done and not fresh):
            if ranks.leads:
                unlock(record)
                _notice(outdated(record), on_event)
            return record
        with ranks.together():
            check_writable(record.folder)
            rows = ready(spec)
        ranks.agree_on_place(record.folder.parent)
        mine = partial(alone, record, stop, lambda text: _notice(text, on_event), ranks)
        with suppress(Stopping):  # while another process worked on it
            if ranks.first(record.lock.exists()):  # two models of one run would be one too many
                with mine():
                    pass
            if ranks.first(fresh or not record.done):
                work = _load(spec, rows, record, stop, ranks, on_event)
                with mine():
                    if ranks.first(fresh or not record.done):
                        for _ in stages(work, fresh):
                            pass
    return record


def _load(
    spec: RunSpec, rows: Rows, record: Run, stop: threading.Event | None, ranks: Ranks, on_event: Listener | None
) -> Work:
    with ranks.together():
        base = load_base(spec)
        base_print = fingerprint(base.model)
    hashes = {"base": base_hash(base_print), "data": rows.digests()}
    ranks.agree({f"the hash of the base {spec.base}": hashes["base"], "the hashes of the rows": hashes["data"]})
    return Work(spec, base, base_print, rows, record, Keeper(record, spec, hashes, stop, ranks), on_event)


def stages(work: Work, fresh: bool = False) -> Generator[int]:
    """Do a run that no other process works on, and yield where it stands between its stages and steps."""
    spec, base, rows, record, ranks = work.spec, work.base, work.rows, work.record, work.ranks
    began, stage, hashes = time.perf_counter(), "loading", work.keeper.facts["hashes"]
    with ranks.together():
        if not fresh:
            refuse_changes(record, spec, hashes)
    ranks.on_lost(lambda error: note_failure(spec, record, stage, error, ranks))
    try:
        taken = take_up(record, spec, hashes, fresh, ranks)
        leaks = {name: overlap(rows.train, test) for name, test in rows.test.items()} if spec.adapter else {}
        torch.manual_seed(spec.seed)
        injection = inject(base.model, spec.adapter, tokenizer=base.tokenizer, name=work.name) if spec.adapter else None
        yield Stand.INJECTED
        stage = "training"
        trained = yield from _adapt(work, injection, taken)
        stage = "scoring"
        with nullcontext() if sharded() else written(injection):
            scores = {name: _score(work, name) for name in spec.eval.tasks}
        finished = Finished(spec.id, time.perf_counter() - began)
        work.end_trackers()
        if ranks.leads:
            record.keep_last_answers()
            record.write("summary.json", summary(spec, base, injection, scores, trained, hashes) | {"leaks": leaks})
            record.append(finished)
    except Stopping:
        work.end_trackers()
        work.tell(Stopped(spec.id, stage))
    except (Exception, KeyboardInterrupt) as error:
        with suppress(Exception):  # the disk may be what has failed
            work.keeper.save()
        told = explained(ranks.lost(error), record)
        note_failure(spec, record, stage, told, ranks)
        if told is error:
            raise
        raise told from error
    else:
        if work.on_event and ranks.leads:  # outside: what a listener does wrong now does not undo the run
            work.on_event(finished)
    finally:
        _end_trackers(work)


def _end_trackers(work: Work) -> None:
    """End the trackers of a run that has failed; its log is complete, so what they say is not in it."""
    for text in work.trackers.end() if work.trackers else ():
        _notice(text, work.on_event)


def _notice(text: str, on_event: Listener | None) -> None:
    if text:
        on_event(Noticed(text)) if on_event else warnings.warn(text, stacklevel=4)


def _adapt(work: Work, injection: Injection | None, taken: Taken) -> Generator[int, None, dict[str, Any] | None]:
    """Train the adapter, or load what an interrupted run has trained; return how training went."""
    spec, base, record = work.spec, work.base, work.record
    if taken.faults:
        work.tell(Noticed(" ".join(taken.faults)))
    accelerator = make_accelerator(spec.train.precision)
    place(base.model, injection, accelerator)
    if spec.train.trackers and work.ranks.leads:
        work.trackers = Trackers(spec.train.trackers, record)
    if injection is not None and not taken.trained:
        counts = yield from _train(work, injection, taken.saved, accelerator)
        yield Stand.TRAINED
        if not work.ranks.leads:
            return None
        save_adapter(injection, record.folder / "adapter", spec.base, work.base_print)
        record.write("train.json", trained := training(record) | counts)
        work.keeper.close()
        yield Stand.SAVED
        return trained
    work.tell(Resumed(spec.id, "scoring", 0) if taken.trained else started(spec, base, injection, 0))
    work.keeper.check()
    if injection is None:
        return None
    load(injection, read_tensors(record.folder / "adapter" / "adapter.safetensors"))
    yield Stand.SAVED
    return read_json(record.folder / "train.json")


def _train(
    work: Work, injection: Injection, saved: Checkpoint | None, accelerator: Accelerator
) -> Generator[int, None, dict[str, Any]]:
    spec, base = work.spec, work.base
    samples, too_long = work.rows.samples(base.tokenizer, spec.data)
    held_out, learnt = samples[: spec.data.validation], samples[spec.data.validation :]
    if not learnt:
        raise BadSpec(f"After {too_long} rows too long for data.max_tokens, validation leaves none to train on.")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begun = started(spec, base, injection, step_count(spec.train, len(learnt)))
    work.tell(Resumed(spec.id, "training", saved.facts["step"]) if saved else begun)
    if text := crowded():
        work.tell(Noticed(text))
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
    return {"rows": len(learnt), "rows_too_long": too_long}


def _score(work: Work, name: str) -> dict[str, Any]:
    spec, base, record = work.spec, work.base, work.record
    task, plan, test = get_task(name), spec.eval, work.rows.test[name]
    done = work.ranks.first({p["id"]: p for p in record.predictions() if p["task"] == name})
    predictions: list[dict[str, Any]] = []
    options: dict[str, Any] = {"protocol": plan.protocol, "rule": plan.extraction, "likelihood": plan.likelihood}
    options |= {"template": spec.data.template, "batch": plan.batch, "max_new_tokens": plan.max_new_tokens}
    options |= {"exemplars": work.rows.shots.get(name, ()), "done": done, "ranks": work.ranks}
    for prediction in evaluate(base.model, base.tokenizer, task, test, **options):
        predictions.append(prediction)
        if work.ranks.leads and prediction != done.get(prediction["id"]):
            append_line(record.folder / "predictions.jsonl", prediction)
        if len(predictions) % plan.batch == 0 or len(predictions) == len(test):
            work.tell(Scoring(name, len(predictions), len(test)))
            work.keeper.check()
    result = score(task, predictions, test, protocol=plan.protocol, rule=plan.extraction, shots=plan.shots)
    result["decoding"] = decoder(base.model, plan.protocol)
    work.tell(Scored(name, result))
    work.keeper.check()
    return result
