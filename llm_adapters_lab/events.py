"""What happens in a run, as plain values: written to events.jsonl and shown by every front end."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """What all events share."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as plain data, with its class name under "event"."""
        return {"event": type(self).__name__, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Started(Event):
    """The run has loaded everything and begins."""

    id: str
    steps: int
    trainable_parameters: int
    base_parameters: int
    device: str


@dataclass(frozen=True)
class Resumed(Event):
    """An interrupted run goes on: in its training after so many steps, or in its scoring.

    What the earlier attempts have said from there on is taken out of the log, so every step is in it once.
    """

    id: str
    stage: str
    step: int


@dataclass(frozen=True)
class Estimated(Event):
    """The memory that training will need at its peak, in bytes; `memory.Memory` says what the parts are."""

    weights: int
    adapter: int
    optimizer: int
    step: int
    total: int


@dataclass(frozen=True)
class Step(Event):
    """One update. Loss in nats per label token; tokens are label and prompt tokens seen so far; times in seconds."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class FellBack(Event):
    """A setting of the spec does not hold here, so something slower with the same result is done; `reason` says why."""

    setting: str
    reason: str


@dataclass(frozen=True)
class Validated(Event):
    """The loss on the held-out rows after a step; `best` says whether it is the lowest so far."""

    step: int
    loss: float
    best: bool


@dataclass(frozen=True)
class Norms(Event):
    """How far training has moved the adapter: Frobenius norm of (tensors now - tensors at the start) at each site.

    A model-wide adapter has one entry per tensor, named `model/<tensor>`.
    """

    step: int
    norms: dict[str, float]


@dataclass(frozen=True)
class Probed(Event):
    """What one step did at each site, with the keys of `Norms`: Frobenius norms over the tensors θ of the site.

    Attributes:
        step: number of the step, from 1.
        norm: ||θ|| after the step.
        gradient_norm: ||g|| before clipping; together they make the one of `Step`.
        update_ratio: ||Δθ|| / ||θ||, the change of this step beside `norm`; 1 in the first step from zero.
    """

    step: int
    norm: dict[str, float]
    gradient_norm: dict[str, float]
    update_ratio: dict[str, float]


@dataclass(frozen=True)
class Scoring(Event):
    """So many rows of a task have been answered."""

    task: str
    done: int
    total: int


@dataclass(frozen=True)
class Scored(Event):
    """A task is scored; `score` holds what the summary will."""

    task: str
    score: dict[str, Any]


@dataclass(frozen=True)
class Noticed(Event):
    """Something a reader should know; the run goes on, or its result is returned all the same."""

    text: str


@dataclass(frozen=True)
class Finished(Event):
    """The run is complete."""

    id: str
    seconds: float


@dataclass(frozen=True)
class Stopped(Event):
    """Somebody asked the run to stop; it can be started again."""

    id: str
    stage: str


@dataclass(frozen=True)
class Failed(Event):
    """The run could not go on.

    Attributes:
        id: of the run.
        stage: in which it was.
        error: class and message.
        traceback: as Python prints it, without the reader's home.
        step: the last one whose state is kept; 0 for none.
        advice: how to continue.
    """

    id: str
    stage: str
    error: str
    traceback: str = ""
    step: int = 0
    advice: str = ""
