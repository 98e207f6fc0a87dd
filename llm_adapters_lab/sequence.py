"""Sequence: what an adapter that looks at earlier tokens has to know, which one that sees each token alone has not.

That is which columns are padding, and in generation with a cache what stood before the columns that are run now. Both
belong to a call of the decoder, so a hook on the decoder tells them to its adapters. What they remember travels with
the cache: rows that are chosen, repeated or reordered there are so here too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from llm_adapters_lab.adapter import Adapter
from llm_adapters_lab.errors import CannotInject

HEARS = "hears"
"""Where a decoder keeps the calls its adapters hear of, by the adapters' name."""


class RememberingCache(DynamicCache):
    """A cache that carries what adapters remember, (rows, ...) each, besides keys and values."""

    memory: dict[int, torch.Tensor]

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
        """Refuse to go back: what stood before the removed tokens is no longer known.

        Raises:
            CannotInject: always, unless nothing is removed.
        """
        if tokens_to_remove:
            raise CannotInject("An adapter here looks at earlier tokens, and its memory cannot be rolled back.")

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for key, kept in self.memory.items():
            self.memory[key] = change(kept)


class Call:
    """What the adapters hear of the decoder's call.

    Attributes:
        mask: 1 for tokens, 0 for padding, (rows, columns so far); None where nothing is padded.
        cache: of the call, if it has one.
        rows: how many there are; None outside a call.
    """

    rows: int | None = None
    mask: torch.Tensor | None = None
    cache: RememberingCache | None = None


class SequenceAdapter(Adapter):
    """An adapter that looks at earlier tokens."""

    def with_past(self, x: torch.Tensor, k: int) -> torch.Tensor:
        """Return x with zeros for padding, and in front of it the k columns that stood there before: zeros at first.

        Args:
            x: (rows, n, width), or (rows n, width) from a model that runs its MLP so.
            k: columns to look back, 1 or more.

        Returns:
            (rows, k + n, width).

        Raises:
            CannotInject: the order of the tokens cannot be told, or mask and tokens do not agree.
        """
        call: Call = self.__dict__.get("call") or Call()
        if x.ndim == 2 and call.rows:
            x = x.view(call.rows, -1, x.shape[-1])
        if x.ndim != 3:
            raise CannotInject(
                f"Here the model lays all rows into one, {tuple(x.shape)}, and under gradient checkpointing an adapter "
                "that looks at earlier tokens cannot tell them apart. Turn train.gradient_checkpointing off."
            )
        if call.mask is not None:
            if call.mask.shape[1] < x.shape[1]:
                raise CannotInject(
                    f"The mask speaks of {call.mask.shape[1]} tokens where {x.shape[1]} are run: an adapter that was "
                    "injected later puts tokens in front. Inject that one first."
                )
            x = x * call.mask[:, -x.shape[1] :, None].to(x.device, x.dtype)
        past = None if call.cache is None else call.cache.memory.get(id(self))
        wide = torch.cat([x.new_zeros(len(x), k, x.shape[2]) if past is None else past, x], dim=1)
        if call.cache is not None:
            call.cache.memory[id(self)] = wide[:, -k:].detach()
        return wide


def listen(decoder: nn.Module, name: str, adapters: Iterable[Adapter]) -> None:
    """Let adapters hear of the calls of their decoder."""
    heard = decoder.__dict__.setdefault(HEARS, {})
    if not heard:
        begin = decoder.register_forward_pre_hook(_begin, with_kwargs=True)
        heard[""] = (begin, decoder.register_forward_hook(_end, always_call=True))
    heard[name] = call = Call()
    for adapter in adapters:
        adapter.__dict__["call"] = call


def unlisten(decoder: nn.Module, name: str) -> None:
    """Undo `listen`."""
    heard = decoder.__dict__.get(HEARS, {})
    heard.pop(name, None)
    if set(heard) == {""}:
        for handle in heard[""]:
            handle.remove()
        del decoder.__dict__[HEARS]


def looks_back(model: nn.Module) -> bool:
    """Say whether a model has an adapter that looks at earlier tokens."""
    return any(HEARS in module.__dict__ for module in model.modules())


def _begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    names = inspect.signature(module.forward).parameters
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    mask: Any = given.get("attention_mask")
    cache = given.get("past_key_values")
    if mask is not None and mask.ndim != 2:
        raise CannotInject(f"An adapter that looks at earlier tokens needs a mask (rows, tokens), not {mask.ndim}-D.")
    padded = mask is not None and not bool(mask.all())
    inputs: Any = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
    if module.training and getattr(module, "gradient_checkpointing", False):
        # What is computed again for backward hears of no call, so the first time must not either.
        if padded and not bool(mask[:, 0].all()):
            raise CannotInject(
                "Under gradient checkpointing an adapter that looks at earlier tokens needs padding on the right."
            )
        return args, kwargs
    wanted = given.get("use_cache")
    config: Any = module.config
    if cache is None and (getattr(config, "use_cache", True) if wanted is None else wanted):
        cache = DynamicCache(config=config.get_text_config(decoder=True))
        args, kwargs = (), {**given, "past_key_values": cache}
    if type(cache) is DynamicCache:
        cache.__class__ = RememberingCache
        cache.memory = {}  # type: ignore[attr-defined]
    elif cache is not None and not isinstance(cache, RememberingCache):
        raise CannotInject(f"An adapter that looks at earlier tokens needs a DynamicCache, not {type(cache).__name__}.")
    for name, call in module.__dict__[HEARS].items():
        if name:
            call.rows, call.mask, call.cache = len(inputs), mask if padded else None, cache
    return args, kwargs


def _end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    for name, call in module.__dict__[HEARS].items():
        if name:
            call.rows = call.mask = call.cache = None
