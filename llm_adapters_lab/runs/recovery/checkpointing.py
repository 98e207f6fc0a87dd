"""Checkpointer: when a run is saved, how it is stopped, and where an interrupted one is taken up again."""

from __future__ import annotations

import threading
import time
from typing import Any

from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.recovery.lock import Stopping
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training import checkpoints
from llm_adapters_lab.training.checkpoints import Checkpoint, State
from llm_adapters_lab.training.distributed import ProcessGroup

SECONDS, SHARE = 30.0, 0.03
"""Without `train.checkpoint_every`: so many seconds apart, or more, so that saving takes this share of them at most."""


class Checkpointer:
    """Saves a training when it is time to, and ends it, saved, when it is asked to stop.

    It is called after every step.
    """

    def __init__(
        self, run: Run, spec: RunSpec, hashes: dict[str, Any], stop: threading.Event | None, group: ProcessGroup
    ) -> None:
        """Keep the training of a run.

        Args:
            run: whose log belongs to what is saved.
            spec: of the run; its `train.checkpoint_every` says when to save.
            hashes: of base and rows.
            stop: set when the run is to end.
            group: the processes that do it; the first one saves, and one that is asked to stop stops all.
        """
        self.run, self.every, self.stop, self.group = run, spec.train.checkpoint_every, stop, group
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
        checkpoints.discard(self.run.folder)

    @property
    def asked(self) -> bool:
        """Whether the run was asked to stop, in whichever process; all of them ask at once."""
        return any(self.group.gather(self.stop is not None and self.stop.is_set()))

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
        if state is None or not state.whole or state.step == self.saved or not self.group.is_main:
            return
        began = time.monotonic()
        taken, log = state.take(), (self.run.folder / "events.jsonl").stat().st_size
        checkpoints.write(self.run.folder, Checkpoint(taken.tensors, {**taken.facts, **self.facts, "log": log}))
        self.saved, self._since = state.step, time.monotonic()
        self._wait = max(SECONDS, (self._since - began) / SHARE)
