"""The curves of a run, read from its log as it grows: loss, learning rate, gradient norm, speed and so on."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from llm_adapters_lab.results.plots.runs import POINTS
from llm_adapters_lab.runs.event_log import Cursor, read_new
from llm_adapters_lab.runs.record import Run

COLUMNS = ("step", "tokens", "seconds", "loss", "learning_rate", "gradient_norm")
"""What is kept of every `Step` event."""


class Curves:
    """What the log of a run says about its training.

    Attributes:
        run: the record.
        columns: the values of all steps, by `COLUMNS`.
        validation: step and loss, in nats, of each validation.
        distances: step and ‖θ − θ₀‖ over all sites.
        last: the last event of each class.
    """

    def __init__(self, run: Run) -> None:
        """Read nothing yet."""
        self.run = run
        self._cursor = Cursor()
        self._clear()

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.columns["step"])

    @property
    def planned(self) -> int:
        """The number of steps of the whole training; 0 if it is not known yet."""
        known = self.last.get("Step") or self.last.get("Started") or {}
        return int(known.get("steps", 0))

    def read(self, seconds: float = math.inf) -> bool:
        """Read what is new in the log; return whether there was anything.

        Args:
            seconds: after which it stops, to continue at the next call.
        """
        until, new = time.monotonic() + seconds, False
        while True:
            found = read_new(self.run.log, self._cursor)
            if found.restarted:
                self._clear()
            self._cursor = found.cursor
            self.add(found.events)
            new = new or found.restarted or bool(found.events)
            if not found.more or time.monotonic() > until:
                return new

    def add(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Add events as plain data."""
        for event in events:
            kind = event["event"]
            self.last[kind] = dict(event)
            if kind == "Step":
                for name, column in self.columns.items():
                    column.append(event[name])
            elif kind == "Validated":
                self.validation.append((event["step"], event["loss"]))
            elif kind == "Norms":
                self.distances.append((event["step"], math.hypot(*event["norms"].values())))

    def points(self, most: int = POINTS) -> dict[str, list[float]]:
        """Return the steps thinned to at most `most` stretches of equal length.

        Returns:
            At the end of each stretch step, tokens, seconds, loss and learning_rate; over it, the mean of the loss as
            `mean`, the largest gradient_norm, and speed in tokens per second.
        """
        count, columns = len(self), self.columns
        length = max(1, math.ceil(count / most))
        ends = [*range(length, count, length), count] if count else []
        spans = list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []
        found = {
            name: [columns[name][end - 1] for end in ends]
            for name in ("step", "tokens", "seconds", "loss", "learning_rate")
        }
        found["mean"] = [math.fsum(columns["loss"][a:b]) / (b - a) for a, b in spans]
        found["gradient_norm"] = [max(columns["gradient_norm"][a:b]) for a, b in spans]
        found["speed"] = [self.speed(a, b) for a, b in spans]
        return found

    def speed(self, begin: int, end: int) -> float:
        """Return the tokens per second of the steps at positions `begin` to `end` (exclusive)."""
        before = begin - 1 if begin else 0
        first = (self.columns["tokens"][before], self.columns["seconds"][before]) if begin else (0.0, 0.0)
        tokens, seconds = self.columns["tokens"][end - 1] - first[0], self.columns["seconds"][end - 1] - first[1]
        return tokens / seconds if seconds > 0 else 0.0

    def _clear(self) -> None:
        self.columns = {name: array("d") for name in COLUMNS}
        self.validation: list[tuple[int, float]] = []
        self.distances: list[tuple[int, float]] = []
        self.last: dict[str, dict[str, Any]] = {}
