"""Lifeline: tells the processes of a run at once when one of them has ended, whatever the others are waiting for.

Rank 0 holds a connection to each other rank; over it goes one note, the goodbye. One that closes without was killed.
Collectives alone do not do: those of NCCL wait on, and a process that computes for long asks nobody.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta

import torch

from llm_adapters_lab.errors import ProcessLost

GRACE = 10.0
"""Seconds in which a process that has lost another may end by itself."""
NOTE = 2000


class Lifeline:
    """This process's end of the connections.

    Attributes:
        on_lost: called when another process is lost and this one has not ended by itself; then it is ended.
    """

    def __init__(self, rank: int, names: Sequence[str]) -> None:
        """Connect; all processes must do so.

        Args:
            rank: of this process.
            names: of all of them.
        """
        self.on_lost: Callable[[ProcessLost], object] = lambda error: None
        self._names, self._why = names, ""
        self._gone, self._ended = threading.Event(), threading.Event()
        self._group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=365))
        self._others = [0] if rank else list(range(1, len(names)))
        self._listeners = [threading.Thread(target=self._listen, args=(r,), daemon=True) for r in self._others]
        for listener in self._listeners:
            listener.start()

    def lost(self, seconds: float) -> ProcessLost | None:
        """Return the error that another process is lost, waiting so long to hear of it; None if none is."""
        return ProcessLost(f"{self._why} All others end with it.") if self._gone.wait(seconds) else None

    def close(self, text: str) -> None:
        """Say goodbye; with a text, why this process cannot go on."""
        self._ended.set()
        note = torch.zeros(NOTE, dtype=torch.uint8)
        said = list(text.encode()[:NOTE])
        note[: len(said)] = torch.tensor(said, dtype=torch.uint8)
        for other in self._others:
            with suppress(RuntimeError):  # it is gone
                torch.distributed.send(note, other, group=self._group)
        for listener in self._listeners:
            listener.join(1.0)

    def _listen(self, other: int) -> None:
        note = torch.zeros(NOTE, dtype=torch.uint8)
        try:
            torch.distributed.recv(note, other, group=self._group)
            if not (text := bytes(note.tolist()).rstrip(b"\0").decode(errors="replace")):
                return
        except RuntimeError:
            text = f"{self._names[other]} was killed, or the connection to it broke."
        self._why = self._why or text
        self._gone.set()
        if not self._ended.wait(GRACE) and (error := self.lost(0)):
            self.on_lost(error)
            os._exit(1)
