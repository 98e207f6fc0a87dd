"""Packing: rows laid end to end without padding, with a common beginning stored and computed only once.

Three rows `T T a`, `T T b b` and `c` become one sequence of six tokens in which every token follows its parent:

    token     T T a b b c        positions   0 1 2 2 3 0
    rows      [0 1 2 ·] [0 1 3 4] [5 · · ·]        ·: empty

Everything that treats tokens separately (projections, norms, adapters, the output head) runs on the sequence. Only
attention runs on rows: queries, keys and values are gathered by `groups` of rows of similar length, which are causal
and padded on the right, where no token looks, so no mask is needed; outputs are gathered back by `places`. Gradients of
copies add up.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llm_adapters_lab.tasks.tokens import IGNORED, Sample, pad
from llm_adapters_lab.training.batches import send
from llm_adapters_lab.training.recompute import recomputable

NAME = "lab_packed"
"""Name of the attention below in transformers. No mask function is registered for it, so models make no mask."""

GROUP_COST = 4096
"""What attending in one more group costs, as a number of pairs of tokens."""


@dataclass(frozen=True)
class Packed:
    """B rows, of which the longest has L tokens, as one sequence of T tokens.

    Attributes:
        ids: token ids, (1, T).
        positions: position of each token in its row, (1, T).
        rows: index of the token at each column of each row, (B, L); 0 after the end of a row.
        token_rows: row of each token (the first one of a shared token), (T,).
        groups: the same rows for attention, those of similar length together, (B_g, L_g) each.
        places: index of each token in the flattened groups, laid end to end, (T,).
        reads: indices of the tokens that predict the counted labels, (N,).
        labels: those labels, row by row, (N,).
        read: the tokens among `reads`, each once and in order.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    token_rows: torch.Tensor
    groups: tuple[torch.Tensor, ...]
    places: torch.Tensor
    reads: torch.Tensor
    labels: torch.Tensor
    read: torch.Tensor

    @cached_property
    def columns(self) -> torch.Tensor:
        """The groups, flattened and laid end to end."""
        return torch.cat([rows.flatten() for rows in self.groups])

    @property
    def counts(self) -> torch.Tensor:
        """The number of rows that each token is part of, (T,)."""
        # An empty column holds a token that is the first of its row.
        own = self.positions[0][self.rows] == torch.arange(self.rows.shape[1], device=self.rows.device)
        return torch.zeros_like(self.token_rows).scatter_add(0, self.rows.flatten(), own.flatten().long())

    def repeat(self, count: int) -> Packed:
        """Return `count` copies of the rows, one after the other; the copies share no tokens."""
        if count == 1:
            return self
        tokens, rows = self.ids.shape[1], len(self.rows)
        sizes = torch.tensor([group.numel() for group in self.groups], device=self.ids.device)
        # Within a group, its copies are one after the other.
        group = torch.bucketize(self.places, sizes.cumsum(0), right=True)
        places = self.places + (count - 1) * (sizes.cumsum(0) - sizes)[group]

        def copies(indices: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
            return torch.cat([indices + i * step for i in range(count)])

        return Packed(
            ids=self.ids.repeat(1, count),
            positions=self.positions.repeat(1, count),
            rows=copies(self.rows, tokens),
            token_rows=copies(self.token_rows, rows),
            groups=tuple(copies(group, tokens) for group in self.groups),
            places=copies(places, sizes[group]),
            reads=copies(self.reads, tokens),
            labels=self.labels.repeat(count),
            read=copies(self.read, tokens),
        )


def pack(samples: Sequence[Sample], *, share: bool, device: torch.device | str = "cpu") -> Packed:
    """Lay rows end to end.

    Args:
        samples: the rows.
        share: store tokens of a common beginning once, in rows of one group.
        device: of the result.
    """
    known: dict[tuple[int, int], int] = {}
    ids: list[int] = []
    positions: list[int] = []
    token_rows: list[int] = []
    rows: list[list[int]] = []
    reads: list[int] = []
    labels: list[int] = []
    roots: dict[str, int] = {}
    for number, sample in enumerate(samples):
        # A token is identified by its parent and its id. Rows that share nothing have roots of their own, and so have
        # groups, for which an adapter may compute different things.
        parent, row = -1 - (roots.setdefault(sample.group, len(roots)) if share else number), []
        for column, (token, label) in enumerate(zip(sample.ids, sample.labels, strict=True)):
            if column and label != IGNORED:
                reads.append(parent)
                labels.append(label)
            if (parent, token) not in known:
                known[parent, token] = len(ids)
                ids.append(token)
                positions.append(column)
                token_rows.append(number)
            parent = known[parent, token]
            row.append(parent)
        rows.append(row)
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    groups = [order[part] for part in _similar([len(rows[number]) for number in order])]
    starts, start = {}, 0
    for group in groups:
        for number in group:
            starts[number], start = start, start + len(rows[group[0]])
    places = [starts[number] + column for number, column in zip(token_rows, positions, strict=True)]
    indices = {"token_rows": token_rows, "places": places, "reads": reads, "labels": labels, "read": sorted({*reads})}
    tensors = {
        name: torch.tensor(values, dtype=torch.long)
        for name, values in {"ids": [ids], "positions": [positions], **indices}.items()
    }
    tensors["rows"] = pad(rows, 0, "right")
    for_attention = (pad([rows[number] for number in group], 0, "right") for group in groups)
    return Packed(
        **{name: send(tensor, device) for name, tensor in tensors.items()},
        groups=tuple(send(group, device) for group in for_attention),
    )


def _similar(lengths: Sequence[int]) -> list[slice]:
    """Split lengths, the longest first, where that saves more attention to padding than a group costs."""
    found, waiting = [], [(0, len(lengths))]
    while waiting:
        start, end = waiting.pop()
        saved = {cut: (end - cut) * (lengths[start] ** 2 - lengths[cut] ** 2) for cut in range(start + 1, end)}
        if saved and saved[cut := max(saved, key=saved.__getitem__)] > GROUP_COST:
            waiting += [(cut, end), (start, cut)]
        else:
            found.append(slice(start, end))
    return found


_RUNNING: dict[int, Packed] = {}
"""The rows that are running, by the id of the config that the attention modules of their model share."""


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attend within rows; query, key and value are (1, heads, T, width), the result is (1, T, heads, width)."""
    packed = _RUNNING[id(module.config)]
    groups = zip(*(_to_rows(part, packed) for part in (query, key, value)), strict=True)
    outputs = [sdpa_attention_forward(module, q, k, v, None, **options)[0].flatten(0, 1) for q, k, v in groups]
    return torch.cat(outputs).index_select(0, packed.places)[None], None


def _to_rows(part: torch.Tensor, packed: Packed) -> list[torch.Tensor]:
    """Gather (1, heads, T, width) into (B_g, heads, L_g, width) for each group."""

    def choose(part: torch.Tensor) -> torch.Tensor:
        # Tokens first, which is the memory order that the projections leave.
        return part[0].transpose(0, 1).index_select(0, packed.columns)

    chosen = recomputable(choose(part), partial(choose, part.detach()))
    each = torch.split(chosen, [rows.numel() for rows in packed.groups])
    return [x.view(*rows.shape, *x.shape[1:]).transpose(1, 2) for x, rows in zip(each, packed.groups, strict=True)]


AttentionInterface.register(NAME, _attend)


def packing_obstacle(model: nn.Module, config: Any, longest: int) -> str:
    """Return why rows of up to `longest` tokens cannot be packed for a model, or ""; `config` is its decoder's."""
    # FSDP subclasses the class of the model.
    kind = next(c for c in type(model).__mro__ if not c.__module__.startswith("torch."))
    name = kind.__name__
    if config._attn_implementation != "sdpa":
        return f"the attention of {name} is {config._attn_implementation}, not sdpa"
    if "ALL_ATTENTION_FUNCTIONS" not in vars(sys.modules[kind.__module__]):
        return f"{name} does not support custom attention functions"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{name} takes no position ids"
    names = ("sliding_window", "window_size", "attention_chunk_size")
    window = min((w for key in names if isinstance(w := getattr(config, key, None), int)), default=longest)
    if longest > window:
        return f"a row of {longest} tokens is longer than the attention window of {name} ({window})"
    return ""


@contextmanager
def packed_attention(config: Any, packed: Packed) -> Iterator[Callable[[Packed], None]]:
    """Make a model, whose decoder has this config, attend within rows; also in backward passes that recompute.

    Yields a function that replaces the rows by others.
    """
    before, config._attn_implementation = config._attn_implementation, NAME
    _RUNNING[id(config)] = packed
    try:
        yield partial(_RUNNING.__setitem__, id(config))
    finally:
        config._attn_implementation = before
        del _RUNNING[id(config)]
