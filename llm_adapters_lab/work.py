"""Work: what the stages of one run share, and where a run stands between two of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from llm_adapters_lab import models
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import Event
from llm_adapters_lab.gradients import Gradients
from llm_adapters_lab.keeper import Keeper
from llm_adapters_lab.prepare import Rows
from llm_adapters_lab.record import Run
from llm_adapters_lab.spec import RunSpec

Listener = Callable[[Event], None]


class Stand(IntEnum):
    """Where a run stands; in between, while it is trained, that is the number of steps done."""

    INJECTED = -2
    READY = -1
    TRAINED = 2**62
    SAVED = 2**62 + 1


@dataclass(frozen=True)
class Work:
    """What the stages of a run share.

    Attributes:
        spec: what to do.
        base: the model.
        rows: to learn from and to score on.
        record: where it is kept.
        keeper: saves the training and ends it when asked.
        on_event: told of every event, in addition to the log.
        name: of the adapter in the model.
        gradients: makes the object that computes them.
    """

    spec: RunSpec
    base: models.Base
    rows: Rows
    record: Run
    keeper: Keeper
    on_event: Listener | None
    name: str = "default"
    gradients: Callable[..., Gradients] = Gradients

    def tell(self, event: Event) -> None:
        """Write an event to the log and pass it on."""
        self.record.append(event)
        if self.on_event:
            self.on_event(event)


def load_base(spec: RunSpec) -> models.Base:
    """Load the base of a run.

    Raises:
        BadSpec: it has no tokenizer.
    """
    base = models.load(spec.base, spec.dtype, trust_remote_code=spec.trust_remote_code)
    if base.tokenizer is None:
        raise BadSpec(f"{spec.base} is random and has no tokenizer: inspect it, or use base: nano.")
    return base
