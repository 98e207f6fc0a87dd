"""The layers below the lowest adapter: what they make of a row does not depend on the adapter.

So they run once for all adapters of a study, and what they make of the training rows can be kept on disk
(`train.cache_below`) for later epochs and later runs. It is computed in blocks of rows that depend on the rows alone,
so that a resumed or repeated run reads or computes the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.tasks.tokens import Sample, documents
from llm_adapters_lab.training.batches import collate

BLOCK = 16
"""Number of rows that are computed together and share a file."""
HEADER = 128
"""Bytes that the file of a block needs for a row beside its numbers, roughly."""


def layers_below(*injections: Injection) -> int:
    """Return the number of layers below all sites of some adapters of a decoder; 0 if one acts on the whole model."""
    lowest = [min((site.layer for site in each.sites.values()), default=0) for each in injections]
    return max(0, min(lowest))


@contextmanager
def copied_above(layers: Sequence[nn.Module], copies: int, shape: Sequence[int]) -> Iterator[None]:
    """Give copies of the rows, one after the other, to these layers; what lies below them runs once.

    Args:
        layers: in their order, up to the last one.
        copies: their number.
        shape: of the token ids, (B, L); with one packed sequence (1, T), copies are laid end to end.
    """
    rows, length = shape

    def copy(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(copy, value))
        if not isinstance(value, torch.Tensor) or value.ndim < 2 or value.shape[0] != rows:
            return value
        if rows == 1:
            return value.repeat(1, copies, *[1] * (value.ndim - 2)) if value.shape[1] == length else value
        return value.repeat(copies, *[1] * (value.ndim - 1))

    def before(layer: nn.Module, args: Any, kwargs: Any) -> Any:
        return copy(args), {name: copy(value) for name, value in kwargs.items()}

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(before, with_kwargs=True))
        yield


class _Reached(Exception):
    """The lowest layer with an adapter has been reached."""


class LowerStates:
    """The inputs of the lowest layer with an adapter, for the rows of a training.

    Attributes:
        dropped: why nothing is written to disk any more; "" as long as it is.
    """

    def __init__(
        self, model: Any, injection: Injection, samples: Sequence[Sample], gib: float, folder: Path | None = None
    ) -> None:
        """Prepare; nothing is computed yet.

        Args:
            model: the base with its adapters.
            injection: what is trained; there are layers below it.
            samples: the rows.
            gib: maximum size of all files in the folder, in GiB.
            folder: default: `llm_adapters_lab/lower_layers` in the user's cache, `XDG_CACHE_HOME` or `~/.cache`.
        """
        anatomy, below = injection.anatomy, layers_below(injection)
        self.model, self.decoder, self.dropped = model, model.get_submodule(anatomy.decoder), ""
        self.layers = [model.get_submodule(path) for path in anatomy.layers[: below + 1]]
        unique = list(dict.fromkeys(sample.ids for sample in documents(samples)))
        self._blocks = [unique[start : start + BLOCK] for start in range(0, len(unique), BLOCK)]
        self._places = {ids: divmod(number, BLOCK) for number, ids in enumerate(unique)}
        self._files: dict[int, Any] = {}
        self._mine: set[Path] = set()
        self._limit, self._total = gib * 2**30, -1
        self._pair: bool | None = None  # whether layers return tuples; None: not known yet
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.folder = folder or Path(home) / "llm_adapters_lab" / "lower_layers"
        self._base = self._hash()

    def _hash(self) -> str:
        """Return a hash of all that the states depend on but the rows: weights, settings, device, version of torch."""
        config = self.model.config.to_json_string(use_diff=False)
        found = sha256(repr((torch.__version__, config, len(self.layers), str(weights.device(self.model)))).encode())
        for part in (self.model.get_input_embeddings(), *self.layers[:-1]):
            for name, tensor in (*part.named_parameters(), *part.named_buffers()):
                found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return found.hexdigest()

    def read(self, samples: Sequence[Sample]) -> torch.Tensor | None:
        """Return the states of some rows, documents, laid end to end, (tokens, d).

        What is not on disk is computed, so this is no part of another pass.

        Returns:
            None if one is no row of the training, or is not on disk although nothing more is written there.
        """
        places = [self._places.get(sample.ids) for sample in samples]
        if any(place is None or (self.dropped and place[0] not in self._files) for place in places):
            return None
        if self._pair is None:  # also where all that is needed is on disk
            self._compute(self._blocks[0][:1])
        return torch.cat([self._state(sample.ids) for sample in samples]).to(weights.device(self.model))

    @contextmanager
    def used(self, states: torch.Tensor, places: torch.Tensor, shape: Sequence[int]) -> Iterator[None]:
        """Skip the lower layers in forward passes on some rows.

        Args:
            states: of the rows, from `read`.
            places: of every token among those, (tokens,); -1 for padding.
            shape: of the token ids, (B, L).
        """
        hidden = states[places.clamp(min=0)].view(*shape, -1)

        def skip(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            return (given,) if self._pair else given

        def enter(layer: nn.Module, args: Any, kwargs: Any) -> Any:
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        lower, before = self.layers[:-1], [layer._compiled_call_impl for layer in self.layers[:-1]]
        try:
            for layer in lower:
                layer._compiled_call_impl = skip
            with self.layers[-1].register_forward_pre_hook(enter, with_kwargs=True):
                yield
        finally:
            for layer, call in zip(lower, before, strict=True):
                layer._compiled_call_impl = call

    def _state(self, ids: tuple[int, ...]) -> torch.Tensor:
        """Return what the layers make of a row, (tokens, d)."""
        block, row = self._places[ids]
        if block not in self._files:
            self._files[block] = self._open(block)
        found = self._files[block]
        state: torch.Tensor = found[row] if isinstance(found, list) else found.get_tensor(str(row))
        return state

    def _open(self, block: int) -> Any:
        cast = (torch.is_autocast_enabled(kind := weights.device(self.model).type), torch.get_autocast_dtype(kind))
        key = sha256(repr((self._base, cast, self._blocks[block])).encode()).hexdigest()
        path = self.folder / f"{key}.safetensors"
        with suppress(OSError, SafetensorError):  # not there, deleted by another training, or damaged
            return self._opened(path)
        states = self._compute(self._blocks[block])
        self._write(path, states)
        with suppress(OSError, SafetensorError):
            return self._opened(path)
        return states

    def _opened(self, path: Path) -> Any:
        found = safe_open(path, "pt")
        self._mine.add(path)
        path.touch()  # the newest are deleted last
        return found

    @torch.no_grad()
    def _compute(self, block: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        batch = collate([Sample("", ids, ids) for ids in block], 0, weights.device(self.model))
        reached: list[torch.Tensor] = []

        def stop(layer: nn.Module, args: Any, kwargs: Any) -> None:
            reached.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        def look(layer: nn.Module, args: Any, out: Any) -> None:
            self._pair = isinstance(out, tuple)

        end = self.layers[-1].register_forward_pre_hook(stop, with_kwargs=True)
        with end, self.layers[0].register_forward_hook(look), suppress(_Reached):
            self.decoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        return [state[: len(ids)].contiguous() for state, ids in zip(reached[0], block, strict=True)]

    def _write(self, path: Path, states: Sequence[torch.Tensor]) -> None:
        """Write a block, in place of the oldest ones if there is no room; `dropped` says why it could not be done."""
        if self.dropped:
            return
        part = path.with_suffix(f".{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            size = sum(state.nbytes + HEADER for state in states)
            if self._total < 0 or self._total + size > self._limit:
                self._make_room(size)
            if self._total + size > self._limit:
                self.dropped = f"the rows need more than {self._limit / 2**30:g} GiB in {self.folder}"
                return
            save_file({str(row): state.cpu() for row, state in enumerate(states)}, part)
            part.replace(path)
            self._total += path.stat().st_size
        except OSError as error:
            self.dropped = f"{self.folder} cannot be written ({error.strerror or error})"
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Delete the oldest files that this training does not use, until there is room for `size` bytes."""
        files = {path: stat for path in self.folder.iterdir() if (stat := path.stat())}
        self._total = sum(stat.st_size for stat in files.values())
        for path in sorted(files.keys() - self._mine, key=lambda path: files[path].st_mtime):
            if self._total + size > self._limit:
                path.unlink(missing_ok=True)
                self._total -= files[path].st_size
