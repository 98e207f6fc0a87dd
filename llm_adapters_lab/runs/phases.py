"""The phases of a run: inject, train, score, summarise."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import nullcontext, suppress

import torch

from llm_adapters_lab.core.blending import begin_from_saved
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.merging import temporarily_merged
from llm_adapters_lab.core.saved_adapters import looking_in
from llm_adapters_lab.events import Finished, Stopped
from llm_adapters_lab.runs.base_files import weight_hash
from llm_adapters_lab.runs.recovery.failures import explained, note_failure
from llm_adapters_lab.runs.recovery.lock import Stopping
from llm_adapters_lab.runs.recovery.resume import find_resume_point, refuse_changes
from llm_adapters_lab.runs.scoring_phase import measure_forgetting, score_task
from llm_adapters_lab.runs.session import Phase, Position, RunSession, warn
from llm_adapters_lab.runs.summary import summary
from llm_adapters_lab.runs.training_phase import train_or_load
from llm_adapters_lab.tasks.contamination import overlaps
from llm_adapters_lab.training.distributed import sharded


def run_phases(session: RunSession, fresh: bool = False) -> Generator[Position]:
    """Execute a run, and yield its position between phases and between training steps.

    Args:
        session: of the run; the caller holds its lock.
        fresh: start over.
    """
    spec, base, rows, record, group = session.spec, session.base, session.rows, session.record, session.group
    began, stage, hashes = time.perf_counter(), "loading", session.checkpointer.facts["hashes"]
    with group.all_or_none():
        if not fresh:
            refuse_changes(record, spec, hashes)
    group.on_lost(lambda error: note_failure(spec, record, stage, error, group))
    try:
        resumed = find_resume_point(record, spec, hashes, fresh, group)
        torch.manual_seed(spec.seed)
        injection = None
        if spec.injected:
            config = spec.injected.with_groups(rows.groups.names)
            with looking_in(record.folder.parent):
                injection = inject(base.model, config, tokenizer=base.tokenizer, name=session.name)
                if not resumed.trained and resumed.checkpoint is None:
                    begin_from_saved(injection, base.tokenizer)
        yield Position(Phase.INJECTED)
        stage = "training"
        trained = yield from train_or_load(session, injection, resumed)
        stage = "scoring"
        with nullcontext() if sharded() else temporarily_merged(injection):
            scores = {name: score_task(session, name) for name in spec.eval.tasks}
        forgotten = measure_forgetting(session, injection)
        finished = Finished(spec.id, time.perf_counter() - began)
        session.end_trackers()
        if group.is_main:
            record.keep_last_answers()
            hashes = hashes | weight_hash(base.blueprint)
            leaks = overlaps(rows.train, rows.test) if spec.learns else {}
            told = forgotten | {"leaks": leaks, "rows": rows.told()}
            record.write("summary.json", summary(spec, base, injection, scores, trained, hashes) | told)
            record.append(finished)
    except Stopping:
        session.end_trackers()
        session.emit(Stopped(spec.id, stage))
    except (Exception, KeyboardInterrupt) as error:
        with suppress(Exception):  # the disk may be at fault
            session.checkpointer.save()
        cause = explained(group.explain(error), record)
        note_failure(spec, record, stage, cause, group)
        if cause is error:
            raise
        raise cause from error
    else:
        if session.on_event and group.is_main:  # outside: a failing listener does not undo the run
            session.on_event(finished)
    finally:
        # After a failure the log is closed, so these messages are not logged.
        for text in session.trackers.end() if session.trackers else ():
            warn(text, session.on_event)
