"""The call context: what adapters may know of the call of the model that is running.

Some adapters need more than x and y: which columns are padding, what stood before the columns that are run now (in
generation with a cache), which row a packed token belongs to, or a further input. All of it belongs to a call of the
decoder, so a hook on the decoder keeps it in one `CallContext`, which every adapter of the model can read::

    class Gated(Adapter):
        needs_context = True

        def forward(self, x, y):
            return y + self.gate * self.context.spread("memory") @ self.W

    with context_of(model).given(memory=states):  # (rows, width)
        model(**batch)  # or train, generate, score, record

What adapters remember and what is given by name travels with the cache: rows that are selected, repeated or reordered
there (finished answers, beams) are so here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from llm_adapters_lab.errors import CannotInject

Key = int | str
"""Of what a cache remembers: the id of an adapter, or the name of a given input."""


class AdapterCache(DynamicCache):
    """A cache that carries what adapters remember, (rows, ...) each, besides keys and values."""

    memory: dict[Key, torch.Tensor]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the rows, as beam search asks for."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._each(lambda kept: kept.index_select(0, beam_idx.to(kept.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        super().batch_repeat_interleave(repeats)
        self._each(lambda kept: kept.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._each(lambda kept: kept[indices])

    def reset(self) -> None:
        """Forget everything."""
        super().reset()  # type: ignore[no-untyped-call]
        self.memory.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse to go back where an adapter remembers: what stood before the removed tokens is no longer known.

        Raises:
            CannotInject: an adapter looks at earlier tokens and something would be removed.
        """
        if tokens_to_remove and any(isinstance(key, int) for key in self.memory):
            raise CannotInject("An adapter here looks at earlier tokens, and its memory cannot be rolled back.")
        super().crop(tokens_to_remove)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for key, kept in self.memory.items():
            self.memory[key] = change(kept)


class CallContext:
    """What is known of the running call of a decoder; outside a call, everything is None.

    Attributes:
        rows: number of rows, B.
        mask: 1 for tokens, 0 for padding, (B, columns so far); None where nothing is padded.
        cache: of the call, if it has one.
        token_rows: in a packed call, the row that each token belongs to (the first of several), (T,).
        inputs: further inputs by name, (B, ...) each.
    """

    def __init__(self) -> None:
        """Begin outside a call."""
        self.rows: int | None = None
        self.mask: torch.Tensor | None = None
        self.cache: AdapterCache | None = None
        self.token_rows: torch.Tensor | None = None
        self.listeners: dict[str, bool] = {}  # by name of the injection: whether it looks back
        self.handles: tuple[Any, ...] = ()
        self._given: dict[str, torch.Tensor] = {}
        self._packed_rows: int | None = None

    @property
    def looks_back(self) -> bool:
        """Whether an adapter mixes tokens."""
        return any(self.listeners.values())

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Further inputs by name, their rows those of the running call."""
        if self.cache is None:
            return self._given
        return {name: kept for name, kept in self.cache.memory.items() if isinstance(name, str)}

    @property
    def lengths(self) -> torch.Tensor | None:
        """Number of tokens of each row so far, (B,); None where that is the number of columns for all of them."""
        if self.token_rows is not None:
            return torch.bincount(self.token_rows, minlength=self.rows or 0)
        return None if self.mask is None else self.mask.sum(-1)

    def spread(self, name: str) -> torch.Tensor:
        """Return a further input laid out like the tokens of the call: (B, 1, ...), or (1, T, ...) in a packed one.

        Raises:
            CannotInject: nothing is given under that name.
        """
        if name not in self.inputs:
            raise CannotInject(f"An adapter reads the input {name!r}: call the model within `given({name}=...)`.")
        value = self.inputs[name]
        return value[:, None] if self.token_rows is None else value[self.token_rows][None]

    @contextmanager
    def given(self, **inputs: torch.Tensor) -> Iterator[None]:
        """Give further inputs to all calls inside; where such an adapter trains, go backward inside as well.

        Args:
            inputs: tensors with a row for each row of the batch, (B, ...).
        """
        before, self._given = self._given, {**self._given, **inputs}
        try:
            yield
        finally:
            self._given = before

    @contextmanager
    def packed(self, rows: int, token_rows: torch.Tensor) -> Iterator[None]:
        """Say that calls inside have their rows laid end to end.

        Args:
            rows: number of rows.
            token_rows: row of each token, (T,).
        """
        self._packed_rows, self.token_rows = rows, token_rows
        try:
            yield
        finally:
            self._packed_rows, self.token_rows = None, None

    def begin(self, decoder: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Take in a call of the decoder, and return the arguments with which it is to run.

        Args:
            decoder: the module that is called.
            kwargs: of the call.

        Raises:
            CannotInject: what the adapters need cannot be told in a call of this kind.
        """
        mask: Any = kwargs.get("attention_mask")
        cache = kwargs.get("past_key_values")
        if mask is not None and mask.ndim != 2:
            raise CannotInject(f"An adapter that reads the call needs a mask (rows, tokens), not {mask.ndim}-D.")
        padded = mask is not None and not bool(mask.all())
        if decoder.training and getattr(decoder, "gradient_checkpointing", False):
            # What is recomputed for the backward pass sees no call, so the first computation must not either.
            if self.looks_back and padded and not bool(mask[:, 0].all()):
                raise CannotInject(
                    "Under gradient checkpointing an adapter that looks at earlier tokens needs padding on the right."
                )
            return kwargs
        wanted, config = kwargs.get("use_cache"), decoder.config
        if cache is None and (getattr(config, "use_cache", True) if wanted is None else wanted):
            cache = DynamicCache(config=config.get_text_config(decoder=True))  # type: ignore[operator, union-attr]
            kwargs = {**kwargs, "past_key_values": cache}
        if type(cache) is DynamicCache:
            cache.__class__ = AdapterCache
            cache.memory = dict(self._given)  # type: ignore[attr-defined]
        elif cache is not None and not isinstance(cache, AdapterCache):
            raise CannotInject(f"An adapter that reads the call needs a DynamicCache, not {type(cache).__name__}.")
        inputs = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
        self.rows, self.mask = self._packed_rows or len(inputs), mask if padded else None
        self.cache = cache  # type: ignore[assignment]
        for name, value in self.inputs.items():
            if len(value) != self.rows:
                raise CannotInject(f"The input {name!r} has {len(value)} rows where the model runs {self.rows}.")
        return kwargs

    def end(self) -> None:
        """Forget the call."""
        self.rows = self.mask = self.cache = None


