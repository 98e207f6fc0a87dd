"""Work: what the stages of one run share, and where a run stands between two of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from accelerate import Accelerator

from llm_adapters_lab import trackers
from llm_adapters_lab.events import Event
from llm_adapters_lab.gradients import Gradients
from llm_adapters_lab.keeper import Keeper
from llm_adapters_lab.models import Base
from llm_adapters_lab.prepare import Rows
from llm_adapters_lab.ranks import Ranks
from llm_adapters_lab.record import Run
from llm_adapters_lab.spec import RunSpec

Listener = Callable[[Event], None]


class Stand(IntEnum):
    """Where a run stands; in between, while it is trained, that is the number of steps done."""

    INJECTED = -2
    READY = -1
    TRAINED = 2**62
    SAVED = 2**62 + 1


@dataclass
class Work:
    """What the stages of a run share.

    Attributes:
        spec: what to do.
        base: the model.
        base_print: tells it from any other, see `saving.fingerprint`.
        rows: to learn from and to score on.
        record: where it is kept.
        keeper: saves the training and ends it when asked.
        on_event: told of every event, in addition to the log.
        name: of the adapter in the model.
        gradients: makes the object that computes them.
        accelerator: of the training; None until that begins.
    """

    spec: RunSpec
    base: Base
    base_print: dict[str, Any]
    rows: Rows
    record: Run
    keeper: Keeper
    on_event: Listener | None
    name: str = "default"
    gradients: Callable[..., Gradients] = Gradients
    accelerator: Accelerator | None = None

    @property
    def ranks(self) -> Ranks:
        """The processes that do the run."""
        return self.keeper.ranks

    def tell(self, event: Event) -> None:
        """Write an event to the log and pass it on; among several processes, the first one does."""
        if self.ranks.leads:
            self.record.append(event)
            trackers.follow(self.accelerator, event)
            if self.on_event:
                self.on_event(event)
