"""Keeper: when a run is saved, how it is stopped, and where an interrupted one is taken up again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

from llm_adapters_lab import checkpoint
from llm_adapters_lab.checkpoint import Checkpoint, State
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.processes import hold
from llm_adapters_lab.ranks import Ranks
from llm_adapters_lab.record import Run
from llm_adapters_lab.saving import read_json, read_tensors
from llm_adapters_lab.spec import RunSpec

SECONDS, SHARE = 30.0, 0.03
"""Without `train.checkpoint_every`: so many seconds apart, or more, so that saving takes this share of them at most."""

BUSY = 10.0
"""Seconds that several processes wait for another that works on their run."""


class Stopping(Exception):
    """The run was asked to stop."""


class Keeper:
    """Saves a training when it is time to, and ends it, saved, when it is asked to stop.

    It is called after every step.
    """

    def __init__(
        self, run: Run, spec: RunSpec, hashes: dict[str, Any], stop: threading.Event | None, ranks: Ranks
    ) -> None:
        """Keep the training of a run.

        Args:
            run: whose log belongs to what is saved.
            spec: of the run; its `train.checkpoint_every` says when to save.
            hashes: of base and rows.
            stop: set when the run is to end.
            ranks: the processes that do it; the first one saves, and one that is asked to stop stops all.
        """
        self.run, self.every, self.stop, self.ranks = run, spec.train.checkpoint_every, stop, ranks
        self.facts: dict[str, Any] = {"spec": spec.id, "hashes": hashes}
        self.saved = 0
        self._state: State | None = None
        self._wait, self._since = SECONDS, time.monotonic()

    def __call__(self, state: State) -> None:
        """Look after the training at the end of a step.

        Raises:
            Stopping: it was asked to stop, and is saved.
        """
        self._state = state
        due = state.step % self.every == 0 if self.every else time.monotonic() - self._since >= self._wait
        asked = self.asked
        if due or asked:
            self.save()
        if asked:
            raise Stopping

    def close(self) -> None:
        """The training is over and kept elsewhere."""
        self._state = None
        checkpoint.discard(self.run.folder)

    @property
    def asked(self) -> bool:
        """Whether the run was asked to stop, in whichever process; all of them ask at once."""
        return any(self.ranks.gather(self.stop is not None and self.stop.is_set()))

    def check(self) -> None:
        """End the run if it was asked to stop.

        Raises:
            Stopping: it was.
        """
        if self.asked:
            raise Stopping

    def save(self) -> None:
        """Save the last step that was done, unless a further one has begun to change it."""
        state = self._state
        if state is None or not state.whole or state.step == self.saved or not self.ranks.leads:
            return
        began = time.monotonic()
        taken, log = state.take(), (self.run.folder / "events.jsonl").stat().st_size
        checkpoint.write(self.run.folder, Checkpoint(taken.tensors, {**taken.facts, **self.facts, "log": log}))
        self.saved, self._since = state.step, time.monotonic()
        self._wait = max(SECONDS, (self._since - began) / SHARE)


@contextmanager
def alone(run: Run, stop: threading.Event | None, say: Callable[[str], None], ranks: Ranks) -> Iterator[None]:
    """Be the only process, or the only ones, that work on a run, waiting as long as another does.

    Args:
        run: its folder is made if need be.
        stop: set to wait no longer; then `Stopping` is raised.
        say: told once what is waited for.
        ranks: the processes that want to; the first one holds the lock, and not to let the others wait, gives up soon.
    """
    told: list[str] = []

    def waiting(holder: str) -> None:
        if stop is not None and stop.is_set():
            raise Stopping
        if holder and not told:
            told.append(holder)
            say(f"Another process works on {run.id}, and this one waits for its result: {holder}")

    with ExitStack() as lock:
        with ranks.together():
            if ranks.leads:
                run.folder.mkdir(parents=True, exist_ok=True)
                lock.enter_context(hold(run.lock, math.inf if ranks.count == 1 else BUSY, waiting))
        yield


def unlock(run: Run) -> None:
    """Take away the lock of a process that died after it had written the result, and nobody else's."""
    if run.lock.exists():
        with suppress(LabError, OSError), hold(run.lock, seconds=0):
            pass


class Taken(NamedTuple):
    """Where a run is taken up.

    Attributes:
        trained: nothing but the scoring is left.
        saved: where the training goes on; None for the beginning.
        faults: in words what could not be used.
    """

    trained: bool = False
    saved: Checkpoint | None = None
    faults: tuple[str, ...] = ()


def take_up(run: Run, spec: RunSpec, hashes: dict[str, Any], fresh: bool, ranks: Ranks) -> Taken:
    """Make a record fit to go on where an earlier attempt has ended, or to begin; the caller holds its lock.

    Args:
        run: the record.
        spec: what is to be done.
        hashes: of the base and the rows that are there now.
        fresh: begin.
        ranks: the processes that do it; the first one mends the record, the others read it then.
    """
    with ranks.together():
        taken = _mended(run, spec, hashes, fresh) if ranks.leads else Taken()
    trained, step = ranks.first((taken.trained, taken.saved.facts["step"] if taken.saved else 0))
    with ranks.together():
        if not ranks.leads:
            facts = {"spec": spec.id, "hashes": hashes}
            taken = Taken(trained, checkpoint.read(run, step, facts) if step else None)
    return taken


def _mended(run: Run, spec: RunSpec, hashes: dict[str, Any], fresh: bool) -> Taken:
    run.sweep()
    faults = _damage(run) if not fresh and run.is_trained(spec) else []
    if not fresh and run.is_trained(spec) and not faults:
        run.mend()
        checkpoint.discard(run.folder)
        return Taken(trained=True)
    if not fresh and run.is_of(spec):
        saved, others = checkpoint.newest(run, {"spec": spec.id, "hashes": hashes})
        faults += others
        if saved:
            run.cut(saved.facts["log"])
            checkpoint.discard(run.folder, after=saved.facts["step"])
            return Taken(saved=saved, faults=tuple(faults))
    run.clear()
    run.write("spec.json", spec.model_dump(mode="json"))
    run.write("hashes.json", hashes)
    return Taken(faults=(*faults, "The training starts again.") if faults else ())


def _damage(run: Run) -> list[str]:
    """Return what is wrong with the file of a trained adapter; nothing for a bare base, which has none."""
    try:
        if (run.folder / "adapter").is_dir():
            read_tensors(run.folder / "adapter" / "adapter.safetensors")
    except BadSpec as error:
        return [f"The trained adapter is damaged. {error}"]
    return []


def refuse_changes(run: Run, spec: RunSpec, hashes: dict[str, Any]) -> None:
    """Refuse to go on with other rows or another base than an interrupted run has begun with.

    Raises:
        BadSpec: they are not the same.
    """
    path = run.folder / "hashes.json"
    if not path.is_file() or not run.is_of(spec):
        return
    before, now = (
        {"the base": found["base"], **{f"the {key} rows": value for key, value in found["data"].items()}}
        for found in (read_json(path), hashes)
    )
    if changed := [what for what in before | now if before.get(what) != now.get(what)]:
        raise BadSpec(
            f"The run {run.id} was interrupted, and since it began {' and '.join(changed)} changed. Put back what was "
            "there and run the spec again to go on, or begin again with what is there now: --fresh, or fresh=True."
        )
