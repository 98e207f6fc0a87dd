"""The call context: what adapters can know about the forward call that is running.

Some adapters need more than x and y: which columns are padding, what earlier columns held (during generation with a
cache), the row of each packed token, or an additional input. A hook on the decoder collects this in one `CallContext`,
which every adapter of the model can read::

    class Gated(Adapter):
        needs_context = True

        def forward(self, x, y):
            return y + self.gate * self.context.spread("memory") @ self.W

    with context_of(model).given(memory=states):  # (rows, width)
        model(**batch)  # or train, generate, score, record

A row can belong to a group, such as its task or its language. An adapter with a part for each group reads
`context.group`; the names come from `Sample.group` in training, and by hand from

    with grouped(model, ["de", "fr"]):  # a name per row
        model(**batch)

If activations are recomputed in the backward pass, adapters find the same context there.

Inputs and what adapters remember between calls are stored in the cache: rows that are selected, repeated or reordered
there (finished answers, beams) are selected, repeated or reordered here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from llm_adapters_lab.core import weights
from llm_adapters_lab.errors import BadSpec, CannotInject, choices


class AdapterCache(DynamicCache):
    """A cache that also holds tensors of adapters, (rows, ...) each.

    Attributes:
        memory: the tensors, by the id of an adapter or the name of an input.
    """

    memory: dict[int | str, torch.Tensor]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the rows for beam search."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._map(lambda kept: kept.index_select(0, beam_idx.to(kept.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        self._map(lambda kept: kept.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only the given rows."""
        super().batch_select_indices(indices)
        self._map(lambda kept: kept[indices])

    def reset(self) -> None:
        """Clear the cache."""
        super().reset()  # type: ignore[no-untyped-call]
        self.memory.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens.

        Raises:
            CannotInject: an adapter looks at earlier tokens, and its memory cannot be rolled back.
        """
        if tokens_to_remove and any(isinstance(key, int) for key in self.memory):
            raise CannotInject("An adapter here looks at earlier tokens, and its memory cannot be rolled back.")
        super().crop(tokens_to_remove)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for key, kept in self.memory.items():
            self.memory[key] = change(kept)


GROUP = "group"
"""Name of the input that holds the number of each row's group."""
OF_A_CALL = (
    *("rows", "mask", "cache", "positions", "token_rows", "recomputing"),
    *("_given", "_packed_rows", "_packed_counts"),
)
"""What a call context holds only while a call runs."""


