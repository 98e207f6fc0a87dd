"""The checkpointer of a run: save checkpoints when they are due, and stop the run on request."""

from __future__ import annotations

import threading
import time
from typing import Any

from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.recovery.lock import Stopping
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training import checkpoints
from llm_adapters_lab.training.checkpoints import Checkpoint, TrainingState
from llm_adapters_lab.training.distributed import ProcessGroup

SECONDS, SHARE = 30.0, 0.03
"""Without `train.checkpoint_every`: the least interval in seconds, and the largest share of time spent on saving."""


class Checkpointer:
    """Saves a checkpoint when one is due, and stops the run, saved, on request. Called after every step."""

    def __init__(
        self, run: Run, spec: RunSpec, hashes: dict[str, Any], stop: threading.Event | None, group: ProcessGroup
    ) -> None:
        """Set up the checkpointer of a run.

        Args:
            run: the record, to which checkpoints are saved.
            spec: of the run; see `train.checkpoint_every`.
            hashes: of base and rows.
            stop: set it to stop the run.
            group: the processes that share the run; the main one saves, and a stop request to any of them stops all.
        """
        self.run, self.every, self.stop, self.group = run, spec.train.checkpoint_every, stop, group
        self.pause_at = spec.train.pause_at
        self.facts: dict[str, Any] = {"spec": spec.id, "hashes": hashes}
        self.saved = 0
        self._state: TrainingState | None = None
        self._wait, self._since = SECONDS, time.monotonic()

    def __call__(self, state: TrainingState) -> None:
        """Save if a checkpoint is due.

        Raises:
            Stopping: a stop was requested, or is due by `train.pause_at`; the state has been saved.
        """
        self._state = state
        due = state.step % self.every == 0 if self.every else time.monotonic() - self._since >= self._wait
        requested = self.stop_requested or state.step == self.pause_at
        if state.spread:
            due = self.group.broadcast(due)  # by the clock of one process
        if due or requested:
            self.save(together=True)
        if requested:
            raise Stopping

    def close(self) -> None:
        """Discard the checkpoints of a completed training."""
        self._state = None
        checkpoints.discard(self.run.folder)

    @property
    def stop_requested(self) -> bool:
        """Whether any process was asked to stop; all processes must call this together."""
        return any(self.group.gather(self.stop is not None and self.stop.is_set()))

    def check(self) -> None:
        """Stop the run if a stop was requested.

        Raises:
            Stopping: it was.
        """
        if self.stop_requested:
            raise Stopping

    def save(self, together: bool = False) -> None:
        """Save the state after the last step, unless the next one has already begun to change it.

        Args:
            together: whether all processes call this. If not, a state that is spread over them cannot be saved.
        """
        state = self._state
        if state is None or not state.consistent or state.step == self.saved:
            return
        if not (together if state.spread else self.group.is_main):
            return
        began = time.monotonic()
        taken = state.checkpoint()
        if not self.group.is_main:
            self.saved = state.step
            return
        log = (self.run.folder / "events.jsonl").stat().st_size
        checkpoints.write(self.run.folder, Checkpoint(taken.tensors, {**taken.facts, **self.facts, "log": log}))
        self.saved, self._since = state.step, time.monotonic()
        self._wait = max(SECONDS, (self._since - began) / SHARE)
