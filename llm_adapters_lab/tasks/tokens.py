"""Rows as token ids with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example

IGNORED = -100
"""Label of a token that the loss does not count (the value that torch's cross-entropy ignores)."""


@dataclass(frozen=True)
class Sample:
    """One tokenised row: token ids and, of the same length, the labels."""

    id: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def counted(self) -> int:
        """Number of labels the loss counts; the first token is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a prompt, as they are in training and in scoring."""
    ids: list[int] = tokenizer(text)["input_ids"]
    # Some tokenizers close every text; a prompt goes on.
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def encode(
    tokenizer: Any, examples: Sequence[Example], template: str, max_tokens: int, loss_on: Literal["answer", "all"]
) -> tuple[list[Sample], int]:
    """Tokenise rows for training: prompt, answer, end token.

    Args:
        tokenizer: of the base.
        examples: the rows.
        template: prompt form.
        max_tokens: rows longer than this are left out, because a cut row would lose its answer.
        loss_on: count the loss on the answer with its end token, or on everything.

    Returns:
        The samples, and the number of rows left out.

    Raises:
        BadSpec: no row is short enough.
    """
    samples = []
    for example in examples:
        head = prompt_ids(tokenizer, prompts.prompt(example, template))
        tail = tokenizer(prompts.target(example, template), add_special_tokens=False)["input_ids"]
        tail = [*tail, tokenizer.eos_token_id]
        ids = (*head, *tail)
        if len(ids) <= max_tokens:
            labels = ids if loss_on == "all" else (*[IGNORED] * len(head), *tail)
            samples.append(Sample(example.id, ids, tuple(labels)))
    if not samples:
        raise BadSpec(f"All {len(examples)} training rows are longer than data.max_tokens = {max_tokens}. Raise it.")
    return samples, len(examples) - len(samples)


def pad(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"]) -> torch.Tensor:
    """Return rows of different lengths as one (rows, longest) tensor."""
    longest = max(map(len, rows))
    filled = [
        [*row, *[value] * (longest - len(row))] if side == "right" else [*[value] * (longest - len(row)), *row]
        for row in rows
    ]
    return torch.tensor(filled, dtype=torch.long)
