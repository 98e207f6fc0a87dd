"""ProcessGroup: the processes that do one run together, as `accelerate launch` starts them.

All of them call `run` with the same spec and take the same way through it; rank 0 alone writes. What one of them finds
wrong before the work, all raise. Later the end of one is the end of all, see `lifeline`.
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from llm_adapters_lab.errors import BadSpec, LabError, ProcessLost
from llm_adapters_lab.training import deepspeed_zero
from llm_adapters_lab.training.watchdog import GRACE, Lifeline

P = TypeVar("P")
T = TypeVar("T")
PATIENCE = timedelta(minutes=30)
"""How long a rank waits for another that lives: one may read a model slowly, or have the longer rows of a step."""
SIGHT = 5.0
"""Seconds in which a file that rank 0 has made must be seen by the others."""


def sharded() -> bool:
    """Say whether the weights of the base are spread over the processes; then all call the model together."""
    if deepspeed_zero.stage() == deepspeed_zero.WEIGHTS:  # also for one process, whose host holds the weights
        return "WORLD_SIZE" in os.environ
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and int(os.environ.get("WORLD_SIZE", 1)) > 1


class ProcessGroup:
    """This process among those that do a run; alone where the process was started by itself. To be used in `with`.

    Attributes:
        rank: number of this one; 0 writes.
        count: how many there are.
        names: of all of them, with their host.
    """

    def __init__(self) -> None:
        """Meet the others.

        Raises:
            BadSpec: others were promised, and cannot be reached.
        """
        self.rank, self.count, self.names = 0, 1, ["the process"]
        self.line: Lifeline | None = None
        if "WORLD_SIZE" not in os.environ and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= set(os.environ):
            # With --cpu the launcher leaves it to MPI to start more than one, and without that says nothing.
            raise BadSpec(
                "`accelerate launch` was asked for several processes and has started one. "
                "With --multi_gpu in the place of --cpu it starts all of them, also where there is no GPU."
            )
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        with deepspeed_zero.unused():
            state = PartialState(cpu=cpu, timeout=PATIENCE)
        self.rank, self.count = state.process_index, state.num_processes
        self.names = self.gather(f"process {self.rank} of {self.count} on {platform.node()}")
        self.line = Lifeline(self.rank, self.names)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in order, to all of them."""
        if self.count == 1:
            return [value]
        with self._connected():
            found: list[T] = gather_object([value])
            return found

    def broadcast(self, value: T) -> T:
        """Return the value of rank 0 to all of them."""
        if self.count == 1:
            return value
        with self._connected():
            given: T = broadcast_object_list([value])[0]
            return given

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Let all go on, or none.

        Raises:
            LabError: another could not do what stands within.
        """
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.count == 1:
                raise
            mine = error
        faults = self.gather("" if mine is None else _told(mine))
        if mine is not None:
            raise mine
        if apart := [f"{name}: {fault}" for name, fault in zip(self.names, faults, strict=True) if fault]:
            raise LabError(f"Another process could not go on. {' '.join(apart)}")

    def agree(self, found: dict[str, Any]) -> None:
        """Compare what must be the same for all.

        Raises:
            BadSpec: it is not; the message names what differs, and where.
        """
        every = self.gather(found)
        keys = list(dict.fromkeys(key for each in every for key in each))
        apart = [key for key in keys if any(each.get(key) != every[0].get(key) for each in every)]
        if apart:
            said = [
                f"{key}: "
                + ", ".join(f"{each.get(key)} ({name})" for name, each in zip(self.names, every, strict=True))
                for key in apart
            ]
            raise BadSpec(
                f"The processes of a run differ in what must be the same. {'; '.join(said)}. "
                "Give all of them the same versions, spec, base and data."
            )

    def agree_on_folder(self, root: Path) -> None:
        """See that a folder is the same one for all; rank 0 makes it if need be.

        Raises:
            BadSpec: another process does not see what rank 0 writes there.
        """
        if self.count == 1:
            return
        token = root / self.broadcast(f".shared-{uuid.uuid4().hex}")
        with self.all_or_none():
            if self.is_main:
                root.mkdir(parents=True, exist_ok=True)
                token.touch()
        until = time.monotonic() + SIGHT
        # Asked for by a name that is new: what a network file system remembers of the folder may be older.
        while not (seen := token.exists()) and time.monotonic() < until:
            time.sleep(0.1)
        blind = [name for name, sees in zip(self.names, self.gather(seen), strict=True) if not sees]
        if self.is_main:
            token.unlink(missing_ok=True)
        if blind:
            raise BadSpec(
                f"{', '.join(blind)} cannot see the run folder that process 0 writes to, {root.absolute()}. "
                "Give --root on storage that all hosts share, and start all in the same folder."
            )

    def explain(self, error: BaseException) -> BaseException:
        """Return the error that another process is lost, if that is what another error comes from; else that one."""
        if self.line is None or (isinstance(error, LabError) and not isinstance(error, ProcessLost)):
            return error
        # The connection of a collective and the one of the line break in any order.
        told = self.line.lost(GRACE / 2 if isinstance(error, RuntimeError | ProcessLost) else 0)
        if told is None:
            return error
        told.__cause__ = error
        return told

    def on_lost(self, tell: Callable[[ProcessLost], object]) -> None:
        """Say what is to be done in the end for a process that another one is lost to, and that waits in vain."""
        if self.line is not None:
            self.line.on_lost = tell

    def shared(self, work: Callable[[P], Iterable[T]], parts: Sequence[P]) -> Iterator[T]:
        """Yield what comes of all parts of a work, in order, to all ranks; each does its share.

        Where the weights are spread over the processes, none can work by itself, and all do everything.
        """
        if self.count == 1 or sharded():
            yield from chain.from_iterable(map(work, parts))
            return
        for start in range(self.rank, len(parts) + self.rank, self.count):
            yield from chain.from_iterable(
                self.gather([item for part in parts[start : start + 1] for item in work(part)])
            )

    def __enter__(self) -> ProcessGroup:
        """Be one of them."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        """Say goodbye to the others, or why this one ends."""
        try:
            if error is None:
                self.gather(None)
        finally:
            if self.line is not None:
                name = self.names[self.rank]
                self.line.close("" if error is None else f"{name} could not go on. {_told(error)}")

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self.explain(ProcessLost(f"The connection between the processes broke ({error}).")) from error


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
