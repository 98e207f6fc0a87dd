"""Turn rows into token ids with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""Label of a token that the loss ignores (the default of torch's cross-entropy)."""
AT_ONCE = 4096
"""Number of texts given to a tokenizer at a time."""


@dataclass(frozen=True)
class Sample:
    """A tokenised row, of one or several documents; no token sees those of another document.

    Attributes:
        id: id of the row.
        ids: token ids.
        labels: one for each token; `IGNORED` where the loss does not count.
        extras: further model inputs of the row by name, for adapters that read the call (`CallContext.inputs`).
        starts: where in `ids` each document begins, from the second on.
        group: what the row belongs to, such as its task, for adapters that have a part for each group; "": nothing.
    """

    id: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)
    starts: tuple[int, ...] = ()
    group: str = ""

    @property
    def counted(self) -> int:
        """Number of labels that the loss counts; the first token of a document is never predicted."""
        firsts = sum(self.labels[start] != IGNORED for start in self.starts)
        return sum(label != IGNORED for label in self.labels[1:]) - firsts


def documents(samples: Sequence[Sample]) -> list[Sample]:
    """Return the documents of rows as rows of their own, in order."""
    found: list[Sample] = []
    for sample in samples:
        for start, end in pairwise((0, *sample.starts, len(sample.ids))) if sample.starts else ():
            part = sample.ids[start:end], sample.labels[start:end]
            found.append(Sample(sample.id, *part, sample.extras, group=sample.group))
        found += [] if sample.starts else [sample]
    return found


def text_ids(tokenizer: Any, texts: Sequence[str], *, begin: bool = False, control: bool = False) -> list[list[int]]:
    """Return the token ids of texts, in which control tokens such as ``</s>`` are ordinary characters.

    Args:
        tokenizer: of the base.
        texts: any number of them.
        begin: let the tokenizer add its begin token; an end token that it adds too is removed.
        control: read control tokens as tokens.
    """
    found: list[list[int]] = []
    for start in range(0, len(texts), AT_ONCE):
        part = list(texts[start : start + AT_ONCE])
        found += tokenizer(part, add_special_tokens=begin, split_special_tokens=not control)["input_ids"]
    if begin:
        first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
        for ids in found:
            while len(ids) > 1 and first is not None and ids[0] == ids[1] == first:  # added by two settings
                del ids[0]
            if ids and ids[-1] == last:
                del ids[-1]
    return found


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a prompt, in training as in scoring: one begin token if the base has it, no end token."""
    return text_ids(tokenizer, [text], begin=True)[0]


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the id of every control token of a tokenizer, by its text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return {str(token): number for number, token in added.items() if token.special} | dict(named)


def pad(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"]) -> torch.Tensor:
    """Return rows of different lengths as one (rows, longest) tensor of int64, padded with `value`."""
    import torch  # here, so that listing the tasks does not load it

    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    pairs = zip(rows, fill, strict=True) if side == "right" else zip(fill, rows, strict=True)
    return torch.tensor([[*first, *second] for first, second in pairs], dtype=torch.long)