class CallContext:
    """The running call of a decoder; outside a call, everything is None.

    Attributes:
        rows: number of rows B.
        mask: 1 for tokens, 0 for padding, (B, columns so far); None if nothing is padded.
        cache: of the call, if it has one.
        token_rows: in a packed call, the row of each token (the first one, if rows share it), (T,).
        counts: how many tokens of the rows each token stands for: 0 for padding, more than 1 for one that packed rows
            share; (B, columns so far), or (T,) in a packed call. None if each stands for itself.
        recomputing: whether a backward pass is computing activations of the call again.
        positions: of the tokens of this call in their rows, across the cache, (B or 1, T).
        inputs: additional inputs by name, (B, ...) each.
        groups: names of the groups that the adapters know, in order of their numbers.
        group: number of each row's group in the layout of the tokens, (B, 1), or (1, T) in a packed call; None if the
            call has no groups.
    """

    def __init__(self) -> None:
        """Create a context outside any call."""
        self.rows: int | None = None
        self.mask: torch.Tensor | None = None
        self.cache: AdapterCache | None = None
        self.positions: torch.Tensor | None = None
        self.token_rows: torch.Tensor | None = None
        self.recomputing = False
        self.readers: dict[str, bool] = {}  # by name of the injection: whether it looks back
        self.groups: list[str] = []
        self.handles: tuple[Any, ...] = ()
        self._given: dict[str, torch.Tensor] = {}
        self._packed_rows: int | None = None
        self._packed_counts: torch.Tensor | None = None
        self._thread = 0  # that runs the call
        self._checkpointed: list[tuple[nn.Module, Any]] = []  # layers whose checkpointing is followed, for this call

    @property
    def looks_back(self) -> bool:
        """Whether an adapter mixes information across tokens."""
        return any(self.readers.values())

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Additional inputs by name, with the rows of the running call."""
        if self.cache is None:
            return self._given
        return {name: kept for name, kept in self.cache.memory.items() if isinstance(name, str)}

    @property
    def counts(self) -> torch.Tensor | None:
        """How many tokens of the rows each token stands for, (B, columns so far) or (T,); None if one each."""
        return self.mask if self.token_rows is None else self._packed_counts

    @property
    def group(self) -> torch.Tensor | None:
        """Number of each row's group in `groups`, (B, 1), or (1, T) in a packed call; None without groups."""
        return self.spread(GROUP) if GROUP in self.inputs else None

    def numbers(self, names: Sequence[str]) -> torch.Tensor:
        """Return the numbers of groups, (rows,).

        Raises:
            BadSpec: no adapter knows a group of that name.
        """
        if unknown := [name for name in names if name not in self.groups]:
            raise BadSpec(f"No adapter of the model knows the group {unknown[0]!r}. {choices(unknown[0], self.groups)}")
        return torch.tensor([self.groups.index(name) for name in names])

    @property
    def lengths(self) -> torch.Tensor | None:
        """Number of tokens of each row so far, (B,); None if all rows have as many as there are columns."""
        if self.token_rows is not None:
            return torch.bincount(self.token_rows, minlength=self.rows or 0)
        return None if self.mask is None else self.mask.sum(-1)

    def spread(self, name: str) -> torch.Tensor:
        """Return an additional input in the layout of the tokens: (B, 1, ...), or (1, T, ...) in a packed call.

        Raises:
            CannotInject: there is no input of that name.
        """
        if name not in self.inputs:
            raise CannotInject(f"An adapter reads the input {name!r}: call the model within `given({name}=...)`.")
        value = self.inputs[name]
        return value[:, None] if self.token_rows is None else value[self.token_rows][None]

    @contextmanager
    def given(self, **inputs: torch.Tensor) -> Iterator[None]:
        """Pass additional inputs to all calls within the context.

        Args:
            inputs: tensors by name, with one row per row of the batch, (B, ...).
        """
        before, self._given = self._given, {**self._given, **inputs}
        try:
            yield
        finally:
            self._given = before

    @contextmanager
    def packed(self, rows: int, token_rows: torch.Tensor, counts: torch.Tensor | None = None) -> Iterator[None]:
        """Declare that the calls within the context have their rows packed end to end.

        Args:
            rows: number of rows B.
            token_rows: row of each token, (T,).
            counts: number of rows that each token is part of, (T,); by default one each.
        """
        self._packed_rows, self.token_rows, self._packed_counts = rows, token_rows, counts
        try:
            yield
        finally:
            self._packed_rows, self.token_rows, self._packed_counts = None, None, None

    def begin(self, decoder: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Read a call of the decoder and return its keyword arguments, with a cache if it makes one.

        Raises:
            CannotInject: a call of this kind does not provide what the adapters need, or another thread is in a call.
        """
        if self.rows is not None and self._thread != get_ident():
            raise CannotInject(
                "Another thread is running this model, and its adapters read the call. Let the threads take turns, or "
                "give each a copy of the model."
            )
        mask, cache = kwargs.get("attention_mask"), None
        if mask is not None and mask.ndim != 2:
            raise CannotInject(f"An adapter that reads the call needs a mask (rows, tokens), not {mask.ndim}-D.")
        padded = mask is not None and not bool(mask.all())
        recomputed = decoder.training and getattr(decoder, "gradient_checkpointing", False)
        if not recomputed:  # under gradient checkpointing, layers get no cache
            kwargs, cache = self._with_cache(decoder, kwargs)
        inputs = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
        self._thread = get_ident()
        self.rows, self.mask, self.cache = self._packed_rows or len(inputs), mask if padded else None, cache
        self.positions = _positions(kwargs, mask, inputs.shape[1], inputs.device)
        for name, value in self.inputs.items():
            if len(value) != self.rows:
                raise CannotInject(f"The input {name!r} has {len(value)} rows where the model runs {self.rows}.")
        if recomputed:
            self._follow_recomputation(decoder)
        return kwargs

    def end(self) -> None:
        """Reset the context after a call."""
        if self._thread != get_ident():
            return  # the call was refused
        self.rows = self.mask = self.cache = self.positions = None
        for module, function in self._checkpointed:
            module.__dict__["_gradient_checkpointing_func"] = function
        self._checkpointed = []

    def _with_cache(self, decoder: nn.Module, kwargs: dict[str, Any]) -> tuple[dict[str, Any], AdapterCache | None]:
        """Return the arguments and the cache of a call; if the decoder would make one, it is passed to it."""
        cache = kwargs.get("past_key_values")
        wanted, config = kwargs.get("use_cache"), decoder.config
        if cache is None and (getattr(config, "use_cache", True) if wanted is None else wanted):
            cache = DynamicCache(config=config.get_text_config(decoder=True))  # type: ignore[operator, union-attr]
            kwargs = {**kwargs, "past_key_values": cache}
        if type(cache) is DynamicCache:
            cache.__class__ = AdapterCache
            cache.memory = dict(self._given)  # type: ignore[attr-defined]
        elif cache is not None and not isinstance(cache, AdapterCache):
            raise CannotInject(f"An adapter that reads the call needs a DynamicCache, not {type(cache).__name__}.")
        return kwargs, cache  # type: ignore[return-value]

    def _follow_recomputation(self, decoder: nn.Module) -> None:
        """Give the layers of this call the context again when the backward pass recomputes them.

        Raises:
            CannotInject: the model recomputes its layers in a way that has no place for this.
        """
        name = "_gradient_checkpointing_func"
        found = [(module, module.__dict__[name]) for module in decoder.modules() if name in module.__dict__]
        if not found or any(getattr(function, "keywords", {}).get("use_reentrant") for _, function in found):
            raise CannotInject(
                f"{type(decoder).__name__} recomputes activations in a way that hides the call from adapters (its own "
                "way, or use_reentrant=True). Turn train.gradient_checkpointing off, or choose another adapter."
            )
        for module, function in found:
            module.__dict__[name] = partial(function, context_fn=self._first_and_again)
        self._checkpointed = found

    def _first_and_again(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return what to enter when a layer is computed for the first time and when it is recomputed."""
        call = {name: getattr(self, name) for name in OF_A_CALL}
        return nullcontext(), self._restored(call | {"recomputing": True})

    @contextmanager
    def _restored(self, call: dict[str, Any]) -> Iterator[None]:
        now = {name: getattr(self, name) for name in OF_A_CALL}
        self.__dict__.update(call)
        try:
            yield
        finally:
            self.__dict__.update(now)


def _positions(kwargs: dict[str, Any], mask: Any, count: int, device: torch.device) -> torch.Tensor | None:
    given = kwargs.get("position_ids")
    if isinstance(given, torch.Tensor) and given.ndim == 2:
        return given
    if mask is not None and mask.shape[1] >= count:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -count:]  # type: ignore[no-any-return]
    cache = kwargs.get("past_key_values")
    try:
        past = cache.get_seq_length() if cache is not None and hasattr(cache, "get_seq_length") else 0
    except ValueError:  # a cache without attention does not count tokens
        return None
    return torch.arange(past, past + count, device=device)[None]


