"""Which tokens of a forward call are recorded or edited."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from llm_adapters_lab.errors import BadSpec, NoView, choices

Tokens = Literal["last"] | int | slice | Sequence[int] | torch.Tensor | None
"""The last token that is not padding, a position, several positions, a boolean mask (rows, tokens), or all tokens."""


def check_tokens(tokens: Tokens) -> None:
    """Refuse other words than "last", and truth values where positions are meant, before a model runs."""
    if isinstance(tokens, str) and tokens != "last":
        raise BadSpec(f"tokens = {tokens!r} selects nothing. {choices(tokens, ['last'])} All tokens are None.")
    if isinstance(tokens, bool) or (isinstance(tokens, Sequence) and any(isinstance(one, bool) for one in tokens)):
        raise BadSpec("tokens holds positions; as a mask, give a Boolean tensor (rows, tokens).")


@dataclass(frozen=True)
class ForwardCall:
    """A call of the model or its decoder, and the tokens of it that are selected.

    Attributes:
        rows: number of sequences.
        length: number of tokens in each, without virtual tokens that adapters prepend.
        mask: the attention mask as it was given.
        tokens: which of them to record and edit.
        skip_padding: record no padding.
    """

    rows: int
    length: int
    mask: Any
    tokens: Tokens
    skip_padding: bool

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *selection: Any) -> ForwardCall:
        """Read the arguments of a call; `selection` is tokens and skip_padding."""
        given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        inputs = given.get("inputs_embeds") if given.get("input_ids") is None else given["input_ids"]
        if inputs is None:
            raise NoView("The model was called with neither input_ids nor inputs_embeds.")
        return cls(inputs.shape[0], inputs.shape[1], given.get("attention_mask"), *selection)

    def select(self, z: torch.Tensor) -> torch.Tensor:
        """Return the selected tokens of a stream: (rows, n, d), or (n, d) for a mask or without padding."""
        z = self._own(self._stream(z))
        return z[self._index(z, self.skip_padding)]

    def select_queries(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the selected queries of attention weights: (rows, heads, n, keys), or (n, heads, keys) for a mask."""
        queries = self._own(weights.transpose(1, 2))
        part = queries[self._index(queries)]
        return part.transpose(1, 2) if part.ndim == 4 else part

    def edit(self, y: torch.Tensor, change: Callable[..., torch.Tensor], *others: torch.Tensor) -> torch.Tensor:
        """Return y with the selected tokens replaced by `change` of them and of the same tokens of other streams."""
        whole = self._stream(y).clone()
        part, streams = self._own(whole), [self._own(self._stream(z)) for z in (y, *others)]
        index = self._index(part)
        before = streams[0][index]
        after = change(before, *(z[index] for z in streams[1:]))
        if not isinstance(after, torch.Tensor) or after.shape != before.shape:
            given = tuple(after.shape) if isinstance(after, torch.Tensor) else type(after).__name__
            raise BadSpec(
                f"An edit returns a tensor of the shape it is given, {tuple(before.shape)}; this one: {given}."
            )
        part[index] = after.to(y.dtype)
        return whole.reshape(y.shape)

    def _stream(self, z: torch.Tensor) -> torch.Tensor:
        """Return z as (rows, tokens, d); some models flatten rows and tokens inside a layer."""
        fits = z.shape[0] % self.rows == 0 if z.ndim == 2 else z.ndim == 3 and len(z) == self.rows
        if not z.is_floating_point() or not fits:
            raise NoView(f"A tensor {tuple(z.shape)} of {z.dtype} is no stream (rows, tokens, width).")
        return z.reshape(self.rows, -1, z.shape[-1])

    def _own(self, z: torch.Tensor) -> torch.Tensor:
        """Return the tokens of the call, without virtual ones."""
        return z[:, -min(self.length, z.shape[1]) :]

    def _index(self, z: torch.Tensor, skip_padding: bool = False) -> tuple[Any, ...]:
        """Return the index of the selected tokens of z, (rows, n, ...)."""
        n, tokens = z.shape[1], self.tokens
        index: tuple[Any, ...] = (slice(None), slice(None) if tokens is None else tokens)
        if isinstance(tokens, str):
            last = (self._real(z) * torch.arange(1, n + 1, device=z.device)).argmax(dim=1, keepdim=True)
            index = (torch.arange(self.rows, device=z.device)[:, None], last)
        elif isinstance(tokens, torch.Tensor):
            if tokens.dtype != torch.bool or tokens.shape != (self.rows, n):
                raise NoView(f"tokens is {tuple(tokens.shape)}; a mask must be boolean and {(self.rows, n)}.")
            index = (tokens.to(z.device),)
        elif tokens is not None and not isinstance(tokens, slice):
            index = (slice(None), [tokens] if isinstance(tokens, int) else list(tokens))
            if not all(-n <= i < n for i in index[1]):
                raise NoView(f"tokens = {tokens!r} is out of range for a call with {n} tokens.")
        if not skip_padding or (tokens is None and self.mask is None):
            return index
        wanted = torch.zeros(self.rows, n, dtype=torch.bool, device=z.device)
        wanted[index] = True
        return (wanted & self._real(z),)

    def _real(self, z: torch.Tensor) -> torch.Tensor:
        """Return which tokens of z are not padding, (rows, n)."""
        if self.mask is None:
            return torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)
        if not isinstance(self.mask, torch.Tensor) or self.mask.ndim != 2:
            raise NoView("Padding cannot be read from this attention mask; pass a mask (rows, tokens).")
        return self.mask[:, -z.shape[1] :].to(z.device).bool()
