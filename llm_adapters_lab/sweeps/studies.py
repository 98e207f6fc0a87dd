"""study(specs): train many adapters at once over one base, each with the record that `run(spec)` would leave.

The runs advance side by side, one step of each after the other; adapters that can share a pass over the base have their
gradients computed together, see `training.joint`. Everything else, from random numbers to the lock of the record,
belongs to each run alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from llm_adapters_lab.config import flat
from llm_adapters_lab.core.fingerprint import fingerprint
from llm_adapters_lab.core.injection import Injection, injections
from llm_adapters_lab.core.saved_adapters import looking_in
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import Event
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.forecast.fits import require_memory
from llm_adapters_lab.runs.hashes import adapter_hashes, all_hashes
from llm_adapters_lab.runs.phases import run_phases
from llm_adapters_lab.runs.preflight import check_rows, check_spec
from llm_adapters_lab.runs.record import Run, check_writable
from llm_adapters_lab.runs.recovery.checkpointing import Checkpointer
from llm_adapters_lab.runs.recovery.lock import Stopping, exclusive
from llm_adapters_lab.runs.recovery.resume import refuse_changes
from llm_adapters_lab.runs.restoring import load_base
from llm_adapters_lab.runs.rows import Rows, read_rows
from llm_adapters_lab.runs.session import Phase, Position, RunSession, warn
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.signatures import checked
from llm_adapters_lab.training.checkpoints import random_states, set_random_states
from llm_adapters_lab.training.distributed import ProcessGroup
from llm_adapters_lab.training.joint import JointTrainer, Member
from llm_adapters_lab.training.spec import NOT_IN_ID

MAY_DIFFER = {"learning_rate", "warmup", "schedule", "weight_decay", "clip", "evaluate_every", "probe_every"}
"""Fields of `train` in which the runs of a study may differ, besides adapter and scoring."""
Listener = Callable[[Run, Event], None]


@checked
def study(
    specs: Sequence[RunSpec],
    *,
    root: str | Path = "runs",
    stop: threading.Event | None = None,
    on_event: Listener | None = None,
    tokens: int | None = None,
) -> list[Run]:
    """Do several runs that share base, data and batches, training their adapters at once over one frozen base.

    Each record is as if its spec had been run alone: finished runs are read, interrupted ones resumed, and losses equal
    those of `run` up to rounding; only the times are those of the study. A failing run is recorded as failed, and the
    others continue.

    Args:
        specs: of the runs. They may differ in adapter, scoring, learning rate and the other fields in `MAY_DIFFER`.
        root: folder of all runs.
        stop: set it from another thread to stop all runs after the current step; they can be resumed.
        on_event: called with the record and every event of every run, in addition to the logs.
        tokens: maximum number of tokens in a shared pass, which needs the memory of one run with as many tokens per
            pass, plus the adapters and their optimisers. Default: `train.micro_tokens`, else `training.joint.TOKENS`.

    Returns:
        The records, in the order of the specs.

    Raises:
        BadSpec: the specs differ in a field they must share; the message names it, and nothing was started.
        LabError: the model or the data is at fault.
    """
    unique = {spec.id: spec for spec in specs}
    check_compatible(list(unique.values()))
    records = {name: Run(Path(root) / name) for name in unique}
    todo = [spec for spec in unique.values() if not records[spec.id].done]
    for spec in unique.values():
        if spec not in todo or len(todo) == 1:
            run(spec, root=root, stop=stop, on_event=on_event and partial(on_event, records[spec.id]))
    if len(todo) > 1:
        with ProcessGroup() as group, suppress(Stopping):  # while another process works on one of them
            pairs = [(spec, records[spec.id]) for spec in todo]
            _study(pairs, stop or threading.Event(), on_event, tokens, group)
    return [records[spec.id] for spec in specs]


def shared_fields(spec: RunSpec) -> dict[str, Any]:
    """Return the fields that must be equal in the specs of a study, by dotted name."""
    return flat(spec.model_dump(exclude={"adapter": True, "eval": True, "train": MAY_DIFFER | NOT_IN_ID}))


def compatible(one: RunSpec, other: RunSpec) -> bool:
    """Return whether two specs can be done in one study."""
    return _trains(one) and _trains(other) and shared_fields(one) == shared_fields(other)


def _trains(spec: RunSpec) -> bool:
    plain = spec.train.objective == "likelihood" and not spec.train.compile and spec.train.regime is None
    return spec.adapter is not None and plain


def check_compatible(specs: Sequence[RunSpec]) -> None:
    """Check that specs can be done in one study.

    Raises:
        BadSpec: a spec has no adapter, another objective than likelihood, a regime, asks for compilation, or differs
            from the first in a field they must share; or this is one of several processes.
    """
    if len(specs) < 2:
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BadSpec("A study is one process. Start it without a launcher, or run its specs one by one.")
    if not all(map(_trains, specs)):
        raise BadSpec(
            "A study trains adapters by likelihood, uncompiled. Use `run` for a spec with adapter: null, another "
            "train.objective, train.regime, or train.compile."
        )
    first = shared_fields(specs[0])
    faults = {
        f"{name} = {value!r:.60} here and {other[name]!r:.60} in {spec.id}": None
        for spec in specs[1:]
        for name, value in first.items()
        if (other := shared_fields(spec))[name] != value
    }
    if faults:
        raise BadSpec(
            f"The runs of a study share base, data, seed and batches, but {specs[0].id} has "
            f"{'; '.join([*faults][:8])}. Make them equal, or use `sweep`, which takes any mix."
        )


class _StudyRun:
    """One run of a study.

    Attributes:
        position: how far it has come; None when it is over.
    """

    def __init__(self, session: RunSession, trainer: JointTrainer) -> None:
        self.session, self.trainer = session, trainer
        self.position: Position | None = Position(Phase.LOADED)
        self.injection: Injection | None = None
        self._phases, self._random = run_phases(session), random_states()

    def advance(self) -> None:
        """Continue to the next position, with the random states that this run had at the last one."""
        if self.position is None or self.position.phase != Phase.TRAINING:  # between steps, sharers stay in the model
            self.trainer.activate(*([self.injection] if self.injection else []))
        before = random_states()
        set_random_states(self._random)
        try:
            self.position = next(self._phases, None)
            self.injection = injections(self.session.base.model).get(self.session.name, self.injection)
        except Exception as error:
            self.position = None
            if self.session.record.done:  # then the listener is at fault
                raise
            text = f"{self.session.record.id} has failed, and the others continue. {type(error).__name__}: {error}"
            warn(text, self.session.on_event)
        finally:
            self._random = random_states()
            set_random_states(before)


def _study(
    todo: Sequence[tuple[RunSpec, Run]],
    stop: threading.Event,
    on_event: Listener | None,
    tokens: int | None,
    group: ProcessGroup,
) -> None:
    first, rows = todo[0][0], dict[str, Rows]()
    plan = Blueprint(*first.base_parts)
    for spec, record in todo:
        check_writable(record.folder)
        if (scored := spec.eval.model_dump_json()) not in rows:
            rows[scored] = read_rows(spec)
        with looking_in(record.folder.parent):
            check_spec(spec, plan)
            require_memory(spec, rows[scored], plan)
        check_rows(spec, rows[scored], plan)
    base = load_base(first, plan)
    trainer, base_print, runs = (
        JointTrainer(base.model, tokens or first.train.micro_tokens),
        fingerprint(base.model, base.tokenizer),
        [],
    )
    for number, (spec, record) in enumerate(todo):
        own = rows[spec.eval.model_dump_json()]
        hashes = all_hashes(base.blueprint, base_print, own) | adapter_hashes(spec, record.folder.parent)
        checkpointer = Checkpointer(record, spec, hashes, stop, group)
        listener, name, gradients = on_event and partial(on_event, record), f"study{number}", partial(Member, trainer)
        session = RunSession(spec, base, base_print, own, record, checkpointer, listener, name, gradients)
        runs.append(_StudyRun(session, trainer))
    with ExitStack() as held:
        for each in sorted(runs, key=lambda each: each.session.record.id):  # in the same order in every study
            say = partial(warn, on_event=each.session.on_event)
            held.enter_context(exclusive(each.session.record, stop, say, group))
        left = [each for each in runs if not each.session.record.done]  # another process may have finished some
        for each in left:
            refuse_changes(each.session.record, each.session.spec, each.session.checkpointer.facts["hashes"])
        held.callback(trainer.finish)
        try:
            _drive(left, trainer)
        except KeyboardInterrupt:  # the other runs are at the end of a step, and can be saved there
            stop.set()
            _drive(left, trainer)
            raise


def _drive(runs: Sequence[_StudyRun], trainer: JointTrainer) -> None:
    """Advance the runs, those that are behind first, until all are over."""
    while positions := [each.position for each in runs if each.position is not None]:
        position = min(positions)
        behind = [each for each in runs if each.position == position]
        if position.phase == Phase.READY:
            trainer.start()
        elif position.phase == Phase.TRAINED:
            trainer.finish()
        trainer.begin_step([each.session.name for each in behind], position.step)
        for each in behind:
            each.advance()
