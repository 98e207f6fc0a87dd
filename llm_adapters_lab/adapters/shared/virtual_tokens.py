"""Virtual tokens: learned keys and values, or embeddings, that are prepended to every sequence.

The first real token is at position t, after t virtual tokens. Positions are derived from the mask, so padding on the
left does not shift any token.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.adapter import Finish, ModelAdapter, World
from llm_adapters_lab.errors import CannotConvert, CannotInject


def extend_call(decoder: nn.Module, kwargs: dict[str, Any], t: int, *, cached: bool) -> tuple[bool, dict[str, Any]]:
    """Extend the mask and positions of a decoder call by t virtual tokens.

    Args:
        decoder: the module that is called.
        kwargs: of the call: input_ids or inputs_embeds, optionally attention_mask (rows, real tokens so far) and
            past_key_values; given positions are replaced.
        t: number of virtual tokens.
        cached: whether the virtual tokens are the first columns of the cache, or directly precede the first real token.

    Returns:
        Whether the virtual tokens must be prepended in this call; and the arguments with an attention_mask over virtual
        and real tokens, and with the position_ids of this call's real tokens.

    Raises:
        CannotInject: virtual tokens would silently be wrong in a call of this kind.
    """
    inputs = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
    rows, tokens = inputs.shape[:2]
    cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
    if cache is not None and not isinstance(cache, DynamicCache):
        raise CannotInject(f"Virtual tokens need a DynamicCache, not a {type(cache).__name__}.")
    past = 0 if cache is None else cache.get_seq_length()
    mask = torch.ones(rows, max(past - t, 0) + tokens, dtype=torch.long, device=inputs.device) if mask is None else mask
    if mask.ndim != 2:
        raise CannotInject(f"Virtual tokens need a mask (rows, tokens), not one with {mask.ndim} dimensions.")
    if past and (seen := mask.shape[1] - tokens) != past - t:
        raise CannotInject(
            f"The cache holds {past} tokens, {t} of them virtual, but the mask covers {seen} before the {tokens} "
            "given. Pass the mask of all real tokens, and only the tokens that are not in the cache."
        )
    padded = mask.long().argmax(-1, keepdim=True)
    if cached:
        _refuse_counting(decoder, bool(padded.any()), mask.shape[1] + t)
        padded = torch.zeros_like(padded)
    kwargs = {key: value for key, value in kwargs.items() if key != "cache_position"}
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens:] + t
    if (most := _learned_positions(decoder)) < mask.shape[1] + t and int(positions.max()) >= most:
        raise CannotInject(
            f"A row of {int(positions.max()) + 1 - t} tokens and the {t} virtual ones exceed the {most} positions that "
            f"this {type(decoder).__name__} has learnt. Shorten the row (data.max_tokens), or use fewer virtual tokens."
        )
    wide = _insert(mask.new_ones(rows, t), mask, padded)
    return not past, {**kwargs, "attention_mask": wide, "position_ids": positions}


def _learned_positions(decoder: nn.Module) -> float:
    """Return the number of positions that a decoder has an embedding for; infinity if it computes them."""
    most, module = getattr(decoder.config, "max_position_embeddings", math.inf), cast(Any, decoder)
    tables = [m for m in decoder.children() if isinstance(m, nn.Embedding) and m is not module.get_input_embeddings()]
    return most if any(0 <= m.num_embeddings - most <= 2 for m in tables) else math.inf  # OPT has two rows more


def _insert(virtual: torch.Tensor, real: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Return (rows, t + n, ...) with `virtual` (rows, t, ...) before column `at` (rows, 1) of `real` (rows, n, ...)."""
    t, both = virtual.shape[1], torch.cat([virtual, real], dim=1)
    if not at.any():
        return both
    column = torch.arange(both.shape[1], device=real.device)[None]
    source = torch.where(column < at, column + t, torch.where(column < at + t, column - at, column))
    return both[torch.arange(len(both), device=real.device)[:, None], source]


