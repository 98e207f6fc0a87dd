"""Checkpoints: a training between two steps, on disk, from where it goes on to the bit.

<run>/checkpoints/<step>/state.safetensors  adapter, moments of the optimiser, start, best so far, random states
                         state.json         step, tokens, seconds, scaler, size of the log, hashes of base and rows
                         manifest.json      size and SHA-256 of both

A folder is written under another name, flushed and renamed, so that one which has its name is whole; the manifest tells
whether the disk has kept it so. The newest two are kept. Nothing in a training draws from another source of chance than
torch, and the order of the rows is a function of seed and step, so there is no more to it than this.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.tensor_files import write_tensors
from llm_adapters_lab.files import PART, flush, write_json
from llm_adapters_lab.training.diagnostics import Groups

KEPT = 2
_FILES = ("state.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a folder: tensors by name, and the rest as plain data."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


class State:
    """A training between two steps.

    Attributes:
        step: number of steps done.
        tokens: seen so far.
        seconds: spent so far.
        best: lowest validation loss so far, with the adapter's tensors.
        whole: False while a step changes the tensors; then there is nothing to save.
    """

    def __init__(self, injection: Injection, optimizer: Any, scaler: Any, start: Groups) -> None:
        """Take the parts of a training that is about to begin.

        Args:
            injection: what is trained.
            optimizer: of its parameters.
            scaler: of the gradients in fp16; else None.
            start: tensors it began with, of `dynamics.copied`.
        """
        self.injection, self.optimizer, self.scaler, self.start = injection, optimizer, scaler, start
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.best: tuple[float, dict[str, torch.Tensor]] | None = None
        self.whole = True
        self._random = random_states()

    def done(self, step: int, tokens: int, seconds: float) -> None:
        """Take note that a step is over, with all that was measured and validated after it."""
        self.step, self.tokens, self.seconds, self.whole = step, tokens, seconds, True
        # Now: a step that fails has drawn from it, but not changed anything else.
        self._random = random_states()

    def take(self) -> Checkpoint:
        """Return everything; the tensors of the optimiser are not copied."""
        moments = self.optimizer.state_dict()["state"]
        tensors = {f"adapter/{key}": tensor for key, tensor in self.injection.state_dict().items()}
        tensors |= {f"optimizer/{i}/{key}": value for i, held in moments.items() for key, value in held.items()}
        tensors |= {f"start/{i}": tensor for i, tensor in enumerate(chain.from_iterable(self.start.values()))}
        tensors |= {f"best/{key}": tensor for key, tensor in (self.best[1] if self.best else {}).items()}
        tensors |= {f"random/{key}": tensor for key, tensor in self._random.items()}
        facts = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        scaler = self.scaler.state_dict() if self.scaler else None
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        return Checkpoint(tensors, {**facts, "best": self.best[0] if self.best else None, "scaler": scaler})

    def restore(self, saved: Checkpoint) -> None:
        """Become what `take` has returned, here or in another process."""
        facts = saved.facts
        self.injection.load_state_dict(_under(saved, "adapter/"))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _under(saved, "optimizer/").items():
            number, _, key = name.partition("/")
            moments.setdefault(int(number), {})[key] = tensor.clone()  # it is changed in place
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        if self.scaler:
            self.scaler.load_state_dict(facts["scaler"])
        for i, tensor in enumerate(chain.from_iterable(self.start.values())):
            tensor.copy_(saved.tensors[f"start/{i}"])  # in place: sums follow the order in memory
        if facts["best"] is not None:
            self.best = facts["best"], _under(saved, "best/")
        set_random_states(_under(saved, "random/"))
        self.done(facts["step"], facts["tokens"], facts["seconds"])


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint of a run, and take away those before the one before it."""
    step = checkpoint.facts["step"]
    path = _place(folder, step)
    part = path.with_name(path.name + PART)
    part.mkdir(parents=True)
    try:
        write_tensors(part / "state.safetensors", checkpoint.tensors)
        write_json(part / "state.json", checkpoint.facts)
        write_json(part / "manifest.json", {name: _measure(part / name) for name in _FILES})
        if path.exists():
            shutil.rmtree(path)
        part.rename(path)
        flush(path.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for old in steps(folder)[:-KEPT]:
        shutil.rmtree(_place(folder, old))


def steps(folder: Path) -> list[int]:
    """Return the steps whose checkpoints a run has, oldest first; nothing is opened."""
    return sorted(int(path.name) for path in folder.glob("checkpoints/[0-9]*") if path.name.isdigit())


def newest(folder: Path, facts: dict[str, Any]) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that is what was written and belongs to this training; None if there is none.

    Args:
        folder: of the run.
        facts: what was written with it must hold the same.

    Returns:
        The checkpoint, and in words why each newer one was passed over.
    """
    faults: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return read(folder, step, facts), faults
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            faults.append(f"The checkpoint of step {step} cannot be used: {error}.")
    return None, faults


def discard(folder: Path, after: int = 0) -> None:
    """Take away the checkpoints of a run after a step."""
    for step in steps(folder):
        if step > after:
            shutil.rmtree(_place(folder, step))
    with contextlib.suppress(OSError):  # it is not there, or not empty
        (folder / "checkpoints").rmdir()


def _place(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"{step:08}"


def read(folder: Path, step: int, facts: dict[str, Any]) -> Checkpoint:
    """Return the checkpoint of a step, see `newest`; what is wrong with it ends in an error of Python."""
    path = _place(folder, step)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    for name in _FILES:
        if _measure(path / name) != manifest[name]:
            raise ValueError(f"{name} is not what was written")
    found: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if any(found.get(key) != value for key, value in facts.items()):
        raise ValueError("it was made with another spec, other rows or another base")
    log = folder / "events.jsonl"
    if not log.is_file() or log.stat().st_size < found["log"]:
        raise ValueError("the log of the run ends before it")
    return Checkpoint(load_file(path / "state.safetensors"), found)


def _measure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _under(saved: Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in saved.tensors.items() if key.startswith(prefix)}


def random_states() -> dict[str, torch.Tensor]:
    """Return where torch's sources of chance stand, by device."""
    gpu = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **gpu}


def set_random_states(states: dict[str, torch.Tensor]) -> None:
    """Make chance go on from what `random_states` has returned."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
