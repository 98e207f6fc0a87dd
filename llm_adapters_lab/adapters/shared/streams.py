"""Streams: every row runs several times at once, behind other virtual tokens each time, and one output is made of all.

Inside the decoder, the streams are rows: row b in stream p is row b P + p. Outside of it nothing has more rows than the
caller gave. In particular a cache is folded after each call: keys (B P, n_kv, T, d_k) become (B, P n_kv, T, d_k), which
is the same memory, so that rows can be selected, repeated and reordered there as in any other cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.adapters.shared.virtual_tokens import VirtualCache
from llm_adapters_lab.core.adapter import Finish
from llm_adapters_lab.core.call_context import CONTEXT_ATTRIBUTE, AdapterCache
from llm_adapters_lab.errors import CannotInject

Change = Callable[[torch.Tensor], torch.Tensor]


class Streams(VirtualCache):
    """An adapter that runs each row in several streams, and weights their outputs token by token.

    Subclasses set `streams`, and override `token_weights` and `forward`; `keys_and_values` have a stream dimension in
    front: (P, n_kv, t, d_k) and (P, n_kv, t, d_v).
    """

    streams: int

    def token_weights(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weights of the streams, (..., P), for their outputs side by side, (..., P d)."""
        raise NotImplementedError(f"{type(self).__name__} has no token_weights")

    def for_rows(self, part: torch.Tensor, rows: int) -> torch.Tensor:
        """Return the keys or values of each row, (rows, n_kv, t, d), of (P, n_kv, t, d)."""
        return part.repeat(rows // self.streams, 1, 1, 1)

    def prepare(self, decoder: nn.Module, kwargs: dict[str, Any]) -> tuple[dict[str, Any], Finish | None]:
        """Repeat all rows, put the virtual tokens of its stream before each, and unfold the cache.

        Raises:
            CannotInject: an adapter that reads the call does so before its rows are repeated; or see `VirtualCache`.
        """
        context = decoder.__dict__.get(CONTEXT_ATTRIBUTE)
        own: Any = decoder.model_adapters
        if context is not None and context.handles[0].id < own.handles[0].id:
            raise CannotInject(
                "An adapter that reads the call was put into this model before the one that repeats its rows, and "
                f"would not see these. Inject the one with {self.streams} streams first, or both as one union."
            )
        inputs = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        rows, cache = len(inputs), kwargs.get("past_key_values")
        repeated = {
            key: value.repeat_interleave(self.streams, dim=0)
            if isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == rows
            else value
            for key, value in kwargs.items()
        }
        first = cache is None or not cache.get_seq_length()
        given = {} if context is None else context.inputs  # of the call; later ones find them in the cache
        kwargs, after = super().prepare(decoder, repeated)
        if first:
            cache = kwargs["past_key_values"]
            if context is not None and not isinstance(cache, AdapterCache):
                cache.__class__ = AdapterCache
                cache.memory = {name: value.repeat_interleave(self.streams, dim=0) for name, value in given.items()}
        else:
            _change_rows(cache, rows, self.streams, fold=False)
        return kwargs, partial(self._reduce, rows, cache, after)

    def _reduce(self, rows: int, cache: Any, after: Finish | None, output: Any) -> Any:
        """Fold the cache, and return an output with as many rows as were given; None if the call failed."""
        _change_rows(cache, rows, self.streams, fold=True)
        output = after(output) if after else output
        if output is None:
            return None
        whole = isinstance(output, tuple)
        hidden = output[0] if whole else output.last_hidden_state
        each = hidden.unflatten(0, (rows, self.streams))  # (B, P, n, d)
        own = next(self.parameters())
        x = each.transpose(1, 2).flatten(2).to(own.device, own.dtype)
        reduced = self(x, each.mean(1).to(own.device, own.dtype)).to(hidden)
        if whole:
            return (reduced, *output[1:])
        output.last_hidden_state = reduced

        def mean(kept: torch.Tensor) -> torch.Tensor:
            """Weight hidden states (B P, n, d) or attention patterns (B P, heads, n, keys) as the outputs."""
            split = kept.reshape(rows, self.streams, *kept.shape[1:])
            weights = self.token_weights(x).transpose(1, 2)  # (B, P, n)
            shape = (*weights.shape[:2], *[1] * (kept.ndim - 3), weights.shape[2], 1)
            return (split * weights.view(shape).to(split)).sum(1)

        if output.get("hidden_states") is not None:
            output.hidden_states = (*map(mean, output.hidden_states[:-1]), reduced)
        if output.get("attentions") is not None:
            output.attentions = tuple(pattern if pattern is None else mean(pattern) for pattern in output.attentions)
        if output.get("router_logits") is not None:  # the base makes a loss of them, with the mask of the given rows
            routed = (z.reshape(rows, self.streams, -1, z.shape[-1]).unbind(1) for z in output.router_logits)
            output.router_logits = tuple(z.flatten(0, 1) for one in routed for z in one)
        return output


def _change_rows(cache: Any, rows: int, streams: int, *, fold: bool) -> None:
    """Fold the streams of a cache into its rows, or unfold them again, in every layer and in what adapters remember."""

    def states(kept: torch.Tensor) -> torch.Tensor:
        if kept.ndim < 2 or len(kept) != (rows * streams if fold else rows):
            return kept
        if fold:
            return kept.reshape(rows, streams * kept.shape[1], *kept.shape[2:])
        return kept.reshape(rows * streams, kept.shape[1] // streams, *kept.shape[2:])

    for layer in cache.layers:
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor):
                setattr(layer, name, states(value))
            elif isinstance(value, dict | list):  # states of mixers other than attention
                for key, kept in value.items() if isinstance(value, dict) else enumerate(value):
                    if isinstance(kept, torch.Tensor):
                        value[key] = states(kept)
    for name, kept in getattr(cache, "memory", {}).items():
        if isinstance(name, str):  # an input of the row
            cache.memory[name] = kept[::streams] if fold else kept.repeat_interleave(streams, dim=0)
        else:
            cache.memory[name] = kept.unflatten(0, (rows, streams)) if fold else kept.flatten(0, 1)
