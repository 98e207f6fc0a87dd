"""Turn rows into token ids with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""Label of a token that the loss ignores (the default of torch's cross-entropy)."""


@dataclass(frozen=True)
class Sample:
    """A tokenised row.

    Attributes:
        id: id of the row.
        ids: token ids.
        labels: as many labels; `IGNORED` where the loss does not count.
        extras: further model inputs of the row by name, for adapters that read the call (`CallContext.inputs`).
    """

    id: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)

    @property
    def counted(self) -> int:
        """Number of labels that the loss counts; the first token is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a prompt, in training as in scoring: without the end token that some tokenizers add."""
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def encode(
    tokenizer: Any, examples: Sequence[Example], template: str, max_tokens: int, loss_on: Literal["answer", "all"]
) -> tuple[list[Sample], int]:
    """Tokenise rows for training: prompt, answer, end token.

    Args:
        tokenizer: tokenizer of the base.
        examples: the rows.
        template: prompt template.
        max_tokens: longer rows are dropped, since truncation would cut the answer.
        loss_on: count the loss on the answer and the end token, or on all tokens.

    Returns:
        The samples, and the number of dropped rows.

    Raises:
        BadSpec: no row is short enough.
    """
    samples = []
    for example in examples:
        head = prompt_ids(tokenizer, prompts.prompt(example, template))
        answer = tokenizer(prompts.target(example, template), add_special_tokens=False)["input_ids"]
        tail = (*answer, tokenizer.eos_token_id)
        ids = (*head, *tail)
        if len(ids) <= max_tokens:
            samples.append(Sample(example.id, ids, ids if loss_on == "all" else (*[IGNORED] * len(head), *tail)))
    if not samples:
        raise BadSpec(f"All {len(examples)} training rows are longer than data.max_tokens = {max_tokens}. Raise it.")
    return samples, len(examples) - len(samples)


def pad(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"]) -> torch.Tensor:
    """Return rows of different lengths as one (rows, longest) tensor of int64, padded with `value`."""
    import torch  # here, so that listing the tasks does not load it

    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    pairs = zip(rows, fill, strict=True) if side == "right" else zip(fill, rows, strict=True)
    return torch.tensor([[*first, *second] for first, second in pairs], dtype=torch.long)
