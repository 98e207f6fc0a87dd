"""Rows laid end to end: no padding, and what rows begin with alike stands, and is computed, once.

Three rows `T T a`, `T T b b` and `c` become one sequence of six tokens in which a token follows its parent:

    token     T T a b b c        positions   0 1 2 2 3 0
    rows      [0 1 2 ·] [0 1 3 4] [5 · · ·]        ·: nothing there

Everything that treats tokens one by one (projections, norms, adapters, the output head) runs on the sequence. Attention
alone runs on rows: queries, keys and values are copied to `rows`, which are causal and padded on the right, where no
token looks, so that it needs no mask; the outputs are taken back from `places`. Gradients of copies add up.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llm_adapters_lab.tasks.tokens import IGNORED, Sample, pad
from llm_adapters_lab.training.batches import send

NAME = "lab_packed"
"""Under which the attention below is known to transformers; as it registers no mask, models make none."""


@dataclass(frozen=True)
class Packed:
    """Rows as one sequence of T tokens; the longest of the B rows has L.

    Attributes:
        ids: token ids, (1, T).
        positions: of each token in its row, (1, T).
        rows: number of the token at each column of each row, (B, L); 0 where the row has ended.
        places: column of the flattened rows where each token stands (for a shared one, the first), (T,).
        reads: numbers of the tokens that predict the counted labels, (N,).
        labels: those labels, row by row, (N,).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor
    reads: torch.Tensor
    labels: torch.Tensor

    def times(self, count: int) -> Packed:
        """Return the same rows so many times, one copy after the other; copies share nothing."""
        if count == 1:
            return self

        def again(numbers: torch.Tensor, each: int) -> torch.Tensor:
            return torch.cat([numbers + i * each for i in range(count)])

        tokens = self.ids.shape[1]
        return Packed(
            ids=self.ids.repeat(1, count),
            positions=self.positions.repeat(1, count),
            rows=again(self.rows, tokens),
            places=again(self.places, self.rows.numel()),
            reads=again(self.reads, tokens),
            labels=self.labels.repeat(count),
        )


def pack(samples: Sequence[Sample], *, share: bool, device: torch.device | str = "cpu") -> Packed:
    """Lay rows end to end.

    Args:
        samples: the rows.
        share: let tokens that rows begin with alike stand once.
        device: of the result.
    """
    longest = max(len(sample.ids) for sample in samples)
    known: dict[tuple[int, int], int] = {}
    ids: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    rows: list[list[int]] = []
    reads: list[int] = []
    labels: list[int] = []
    for number, sample in enumerate(samples):
        # A token is known by its parent and its id. Rows that share nothing have roots of their own.
        parent, row = -1 if share else -1 - number, []
        for column, token in enumerate(sample.ids):
            if (parent, token) not in known:
                known[parent, token] = len(ids)
                ids.append(token)
                positions.append(column)
                places.append(number * longest + column)
            if column and sample.labels[column] != IGNORED:
                reads.append(parent)
                labels.append(sample.labels[column])
            parent = known[parent, token]
            row.append(parent)
        rows.append(row)
    made = {"ids": [ids], "positions": [positions], "places": places, "reads": reads, "labels": labels}
    tensors = {name: torch.tensor(values, dtype=torch.long) for name, values in made.items()}
    tensors["rows"] = pad(rows, 0, "right")
    return Packed(**{name: send(tensor, device) for name, tensor in tensors.items()})


_RUNNING: dict[int, Packed] = {}
"""What runs now, by the identity of the configuration that the attention modules of its model share."""


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attend within rows; query, key and value are (1, heads, T, width), the result is (1, T, heads, width)."""
    packed = _RUNNING[id(module.config)]
    query, key, value = (_to_rows(part, packed.rows) for part in (query, key, value))
    out, _ = sdpa_attention_forward(module, query, key, value, None, **options)
    return out.flatten(0, 1).index_select(0, packed.places)[None], None


def _to_rows(part: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Copy (1, heads, T, width) to (B, heads, L, width)."""
    # Token first: it is how the projections have left the numbers in memory.
    chosen = part[0].transpose(0, 1).index_select(0, rows.flatten())
    return chosen.view(*rows.shape, *chosen.shape[1:]).transpose(1, 2)


AttentionInterface.register(NAME, _attend)


def why_not(model: nn.Module, config: Any, longest: int) -> str:
    """Say why rows cannot be packed for a model, or nothing if they can.

    Args:
        model: a causal language model.
        config: of its decoder.
        longest: tokens of the longest row.
    """
    # FSDP puts a class of its own in front.
    kind = next(c for c in type(model).__mro__ if not c.__module__.startswith("torch."))
    name = kind.__name__
    if config._attn_implementation != "sdpa":
        return f"the attention of {name} is {config._attn_implementation}, not sdpa"
    if "ALL_ATTENTION_FUNCTIONS" not in vars(sys.modules[kind.__module__]):
        return f"{name} lets no other attention take the place of its own"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{name} takes no positions"
    names = ("sliding_window", "window_size", "attention_chunk_size")
    window = min((w for key in names if isinstance(w := getattr(config, key, None), int)), default=longest)
    if longest > window:
        return f"a row of {longest} tokens is longer than the window of {window} that {name} has"
    return ""


@contextmanager
def running(config: Any, packed: Packed) -> Iterator[None]:
    """Let a model attend within rows, also in backward passes that recompute.

    Args:
        config: of its decoder.
        packed: what runs through it.
    """
    before, config._attn_implementation = config._attn_implementation, NAME
    _RUNNING[id(config)] = packed
    try:
        yield
    finally:
        config._attn_implementation = before
        del _RUNNING[id(config)]
