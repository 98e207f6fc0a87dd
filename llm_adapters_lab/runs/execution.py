"""run(spec): the one entry point. A click, a notebook, papermill and the command line all call it."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

from llm_adapters_lab.core.fingerprint import fingerprint
from llm_adapters_lab.core.saved_adapters import looking_in
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs import base_files, hashes
from llm_adapters_lab.runs.phases import run_phases
from llm_adapters_lab.runs.preflight import check_group, preflight
from llm_adapters_lab.runs.record import Run, check_writable
from llm_adapters_lab.runs.recovery.checkpointing import Checkpointer
from llm_adapters_lab.runs.recovery.lock import Stopping, exclusive, unlock
from llm_adapters_lab.runs.restoring import load_base
from llm_adapters_lab.runs.rows import Rows, outdated
from llm_adapters_lab.runs.session import Listener, RunSession, warn
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import note_stage
from llm_adapters_lab.training import deepspeed_zero
from llm_adapters_lab.training.distributed import ProcessGroup


def run(
    spec: RunSpec,
    *,
    root: str | Path = "runs",
    fresh: bool = False,
    stop: threading.Event | None = None,
    on_event: Listener | None = None,
) -> Run:
    """Execute a run, or return its record if it is finished.

    Everything that can be checked is checked before any weight is loaded and any folder created. An interrupted run is
    resumed: training after its last checkpoint, scoring at the next row; on a CPU, and on a GPU with
    `train.deterministic`, with the same result to the bit. One process at a time works on a run; others wait and
    return its result. Processes started together by a launcher share the work, see `training.distributed`.

    Args:
        spec: what to run.
        root: folder of all runs.
        fresh: start over even if there is a finished record.
        stop: set it from another thread to stop after the current step or batch of prompts; progress is saved.
        on_event: called with every event, in addition to the log.

    Returns:
        The record. After a stop it is unfinished; the same call resumes it.

    Raises:
        LabError: the spec, the model, the data, the training or the disk is at fault.
        BadSpec: the run was interrupted, and its rows or its base have changed since.
    """
    record = Run(Path(root) / spec.id)
    with ProcessGroup() as group:
        check_group(group, spec, fresh)
        warn(deepspeed_zero.ignored_settings() if group.is_main else "", on_event)
        if group.broadcast(record.done and not fresh):
            if group.is_main:
                unlock(record)
                warn(outdated(record), on_event)
                warn(hashes.outdated(record), on_event)
            return record
        with group.all_or_none():
            check_writable(record.folder)
            note_stage(record, "rows")
            plan = Blueprint(*spec.base_parts)
            with looking_in(root):
                rows = preflight(spec, plan)
        group.require_shared_folder(record.folder.parent)
        locked = partial(exclusive, record, stop, lambda text: warn(text, on_event), group)
        with suppress(Stopping):  # while waiting for another process
            if group.broadcast(record.lock.exists()):  # wait before loading a second copy of the model
                with locked():
                    pass
            if group.broadcast(fresh or not record.done):
                session = _session(spec, plan, rows, record, stop, group, on_event)
                with locked():
                    if group.broadcast(fresh or not record.done):
                        for _ in run_phases(session, fresh):
                            pass
    return record


def _session(
    spec: RunSpec,
    plan: Blueprint,
    rows: Rows,
    record: Run,
    stop: threading.Event | None,
    group: ProcessGroup,
    on_event: Listener | None,
) -> RunSession:
    with group.all_or_none():
        note_stage(record, "weights")
        base = load_base(spec, plan)
        base_print = fingerprint(base.model, base.tokenizer)
    found = hashes.all_hashes(plan, base_print, rows) | hashes.adapter_hashes(spec, record.folder.parent)
    group.require_equal({f"the hash of the base {spec.base}": found["base"], "the hashes of the rows": found["data"]})
    group.require_equal({f"the hash of {base_files.NAMES[key]}": found.get(key) for key in base_files.FILES})
    checkpointer = Checkpointer(record, spec, found, stop, group)
    return RunSession(spec, base, base_print, rows, record, checkpointer, on_event)
