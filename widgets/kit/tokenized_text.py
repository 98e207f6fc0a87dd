"""Read a text as the model does: tokens, and which of them are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.decoding import context
from llm_adapters_lab.tasks.tokens import prompt_ids
from widgets.kit.model_cache import Loaded

LONGEST = 512
"""Tokens of a text. The logit lens keeps the chances of a whole vocabulary for each."""


@dataclass(frozen=True)
class Text:
    """A text as the model reads it.

    Attributes:
        ids: of its tokens, (tokens,).
        words: each token as text.
        first: position of the first token that is looked at, 1 or more: nothing predicts the one before.
        last: that of the last one.
    """

    ids: torch.Tensor
    words: list[str]
    first: int
    last: int


NOTHING = Text(torch.zeros(0, dtype=torch.long), [], 0, 0)


def read(loaded: Loaded, prompt: str, answer: str = "") -> Text:
    """Tokenise a text.

    Args:
        loaded: the model.
        prompt: all of the text, or what stands before the answer.
        answer: tokenised by itself, as in training; where there is one, it is what is looked at.

    Raises:
        BadSpec: it has too few tokens, or too many.
    """
    front: list[int] = prompt_ids(loaded.tokenizer, prompt)
    ids = [*front, *(loaded.tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else ())]
    with loaded.lock:
        most = min(LONGEST, context(loaded.model) or LONGEST)
    if not 2 <= len(ids) <= most:
        raise BadSpec(f"The text has {len(ids)} tokens; it can be looked at with 2 to {most}. Change it.")
    first = max(len(front), 1) if len(ids) > len(front) else 1
    return Text(torch.tensor(ids), words_of(loaded.tokenizer, ids), first, len(ids) - 1)


def words_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return each token as text, with the space that some tokenizers take off a word that stands alone."""
    texts = []
    for token in ids:
        text: str = tokenizer.decode([token])
        marked = str(tokenizer.convert_ids_to_tokens(token)).startswith("▁") and not text.startswith(" ")
        texts.append(f" {text}" if marked else text)
    return texts
