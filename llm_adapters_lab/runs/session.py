"""A run session: the state shared by the phases of one run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Any, NamedTuple

from llm_adapters_lab.events import Event, Noticed
from llm_adapters_lab.models.loading import Base
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.recovery.checkpointing import Checkpointer
from llm_adapters_lab.runs.rows import Rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.trackers import Trackers
from llm_adapters_lab.training.distributed import ProcessGroup
from llm_adapters_lab.training.step import GradientComputer

Listener = Callable[[Event], None]


class Phase(IntEnum):
    """The phases of a run, in order; a study synchronises its runs by them."""

    LOADED = auto()
    INJECTED = auto()
    READY = auto()
    TRAINING = auto()
    TRAINED = auto()
    SAVED = auto()


class Position(NamedTuple):
    """The progress of a run: its phase and, in training, the number of steps taken."""

    phase: Phase
    step: int = 0


@dataclass
class RunSession:
    """The state shared by the phases of a run.

    Attributes:
        spec: of the run.
        base: the model.
        base_print: its fingerprint, see `core.fingerprint`.
        rows: to train and to score on.
        record: the folder of the run.
        checkpointer: saves the training and stops it on request.
        on_event: called with every event, in addition to the log.
        name: of the adapter in the model.
        gradients: makes the object that computes the gradients.
        trackers: experiment trackers that follow the log; None before training.
    """

    spec: RunSpec
    base: Base
    base_print: dict[str, Any]
    rows: Rows
    record: Run
    checkpointer: Checkpointer
    on_event: Listener | None
    name: str = "default"
    gradients: Callable[..., GradientComputer] = GradientComputer
    trackers: Trackers | None = None

    @property
    def group(self) -> ProcessGroup:
        """The processes that share the run."""
        return self.checkpointer.group

    def emit(self, event: Event) -> None:
        """Log an event and call the listener, in the main process."""
        if self.group.is_main:
            warned = self.trackers.warnings() if self.trackers else []
            for each in (*map(Noticed, warned), event):
                self.record.append(each)
                if self.on_event:
                    self.on_event(each)

    def end_trackers(self) -> None:
        """Let the trackers finish sending; their messages go to the log."""
        for text in self.trackers.end() if self.trackers else ():
            self.emit(Noticed(text))


def warn(text: str, on_event: Listener | None) -> None:
    """Pass a message that is not logged to the listener, or issue a Python warning; "" does nothing."""
    if text:
        on_event(Noticed(text)) if on_event else warnings.warn(text, stacklevel=4)
