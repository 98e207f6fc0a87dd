"""One call of the model: which of the tokens that pass through a module are those of the call, and which are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from llm_adapters_lab.errors import CannotRecord

Tokens = Literal["last"] | int | slice | Sequence[int] | torch.Tensor | None
"""Which tokens of a call: all, the last that is no padding, a position, several, or a boolean mask (rows, tokens)."""


@dataclass(frozen=True)
class Call:
    """One call of the model.

    Attributes:
        rows: number of sequences.
        tokens: number of tokens in each; what an adapter puts in front of them does not count.
        mask: the attention mask as it was given.
    """

    rows: int
    tokens: int
    mask: Any

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Call:
        """Read the arguments of a model or its decoder."""
        ids = arguments.get("input_ids")
        inputs = arguments.get("inputs_embeds") if ids is None else ids
        if inputs is None:
            raise CannotRecord("The model was called with neither input_ids nor inputs_embeds.")
        return cls(inputs.shape[0], inputs.shape[1], arguments.get("attention_mask"))

    def select(self, z: torch.Tensor, tokens: Tokens, real: bool) -> torch.Tensor:
        """Return the chosen tokens of a stream, (rows, n, d); a boolean choice, or without padding (`real`), (n, d)."""
        z, n = self._stream(z)
        return z[:, -n:][self._index(n, tokens, real, z.device)]

    def select_queries(self, weights: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """Return the chosen queries of attention weights, (rows, heads, n, keys) or (n, heads, keys)."""
        n = min(self.tokens, weights.shape[2])
        part = weights.transpose(1, 2)[:, -n:][self._index(n, tokens, False, weights.device)]
        return part.transpose(1, 2) if part.ndim == 4 else part

    def edit(
        self, y: torch.Tensor, tokens: Tokens, change: Callable[..., torch.Tensor], *beside: torch.Tensor
    ) -> torch.Tensor:
        """Return y with the chosen tokens changed; `change` is given those of y and of the streams beside it."""
        streams = [self._stream(z)[0] for z in (y, *beside)]
        n = self._stream(y)[1]
        index = self._index(n, tokens, False, y.device)
        whole = streams[0].clone()
        whole[:, -n:][index] = change(*(z[:, -n:][index] for z in streams)).to(y.dtype)
        return whole.reshape(y.shape)

    def _stream(self, z: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return z as (rows, tokens, d) and how many of the last tokens are those of the call."""
        # Some models join rows and tokens within a layer.
        fits = z.shape[0] % self.rows == 0 if z.ndim == 2 else z.ndim == 3 and len(z) == self.rows
        if not z.is_floating_point() or not fits:
            raise CannotRecord(f"A tensor {tuple(z.shape)} of {z.dtype} is no stream (rows, tokens, width).")
        z = z.reshape(self.rows, -1, z.shape[-1])
        return z, min(self.tokens, z.shape[1])

    def _index(self, n: int, tokens: Tokens, real: bool, device: torch.device) -> tuple[Any, ...]:
        index: tuple[Any, ...]
        if tokens is None:
            index = (slice(None),)
        elif isinstance(tokens, str):
            last = (self._real(n, device) * torch.arange(1, n + 1, device=device)).argmax(dim=1)
            index = (torch.arange(self.rows, device=device)[:, None], last[:, None])
        elif isinstance(tokens, torch.Tensor):
            if tokens.dtype != torch.bool or tokens.shape != (self.rows, n):
                raise CannotRecord(f"tokens is {tuple(tokens.shape)}; a mask must be boolean and {(self.rows, n)}.")
            index = (tokens.to(device),)
        elif isinstance(tokens, slice):
            index = (slice(None), tokens)
        else:
            chosen = [tokens] if isinstance(tokens, int) else list(tokens)
            if not all(-n <= i < n for i in chosen):
                raise CannotRecord(f"tokens = {tokens!r} leaves a call that has {n} tokens.")
            index = (slice(None), chosen)
        if not real or (tokens is None and self.mask is None):
            return index
        wanted = torch.zeros(self.rows, n, dtype=torch.bool, device=device)
        wanted[index] = True
        return (wanted & self._real(n, device),)

    def _real(self, n: int, device: torch.device) -> torch.Tensor:
        """Return which of the last n tokens are no padding, (rows, n)."""
        if self.mask is None:
            return torch.ones(self.rows, n, dtype=torch.bool, device=device)
        if not isinstance(self.mask, torch.Tensor) or self.mask.ndim != 2:
            raise CannotRecord("Which tokens are padding cannot be read from this attention mask; give it as 2-D.")
        return self.mask[:, -n:].to(device).bool()
