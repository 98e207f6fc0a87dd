"""study(specs): many adapters trained at once over one base, each with the record that `run(spec)` would leave.

The runs go on side by side, one step of each after the other, and those whose adapters can share a pass over the base
have their gradients made together (`together` has the mechanism). Everything else, from the random numbers to the lock
of the record, each run has for itself.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from llm_adapters_lab.core.fingerprint import base_hash, fingerprint
from llm_adapters_lab.core.injection import Injection, injections
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import Event, Noticed
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.forecast.fits import require_memory
from llm_adapters_lab.runs.phases import run_phases
from llm_adapters_lab.runs.preflight import check_spec
from llm_adapters_lab.runs.record import Run, check_writable
from llm_adapters_lab.runs.recovery.checkpointing import Checkpointer
from llm_adapters_lab.runs.recovery.lock import Stopping, exclusive
from llm_adapters_lab.runs.recovery.resume import refuse_changes
from llm_adapters_lab.runs.restoring import load_base
from llm_adapters_lab.runs.rows import Rows, read_rows
from llm_adapters_lab.runs.session import Phase, Position, RunSession
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training.checkpoints import random_states, set_random_states
from llm_adapters_lab.training.distributed import ProcessGroup
from llm_adapters_lab.training.joint import JointTrainer, Member

OWN = ("learning_rate", "warmup", "schedule", "weight_decay", "clip", "evaluate_every", "probe_every")
"""Fields of `train` in which the runs of a study may differ, beside adapter and scoring."""
Listener = Callable[[Run, Event], None]


def study(
    specs: Sequence[RunSpec],
    *,
    root: str | Path = "runs",
    stop: threading.Event | None = None,
    on_event: Listener | None = None,
    tokens: int | None = None,
) -> list[Run]:
    """Do several runs that share base, data and schedule, training their adapters at once over one frozen base.

    Each record is as if its spec had been run alone: finished ones are read, interrupted ones go on, and the losses
    are those of `run` but for rounding. Only the times are those of the study. A run that fails is recorded as failed,
    and the others go on.

    Args:
        specs: what to do. They may differ in adapter, scoring, learning rate and the other fields of `OWN`.
        root: folder of all runs.
        stop: set it from another thread to stop all of them after the current step; the trainings are saved.
        on_event: called with the record and every event of every run, in addition to the logs.
        tokens: that a pass over the base has at most, over all adapters that share it; one micro-batch of one adapter
            is always allowed. Default: `train.micro_tokens`, else 2,048, on a GPU 8,192. The memory needed is that of
            one run with so many tokens at a time, and the adapters with their optimisers.

    Returns:
        The records, in the order of the specs.

    Raises:
        BadSpec: the specs differ in what has to be shared; the message names it, and nothing was started.
        LabError: the model or the data is at fault.
    """
    unique = {spec.id: spec for spec in specs}
    refuse(list(unique.values()))
    records = {name: Run(Path(root) / name) for name in unique}
    todo = [spec for spec in unique.values() if not records[spec.id].done]
    for spec in unique.values():
        if spec not in todo or len(todo) == 1:
            run(spec, root=root, stop=stop, on_event=on_event and partial(on_event, records[spec.id]))
    if len(todo) > 1:
        with ProcessGroup() as group, suppress(Stopping):  # while another process worked on one of them
            if group.count > 1:
                raise BadSpec(f"A study is the work of one process, not of {group.count}. Run its specs one by one.")
            pairs = [(spec, records[spec.id]) for spec in todo]
            _study(pairs, stop or threading.Event(), on_event, tokens, group)
    return [records[spec.id] for spec in specs]


def shared(spec: RunSpec) -> dict[str, Any]:
    """Return the fields that must be equal in the specs of a study, by dotted name."""
    plan = spec.train.model_dump(exclude={*OWN, "checkpoint_every", "trackers"})
    fields = {name: getattr(spec, name) for name in ("base", "dtype", "trust_remote_code", "seed")}
    fields |= {f"data.{name}": value for name, value in spec.data.model_dump().items()}
    return fields | {f"train.{name}": value for name, value in plan.items()}


def fits(one: RunSpec, other: RunSpec) -> bool:
    """Say whether two specs can be done in one study."""
    return _trains(one) and _trains(other) and shared(one) == shared(other)


def _trains(spec: RunSpec) -> bool:
    return spec.adapter is not None and not spec.train.compile


def refuse(specs: Sequence[RunSpec]) -> None:
    """Refuse specs that cannot be trained together.

    Raises:
        BadSpec: a spec has nothing to train, is to be compiled, or differs from the first in what has to be shared; or
            this is one of several processes.
    """
    if len(specs) < 2:
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BadSpec("A study is one process. Start it without a launcher of several, or run the specs one by one.")
    if not all(map(_trains, specs)):
        raise BadSpec("A study trains adapters, uncompiled: a spec with adapter: null or train.compile is to be run.")
    first = shared(specs[0])
    faults = {
        f"{name} = {value!r} here and {other[name]!r} in {spec.id}": None
        for spec in specs[1:]
        for name, value in first.items()
        if (other := shared(spec))[name] != value
    }
    if faults:
        raise BadSpec(
            f"The runs of a study share base, data, seed and schedule, but {specs[0].id} has "
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
            self.trainer.only(*([self.injection] if self.injection else []))
        before = random_states()
        set_random_states(self._random)
        try:
            self.position = next(self._phases, None)
            self.injection = injections(self.session.base.model).get(self.session.name, self.injection)
        except Exception as error:
            self.position = None
            if self.session.record.done:  # then the listener is at fault
                raise
            name = self.session.record.id
            _warn(self.session, f"{name} has failed, and the others continue. {type(error).__name__}: {error}")
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
    rows: dict[str, Rows] = {}
    for spec, record in todo:
        check_writable(record.folder)
        if (scored := spec.eval.model_dump_json()) not in rows:
            rows[scored] = read_rows(spec)
        check_spec(spec)
        require_memory(spec, rows[scored])
    base, first = load_base(todo[0][0]), todo[0][0].train
    trainer, base_print = JointTrainer(base.model, tokens or first.micro_tokens), fingerprint(base.model)
    runs = []
    for number, (spec, record) in enumerate(todo):
        own = rows[spec.eval.model_dump_json()]
        hashes = {"base": base_hash(base_print), "data": own.digests()}
        checkpointer = Checkpointer(record, spec, hashes, stop, group)
        listener, name = on_event and partial(on_event, record), f"study{number}"
        gradients = partial(Member, trainer)
        session = RunSession(spec, base, base_print, own, record, checkpointer, listener, name, gradients)
        runs.append(_StudyRun(session, trainer))
    with ExitStack() as held:
        for each in sorted(runs, key=lambda each: each.session.record.id):  # all studies in the same order
            held.enter_context(exclusive(each.session.record, stop, partial(_warn, each.session), group))
        left = [each for each in runs if not each.session.record.done]  # another process may have finished some
        for each in left:
            refuse_changes(each.session.record, each.session.spec, each.session.checkpointer.facts["hashes"])
        held.callback(trainer.end)
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
            trainer.begin()
        elif position.phase == Phase.TRAINED:
            trainer.end()
        trainer.round([each.session.name for each in behind], position.step)
        for each in behind:
            each.advance()


def _warn(session: RunSession, text: str) -> None:
    session.on_event(Noticed(text)) if session.on_event else warnings.warn(text, stacklevel=2)