CONTEXT_ATTRIBUTE = "call_context"
"""Attribute of a decoder that holds its context while adapters that read one are in the model."""


def context_of(model: nn.Module) -> CallContext:
    """Return the call context of a model.

    Raises:
        CannotInject: no adapter in the model reads one, so additional inputs would be ignored.
    """
    if (found := _find(model)) is None:
        raise CannotInject("No adapter in this model reads the call context, so additional inputs would be ignored.")
    return found


@contextmanager
def grouped(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Tell adapters which group each row belongs to, in all calls within the context.

    Args:
        model: one with adapters that know groups.
        names: a group for each row of the batch; if empty, the calls have no groups.

    Raises:
        CannotInject: no adapter in the model reads the call.
        BadSpec: no adapter knows a group of that name.
    """
    if not names:
        yield
        return
    context = context_of(model)
    with context.given(**{GROUP: context.numbers(names).to(weights.device(model))}):
        yield


def looks_back(model: nn.Module) -> bool:
    """Return whether an adapter in the model mixes tokens, so that outputs depend on the earlier tokens of a row."""
    found = _find(model)
    return found is not None and found.looks_back


def reads_inputs(model: nn.Module) -> bool:
    """Return whether the model gets additional inputs, so that its outputs do not depend on the tokens alone."""
    found = _find(model)
    return found is not None and bool(found.inputs)


def _find(model: nn.Module) -> CallContext | None:
    return next((m.__dict__[CONTEXT_ATTRIBUTE] for m in model.modules() if CONTEXT_ATTRIBUTE in m.__dict__), None)


def attach_context(
    decoder: nn.Module, name: str, *, looks_back: bool = False, groups: Sequence[str] = ()
) -> CallContext:
    """Return the context of a decoder, created if necessary, and register `name` as its reader, which knows groups.

    Numbers of groups stay valid as long as the context has a reader.
    """
    context = decoder.__dict__.get(CONTEXT_ATTRIBUTE)
    if context is None:
        decoder.__dict__[CONTEXT_ATTRIBUTE] = context = CallContext()
        begin = decoder.register_forward_pre_hook(_begin, with_kwargs=True)
        context.handles = (begin, decoder.register_forward_hook(_end, always_call=True))
    context.readers[name] = looks_back
    context.groups = [*dict.fromkeys([*context.groups, *groups])]
    return context


def detach_context(decoder: nn.Module, name: str) -> None:
    """Undo `attach_context`; the hooks are removed with the last reader."""
    context = decoder.__dict__.get(CONTEXT_ATTRIBUTE)
    if context is not None and context.readers.pop(name, None) is not None and not context.readers:
        for handle in context.handles:
            handle.remove()
        del decoder.__dict__[CONTEXT_ATTRIBUTE]


def _begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    names = inspect.signature(module.forward).parameters
    context: CallContext = module.__dict__[CONTEXT_ATTRIBUTE]
    return (), context.begin(module, {**dict(zip(names, args, strict=False)), **kwargs})


def _end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    module.__dict__[CONTEXT_ATTRIBUTE].end()