def _refuse_counting(decoder: nn.Module, padded: bool, columns: int) -> None:
    """Reject padding between virtual and real tokens if attention depends on columns instead of positions."""
    config: Any = decoder.config
    windows = [w for name in ("sliding_window", "window_size") if isinstance(w := getattr(config, name, None), int)]
    alibi = getattr(getattr(config, "attn_config", None), "alibi", False)
    if padded and (alibi or any(columns > window for window in windows)):
        raise CannotInject(
            "The attention of this model counts padding between the virtual tokens of the cache and the real ones. "
            "Pass rows of equal length, or one row at a time (eval.batch 1), or use another adapter."
        )


def unflatten_cache(flat: torch.Tensor, shapes: list[tuple[int, int, int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return keys (n_kv, t, d_k) and values (n_kv, t, d_v) of each layer.

    Args:
        flat: (t, sum over layers of n_kv (d_k + d_v)), ordered by layer, key before value, head, width.
        shapes: (n_kv, d_k, d_v) of each layer.
    """
    sizes = [(heads, width) for heads, *widths in shapes for width in widths]
    parts = torch.split(flat, [heads * width for heads, width in sizes], dim=1)
    heads = [part.view(-1, *size).transpose(0, 1) for part, size in zip(parts, sizes, strict=True)]
    return list(zip(heads[::2], heads[1::2], strict=True))


def flatten_cache(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return the flat tensor for the output of `unflatten_cache`."""
    return torch.cat([part.transpose(0, 1).flatten(1) for pair in pairs for part in pair], dim=1)


def uniform_size(shapes: list[tuple[int, int, int]], slots: list[int]) -> tuple[int, int]:
    """Return the number of key/value heads and their width, if they are the same everywhere.

    Raises:
        CannotConvert: layers, or keys and values, differ, or some layers have none.
    """
    if slots != list(range(len(slots))):
        raise CannotConvert(f"peft has keys and values for every layer; in this model only layers {slots} keep them.")
    sizes = {(heads, width) for heads, *widths in shapes for width in widths}
    if len(sizes) > 1:
        raise CannotConvert(f"peft has one size of keys and values for all layers; this model has {sorted(sizes)}.")
    return sizes.pop()


def embedding_width(model: nn.Module) -> int:
    """Return the width of a model's input embeddings."""
    width: int = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    return width


def output_width(model: nn.Module) -> int:
    """Return the width of the decoder's output, which the output head reads."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    sizes = None if head is None else weights.dims(head)
    return sizes[0] if sizes else embedding_width(model)


class VirtualCache(ModelAdapter):
    """An adapter that fills an empty cache with learned keys and values.

    Subclasses set `virtual_tokens`, and `slots`, the indices of the layers that keep keys and values, and override
    `keys_and_values`.
    """

    family = "Prompt"
    virtual_tokens: int
    slots: list[int]

    def keys_and_values(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return keys (n_kv, t, d_k) and values (n_kv, t, d_v) of each layer that keeps them."""
        raise NotImplementedError(f"{type(self).__name__} has no keys_and_values")

    def for_rows(self, part: torch.Tensor, rows: int) -> torch.Tensor:
        """Return the keys or values of each row, (rows, n_kv, t, d), of what `keys_and_values` returns."""
        return part.expand(rows, -1, -1, -1)

    def prepare(self, decoder: nn.Module, kwargs: dict[str, Any]) -> tuple[dict[str, Any], Finish | None]:
        """Fill an empty cache, and extend mask and positions; the cache is returned only if the caller wants one.

        Raises:
            CannotInject: gradient checkpointing is on, which drops the cache; or see `extend_call`.
        """
        if decoder.training and getattr(decoder, "gradient_checkpointing", False):
            raise CannotInject(
                "Gradient checkpointing drops the key/value cache with the virtual tokens, so they would not be "
                "trained. Turn train.gradient_checkpointing off, or choose another adapter."
            )
        first, kwargs = extend_call(decoder, kwargs, self.virtual_tokens, cached=True)
        if not first:
            return kwargs, None
        config: Any = decoder.config
        mask, wanted = kwargs["attention_mask"], kwargs.get("use_cache")
        dtype = next(p.dtype for p in decoder.parameters() if p.is_floating_point())
        asked = getattr(config, "use_cache", True) if wanted is None else wanted
        cache = kwargs.get("past_key_values")
        if cache is None:  # some layers may keep states of another kind, or none
            own = DynamicCache(config=config.get_text_config(decoder=True))
            usual = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in own.layers)
            cache = DynamicCache() if usual else own
        kwargs["past_key_values"] = cache
        for index, pair in zip(self.slots, self.keys_and_values(), strict=True):
            key, value = (self.for_rows(p.to(mask.device, dtype), len(mask)) for p in pair)
            cache.update(key, value, index)
        return kwargs, None if asked else _without_cache


def _without_cache(output: Any) -> Any:
    """Remove a cache that was created for the virtual tokens only; `generate` would use it as its own."""
    if hasattr(output, "past_key_values"):
        output.past_key_values = None
    return output


class VirtualEmbeddings(ModelAdapter):
    """An adapter that prepends learned embeddings to the input and removes their outputs.

    Subclasses set `virtual_tokens` and override `embeddings`.
    """

    family = "Prompt"
    virtual_tokens: int

    def __init__(self, config: Any, world: World) -> None:
        """Note the sizes that peft wants to be told."""
        super().__init__(config, world)
        given: Any = getattr(world.model, "config", None)
        text = given.get_text_config() if hasattr(given, "get_text_config") else given
        if getattr(text, "hidden_size_per_layer_input", 0):
            raise CannotInject(
                f"{config.type!r} prepends embeddings, and {type(world.model).__name__} embeds its tokens in every "
                "layer, by their ids. Choose another adapter."
            )
        names = {"num_layers": "num_hidden_layers", "num_attention_heads": "num_attention_heads"}
        self.sizes = {name: n for name, own in names.items() if isinstance(n := getattr(text, own, None), int)}

    def embeddings(self) -> torch.Tensor:
        """Return the embeddings of the virtual tokens, (t, width of the input embeddings)."""
        raise NotImplementedError(f"{type(self).__name__} has no embeddings")

    def prepare(self, decoder: nn.Module, kwargs: dict[str, Any]) -> tuple[dict[str, Any], Finish | None]:
        """Prepend the virtual embeddings to those of the tokens, and extend mask and positions; see `extend_call`."""
        t, mask = self.virtual_tokens, kwargs.get("attention_mask")
        first, kwargs = extend_call(decoder, kwargs, t, cached=False)
        if not first:
            return kwargs, None
        inputs = kwargs.get("inputs_embeds")
        if inputs is None:
            inputs = decoder.get_input_embeddings()(kwargs["input_ids"])  # type: ignore[operator]
        rows, wide = len(inputs), kwargs["attention_mask"]
        padded = torch.zeros_like(wide[:, :1]) if mask is None else mask.long().argmax(-1, keepdim=True)
        virtual = self.embeddings().to(inputs.device, inputs.dtype).expand(rows, -1, -1)
        kwargs = {
            **{key: value for key, value in kwargs.items() if key != "input_ids"},
            "inputs_embeds": _insert(virtual, inputs, padded),
            "position_ids": (wide.long().cumsum(-1) - 1).clamp(min=0),
        }
        return kwargs, partial(_without_first, t)


def _without_first(t: int, output: Any) -> Any:
    """Remove t virtual tokens from hidden states, and from the queries of attention patterns."""
    if output is None:
        return output
    if isinstance(output, tuple):
        return (output[0][:, t:], *output[1:])
    output.last_hidden_state = output.last_hidden_state[:, t:]
    if output.get("hidden_states") is not None:
        output.hidden_states = tuple(h[:, t:] for h in output.hidden_states)
    if output.get("attentions") is not None:
        output.attentions = tuple(pattern[:, :, t:] for pattern in output.attentions)
    if output.get("router_logits") is not None:  # of which the base makes a loss, with the mask of the real tokens
        each = (z.view(len(output.last_hidden_state), -1, z.shape[-1]) for z in output.router_logits)
        output.router_logits = tuple(z[:, t:].flatten(0, 1) for z in each)
    return output
