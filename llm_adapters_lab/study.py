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

from llm_adapters_lab.checkpoint import random_states, set_random_states
from llm_adapters_lab.environment import base_hash
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import Event, Noticed
from llm_adapters_lab.inject import Injection, injections
from llm_adapters_lab.keeper import Keeper, Stopping, alone, refuse_changes
from llm_adapters_lab.prepare import Rows, load_base, preflight, read_rows
from llm_adapters_lab.ranks import Ranks
from llm_adapters_lab.record import Run, check_writable
from llm_adapters_lab.room import require_room
from llm_adapters_lab.run import run, stages
from llm_adapters_lab.saving import fingerprint
from llm_adapters_lab.spec import RunSpec
from llm_adapters_lab.together import Member, Together
from llm_adapters_lab.work import Stand, Work

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
        with Ranks() as ranks, suppress(Stopping):  # while another process worked on one of them
            if ranks.count > 1:
                raise BadSpec(f"A study is the work of one process, not of {ranks.count}. Run its specs one by one.")
            pairs = [(spec, records[spec.id]) for spec in todo]
            _study(pairs, stop or threading.Event(), on_event, tokens, ranks)
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


class _Runner:
    """One run of a study.

    Attributes:
        stand: where it stands; None when it is over.
    """

    def __init__(self, work: Work, together: Together) -> None:
        self.work, self.together = work, together
        self.stand: int | None = Stand.INJECTED - 1
        self.injection: Injection | None = None
        self._stages, self._random = stages(work), random_states()

    def advance(self) -> None:
        """Let it go on to where it stands next, with chance as it was when it stood here."""
        if self.stand is None or not 0 <= self.stand < Stand.TRAINED:  # between steps, those that share a pass stay in
            self.together.only(*([self.injection] if self.injection else []))
        before = random_states()
        set_random_states(self._random)
        try:
            self.stand = next(self._stages, None)
            self.injection = injections(self.work.base.model).get(self.work.name, self.injection)
        except Exception as error:
            self.stand = None
            if self.work.record.done:  # then it is a listener that is at fault
                raise
            _say(self.work, f"{self.work.record.id} has failed, and the others go on. {type(error).__name__}: {error}")
        finally:
            self._random = random_states()
            set_random_states(before)


def _study(
    todo: Sequence[tuple[RunSpec, Run]],
    stop: threading.Event,
    on_event: Listener | None,
    tokens: int | None,
    ranks: Ranks,
) -> None:
    rows: dict[str, Rows] = {}
    for spec, record in todo:
        check_writable(record.folder)
        if (scored := spec.eval.model_dump_json()) not in rows:
            rows[scored] = read_rows(spec)
        preflight(spec)
        require_room(spec, rows[scored])
    base, first = load_base(todo[0][0]), todo[0][0].train
    together, base_print = Together(base.model, tokens or first.micro_tokens), fingerprint(base.model)
    runners = []
    for number, (spec, record) in enumerate(todo):
        mine = rows[spec.eval.model_dump_json()]
        keeper = Keeper(record, spec, {"base": base_hash(base_print), "data": mine.digests()}, stop, ranks)
        listen, name = on_event and partial(on_event, record), f"study{number}"
        work = Work(spec, base, base_print, mine, record, keeper, listen, name, partial(Member, together))
        runners.append(_Runner(work, together))
    with ExitStack() as held:
        for runner in sorted(runners, key=lambda runner: runner.work.record.id):  # all studies in one order
            held.enter_context(alone(runner.work.record, stop, partial(_say, runner.work), ranks))
        left = [runner for runner in runners if not runner.work.record.done]  # by whom was waited for
        for runner in left:
            refuse_changes(runner.work.record, runner.work.spec, runner.work.keeper.facts["hashes"])
        held.callback(together.end)
        try:
            _drive(left, together)
        except KeyboardInterrupt:  # the others are at the end of a step, and can be saved there
            stop.set()
            _drive(left, together)
            raise


def _drive(runners: Sequence[_Runner], together: Together) -> None:
    """Let the runs go on, those that are behind first, until all are over."""
    while stands := [runner.stand for runner in runners if runner.stand is not None]:
        stand = min(stands)
        group = [runner for runner in runners if runner.stand == stand]
        if stand == Stand.READY:
            together.begin()
        elif stand == Stand.TRAINED:
            together.end()
        together.round([runner.work.name for runner in group], stand)
        for runner in group:
            runner.advance()


def _say(work: Work, text: str) -> None:
    work.on_event(Noticed(text)) if work.on_event else warnings.warn(text, stacklevel=2)
