"""Checkpoints: a training between two steps, on disk, from which it resumes bit for bit.

<run>/checkpoints/<step>/state.safetensors  adapter, heads, optimiser moments, initial and best adapter, random states
                         state.json         step, tokens, seconds, scaler, size of the log, hashes of base and rows
                         manifest.json      size and SHA-256 of both

A folder is written under a temporary name, flushed and renamed, so it is complete once it has its name; the manifest
tells whether the disk has kept it. The newest two are kept. Randomness in training comes from torch alone, and the row
order is a function of seed and step, so nothing else needs to be saved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.tensor_files import write_tensors
from llm_adapters_lab.files import PART, flush, write_json
from llm_adapters_lab.training.diagnostics import Groups
from llm_adapters_lab.training.regimes import Heads

KEPT = 2
_FILES = ("state.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint: tensors by name, and everything else as plain data (`state.json`)."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]

    def group(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors named `name/...`, without that prefix."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}


def random_states() -> dict[str, torch.Tensor]:
    """Return the states of torch's random number generators by device."""
    gpu = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **gpu}


def set_random_states(states: dict[str, torch.Tensor]) -> None:
    """Restore what `random_states` returned."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@dataclass
class TrainingState:
    """A training between two steps.

    Attributes:
        injection: what is trained.
        optimizer: of its parameters.
        scaler: of the gradients in fp16; otherwise None.
        start: initial tensors, from `diagnostics.snapshot`.
        step: number of completed steps.
        tokens: number of tokens seen.
        seconds: time spent.
        best: lowest validation loss, with the adapter's tensors at that step.
        consistent: False while a step changes the tensors, when they must not be saved.
        random: states of the random number generators.
        heads: what is trained in place of the injection, if there is a regime.
        accelerator: of the training with a regime.
    """

    injection: Injection
    optimizer: Any
    scaler: Any
    start: Groups
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: tuple[float, dict[str, torch.Tensor]] | None = None
    consistent: bool = True
    random: dict[str, torch.Tensor] = field(default_factory=random_states)
    heads: Heads | None = None
    accelerator: Accelerator | None = None

    @property
    def spread(self) -> bool:
        """Whether each process has a part of the state, so that all of them must call `checkpoint` together."""
        return self.heads is not None and self.heads.world > 1

    def step_done(self, step: int, tokens: int, seconds: float) -> None:
        """Record that a step is complete, with everything measured and validated after it."""
        self.step, self.tokens, self.seconds, self.consistent = step, tokens, seconds, True
        # Now, because a step that fails later draws random numbers without changing anything else.
        self.random = random_states()

    def keep_best(self, loss: float) -> bool:
        """Keep the adapter if the validation loss is the lowest so far; return whether it is."""
        if better := self.best is None or loss < self.best[0]:
            self.best = loss, self.injection.state_dict()
        return better

    def checkpoint(self) -> Checkpoint:
        """Return everything; the tensors of the optimiser are not copied."""
        moments, scaler = self.optimizer.state_dict()["state"], self.scaler
        if self.heads:
            moments = {i: self.heads.whole_moments(self.accelerator, held) for i, held in moments.items()}
        loss, best = self.best or (None, {})
        groups: dict[str, dict[str, torch.Tensor]] = {
            "adapter": self.injection.state_dict(),
            "heads": self.heads.state(self.accelerator) if self.heads else {},
            "optimizer": {f"{i}/{key}": value for i, held in moments.items() for key, value in held.items()},
            "start": {str(i): tensor for i, tensor in enumerate(chain.from_iterable(self.start.values()))},
            "best": best,
            "random": self.random,
        }
        tensors = {f"{name}/{key}": t.contiguous() for name, group in groups.items() for key, t in group.items()}
        facts = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds, "best": loss}
        return Checkpoint(tensors, {**facts, "scaler": scaler.state_dict() if scaler else None})

    def restore(self, saved: Checkpoint) -> None:
        """Restore what `checkpoint` returned, in this or another process."""
        facts = saved.facts
        self.injection.load_state_dict(saved.group("adapter"))
        if self.heads:
            self.heads.load_state(saved.group("heads"))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in saved.group("optimizer").items():
            number, _, key = name.partition("/")
            own = tensor[self.heads.own] if self.heads and tensor.ndim else tensor
            moments.setdefault(int(number), {})[key] = own.clone()  # the optimiser changes it in place
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        if self.scaler:
            self.scaler.load_state_dict(facts["scaler"])
        for i, tensor in enumerate(chain.from_iterable(self.start.values())):
            tensor.copy_(saved.tensors[f"start/{i}"])  # in place, because sums depend on the memory order
        if facts["best"] is not None:
            self.best = facts["best"], saved.group("best")
        set_random_states(saved.group("random"))
        self.step_done(facts["step"], facts["tokens"], facts["seconds"])


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint of a run, and delete all but the newest two."""
    path = _path(folder, checkpoint.facts["step"])
    part = path.with_name(path.name + PART)
    part.mkdir(parents=True)
    try:
        write_tensors(part / "state.safetensors", checkpoint.tensors)
        write_json(part / "state.json", checkpoint.facts)
        write_json(part / "manifest.json", {name: _digest(part / name) for name in _FILES})
        if path.exists():
            shutil.rmtree(path)
        part.rename(path)
        flush(path.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for old in steps(folder)[:-KEPT]:
        shutil.rmtree(_path(folder, old))


def steps(folder: Path) -> list[int]:
    """Return the steps of which a run has checkpoints, oldest first; nothing is opened."""
    return sorted(int(path.name) for path in folder.glob("checkpoints/[0-9]*") if path.name.isdigit())


def newest(folder: Path, facts: dict[str, Any]) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint of a run that is undamaged and belongs to this training.

    Args:
        folder: of the run.
        facts: entries that its `state.json` must have.

    Returns:
        The checkpoint, or None; and a message for each newer one that cannot be used.
    """
    faults: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return read(folder, step, facts), faults
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            faults.append(f"The checkpoint of step {step} cannot be used: {error}.")
    return None, faults


def discard(folder: Path, after: int = 0) -> None:
    """Delete the checkpoints of a run after a step."""
    for step in steps(folder):
        if step > after:
            shutil.rmtree(_path(folder, step))
    with contextlib.suppress(OSError):  # missing, or not empty
        (folder / "checkpoints").rmdir()


def read(folder: Path, step: int, facts: dict[str, Any]) -> Checkpoint:
    """Return the checkpoint of a step, see `newest`; a faulty one raises one of Python's errors."""
    path = _path(folder, step)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    for name in _FILES:
        if _digest(path / name) != manifest[name]:
            raise ValueError(f"{name} is not what was written")
    found: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    # An earlier version has fewer hashes than this one.
    filled = {key: {**value, **found[key]} for key, value in facts.items() if isinstance(value, dict) and key in found}
    if any((found | filled).get(key) != value for key, value in facts.items()):
        raise ValueError("it belongs to another spec, other rows or another base")
    log = folder / "events.jsonl"
    if not log.is_file() or log.stat().st_size < found["log"]:
        raise ValueError("the log of the run ends before it")
    return Checkpoint(load_file(path / "state.safetensors"), found)


def _path(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"{step:08}"


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
