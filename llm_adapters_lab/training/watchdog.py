"""Watchdog: notifies every process of a run at once when another one ends, whatever it is waiting for.

Rank 0 holds a connection to each other rank, over which a single message is sent, at the end; a connection that closes
without one belongs to a killed process. Collectives are no substitute: those of NCCL keep waiting, and a process that
computes for long takes part in none.
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
"""Seconds a process has to end by itself after another one is lost."""
MESSAGE_BYTES = 2000


class Watchdog:
    """This process's end of the connections.

    Attributes:
        on_lost: called when another process is lost and this one has not ended within `GRACE`; then it is killed.
    """

    def __init__(self, rank: int, names: Sequence[str]) -> None:
        """Connect this rank to the others; all processes, whose names are given, must do so together."""
        self.on_lost: Callable[[ProcessLost], object] = lambda error: None
        self._names, self._reason = names, ""
        self._lost, self._closed = threading.Event(), threading.Event()
        self._group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=365))
        self._peers = [0] if rank else list(range(1, len(names)))
        self._listeners = [threading.Thread(target=self._listen, args=(peer,), daemon=True) for peer in self._peers]
        for listener in self._listeners:
            listener.start()

    def lost(self, seconds: float) -> ProcessLost | None:
        """Return the error that another process is lost, waiting up to `seconds` for the news; None if none is."""
        return ProcessLost(f"{self._reason} All others end with it.") if self._lost.wait(seconds) else None

    def close(self, reason: str) -> None:
        """Disconnect; "" is an orderly end, anything else the reason why this process cannot continue."""
        self._closed.set()
        message = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
        content = list(reason.encode()[:MESSAGE_BYTES])
        message[: len(content)] = torch.tensor(content, dtype=torch.uint8)
        for peer in self._peers:
            with suppress(RuntimeError):  # it is gone
                torch.distributed.send(message, peer, group=self._group)
        for listener in self._listeners:
            listener.join(1.0)

    def _listen(self, peer: int) -> None:
        message = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
        try:
            torch.distributed.recv(message, peer, group=self._group)
            if not (reason := bytes(message.tolist()).rstrip(b"\0").decode(errors="replace")):
                return
        except RuntimeError:
            reason = f"{self._names[peer]} was killed, or the connection to it broke."
        self._reason = self._reason or reason
        self._lost.set()
        if not self._closed.wait(GRACE) and (error := self.lost(0)):
            self.on_lost(error)
            os._exit(1)
