"""Work: what the stages of one run share, and where a run stands between two of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from llm_adapters_lab.events import Event, Noticed
from llm_adapters_lab.gradients import Gradients
from llm_adapters_lab.keeper import Keeper
from llm_adapters_lab.models import Base
from llm_adapters_lab.prepare import Rows
from llm_adapters_lab.ranks import Ranks
from llm_adapters_lab.record import Run
from llm_adapters_lab.spec import RunSpec
from llm_adapters_lab.trackers import Trackers

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
        trackers: that follow the log; None until it begins.
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
    trackers: Trackers | None = None

    @property
    def ranks(self) -> Ranks:
        """The processes that do the run."""
        return self.keeper.ranks

    def tell(self, event: Event) -> None:
        """Write an event to the log and pass it on; among several processes, the first one does."""
        if self.ranks.leads:
            news = self.trackers.news() if self.trackers else []
            for told in (*map(Noticed, news), event):
                self.record.append(told)
                if self.on_event:
                    self.on_event(told)

    def end_trackers(self) -> None:
        """Let the trackers send what they hold; what they have to say of it goes to the log."""
        for text in self.trackers.end() if self.trackers else ():
            self.tell(Noticed(text))