ATTRIBUTE = "call_context"
"""Where a decoder keeps its context while adapters that need one are in the model."""


def context_of(model: nn.Module) -> CallContext:
    """Return the call context of a model.

    Raises:
        CannotInject: no adapter in it reads one, so that anything given would be ignored.
    """
    if (found := _find(model)) is None:
        raise CannotInject("No adapter in this model reads the call context; a further input would be ignored.")
    return found


def looks_back(model: nn.Module) -> bool:
    """Return whether an adapter in the model mixes tokens, so that the tokens before one in its row matter."""
    found = _find(model)
    return found is not None and found.looks_back


def reads_inputs(model: nn.Module) -> bool:
    """Return whether further inputs are given to the model, so that its rows are not known by their tokens alone."""
    found = _find(model)
    return found is not None and bool(found.inputs)


def listen(decoder: nn.Module, name: str, *, looks_back: bool) -> CallContext:
    """Fill in a context during every call of a decoder, and return it.

    Args:
        decoder: whose calls.
        name: of the injection that needs it; `unlisten` takes it back.
        looks_back: one of its adapters mixes tokens.
    """
    context = decoder.__dict__.get(ATTRIBUTE)
    if context is None:
        decoder.__dict__[ATTRIBUTE] = context = CallContext()
        begin = decoder.register_forward_pre_hook(_begin, with_kwargs=True)
        context.handles = (begin, decoder.register_forward_hook(_end, always_call=True))
    context.listeners[name] = looks_back
    return context


def unlisten(decoder: nn.Module, name: str) -> None:
    """Undo `listen`; with the last listener go the hooks."""
    context = decoder.__dict__.get(ATTRIBUTE)
    if context is not None and context.listeners.pop(name, None) is not None and not context.listeners:
        for handle in context.handles:
            handle.remove()
        del decoder.__dict__[ATTRIBUTE]


def _find(model: nn.Module) -> CallContext | None:
    return next((m.__dict__[ATTRIBUTE] for m in model.modules() if ATTRIBUTE in m.__dict__), None)


def _begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    names = inspect.signature(module.forward).parameters
    context: CallContext = module.__dict__[ATTRIBUTE]
    return (), context.begin(module, {**dict(zip(names, args, strict=False)), **kwargs})


def _end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    module.__dict__[ATTRIBUTE].end()
