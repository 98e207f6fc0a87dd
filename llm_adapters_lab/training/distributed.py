"""The processes that do one run together, as `accelerate launch` starts them.

All of them call `run` with the same spec and take the same path through it; only rank 0 writes. An error in one before
the work starts is raised by all. Later, the end of one is the end of all, see `watchdog`.
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
from llm_adapters_lab.training.watchdog import GRACE, Watchdog

P = TypeVar("P")
T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for one that is alive: it may load a model slowly, or have the longer rows of a step."""
VISIBLE_WITHIN = 5.0
"""Seconds within which the other ranks must see a file that rank 0 has created."""


def sharded() -> bool:
    """Return whether the weights of the base are spread over the processes, which then call the model together."""
    if deepspeed_zero.stage() == deepspeed_zero.WEIGHTS:  # also for one process, if the host holds the weights
        return "WORLD_SIZE" in os.environ
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and int(os.environ.get("WORLD_SIZE", 1)) > 1


class ProcessGroup:
    """The processes of a run, of which this is one (size 1 without a launcher); a context manager.

    Attributes:
        rank: of this process.
        count: number of processes.
        names: of all processes, with their hosts.
        watchdog: notices when another process ends; None for a single process.
    """

    def __init__(self) -> None:
        """Connect to the other processes.

        Raises:
            BadSpec: the launcher was asked for several processes and has started one.
        """
        self.rank, self.count, self.names = 0, 1, ["the process"]
        self.watchdog: Watchdog | None = None
        if "WORLD_SIZE" not in os.environ and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= set(os.environ):
            # With --cpu the launcher leaves it to MPI to start more than one, and without MPI does not say so.
            raise BadSpec(
                "`accelerate launch` was asked for several processes and has started one. "
                "With --multi_gpu in place of --cpu it starts all of them, even without a GPU."
            )
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        with deepspeed_zero.bypassed():
            state = PartialState(cpu=cpu, timeout=TIMEOUT)
        self.rank, self.count = state.process_index, state.num_processes
        self.names = self.gather(f"process {self.rank} of {self.count} on {platform.node()}")
        self.watchdog = Watchdog(self.rank, self.names)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in order, to all of them."""
        if self.count == 1:
            return [value]
        with self._connected():
            found: list[T] = gather_object([value])
            return found

    def broadcast(self, value: T) -> T:
        """Return the value of rank 0 to all ranks."""
        if self.count == 1:
            return value
        with self._connected():
            given: T = broadcast_object_list([value])[0]
            return given

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Let all ranks pass the block, or raise in all of them.

        Raises:
            LabError: another rank raised within the block.
        """
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.count == 1:
                raise
            mine = error
        faults = self.gather("" if mine is None else _describe(mine))
        if mine is not None:
            raise mine
        if others := [f"{name}: {fault}" for name, fault in zip(self.names, faults, strict=True) if fault]:
            raise LabError(f"Another process could not continue. {' '.join(others)}")

    def require_equal(self, values: dict[str, Any]) -> None:
        """Check that all ranks have the same values.

        Raises:
            BadSpec: they do not; the message names what differs, and where.
        """
        ranks = self.gather(values)
        keys = dict.fromkeys(key for each in ranks for key in each)
        differing = [
            f"{key}: " + ", ".join(f"{each.get(key)} ({name})" for name, each in zip(self.names, ranks, strict=True))
            for key in keys
            if any(each.get(key) != ranks[0].get(key) for each in ranks)
        ]
        if differing:
            raise BadSpec(
                f"The processes of a run differ in what must be the same. {'; '.join(differing)}. "
                "Give all of them the same versions, spec, base and data."
            )

    def require_shared_folder(self, root: Path) -> None:
        """Check that a folder is the same one for all ranks; rank 0 creates it if necessary.

        Raises:
            BadSpec: another rank does not see what rank 0 writes there.
        """
        if self.count == 1:
            return
        token = root / self.broadcast(f".shared-{uuid.uuid4().hex}")
        with self.all_or_none():
            if self.is_main:
                root.mkdir(parents=True, exist_ok=True)
                token.touch()
        until = time.monotonic() + VISIBLE_WITHIN
        # The name is new, because a network file system may serve a cached listing of the folder.
        while not (seen := token.exists()) and time.monotonic() < until:
            time.sleep(0.1)
        blind = [name for name, sees in zip(self.names, self.gather(seen), strict=True) if not sees]
        if self.is_main:
            token.unlink(missing_ok=True)
        if blind:
            raise BadSpec(
                f"{', '.join(blind)} cannot see the run folder that process 0 writes to, {root.absolute()}. "
                "Set --root to storage that all hosts share, and start all processes in the same folder."
            )

    def explain(self, error: BaseException) -> BaseException:
        """Return the error that another process is lost if that caused this error, else the error itself."""
        if self.watchdog is None or (isinstance(error, LabError) and not isinstance(error, ProcessLost)):
            return error
        # The connections of a collective and of the watchdog break in any order.
        lost = self.watchdog.lost(GRACE / 2 if isinstance(error, RuntimeError | ProcessLost) else 0)
        if lost is None:
            return error
        lost.__cause__ = error
        return lost

    def on_lost(self, callback: Callable[[ProcessLost], object]) -> None:
        """Set what to call before this process is killed, because it waits for one that is lost."""
        if self.watchdog is not None:
            self.watchdog.on_lost = callback

    def share_work(self, work: Callable[[P], Iterable[T]], parts: Sequence[P]) -> Iterator[T]:
        """Yield the results of all parts, in order, to all ranks, each of which does its share.

        Where the weights are sharded no rank can work alone, and all of them do everything.
        """
        if self.count == 1 or sharded():
            yield from chain.from_iterable(map(work, parts))
            return
        for start in range(self.rank, len(parts) + self.rank, self.count):
            mine = [item for part in parts[start : start + 1] for item in work(part)]
            yield from chain.from_iterable(self.gather(mine))

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self.gather(None)
        finally:
            if self.watchdog is not None:
                name = self.names[self.rank]
                self.watchdog.close("" if error is None else f"{name} could not continue. {_describe(error)}")

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self.explain(ProcessLost(f"The connection between the processes broke ({error}).")) from error


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
