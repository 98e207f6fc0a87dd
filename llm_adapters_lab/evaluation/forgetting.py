"""Forgetting: how much the loss per token rises on a text that has nothing to do with what was learnt.

Two texts come with the lab. "stories" is for `nano`: documents of the grammar that it was pre-trained on, from another
seed (``benchmarks/nano/corpus.py``, seed 2026). "prose" is for models of English: a passage of "The Ponds" in Thoreau's
"Walden" (1854), which is in the public domain, a little shortened. Models may know it by heart, so that losses on it
compare what is done to one base, not bases.
"""

from __future__ import annotations

from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from llm_adapters_lab.core.weights import device
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.tasks.tokens import text_ids

TEXTS = ("stories", "prose")
"""The texts that come with the lab."""
WINDOW = 128
"""Number of tokens that are read together; the first of a window is not predicted."""


def read_text(name: str) -> str:
    """Return a text of the lab by its name, or the content of a file.

    Raises:
        BadSpec: there is neither, or the file is no text.
    """
    if name in TEXTS:
        return (resources.files(__package__) / "texts" / f"{name}.txt").read_text(encoding="utf-8")
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        known = " nor ".join(TEXTS)
        raise BadSpec(f"eval.forgetting = {name!r} is neither {known} nor a text file ({error}).") from error


def windows(tokenizer: Any, text: str, context: int | None = None) -> list[list[int]]:
    """Return the token ids of a text in pieces of at most `WINDOW` tokens, and half the context of a model.

    Raises:
        BadSpec: the text has no two tokens.
    """
    ids = [*chain(*text_ids(tokenizer, text.splitlines(keepends=True)))]
    size = min(WINDOW, (context or WINDOW) // 2)
    found = [piece for start in range(0, len(ids), size) if len(piece := ids[start : start + size]) > 1]
    if not found:
        raise BadSpec("The text of eval.forgetting has no two tokens, so that nothing can be predicted.")
    return found


@torch.no_grad()
def loss_per_token(model: Any, pieces: list[list[int]]) -> tuple[float, int]:
    """Return the mean negative log-likelihood of the tokens of some pieces, in nats, and their number.

    Args:
        model: a causal language model in evaluation mode.
        pieces: from `windows`.
    """
    total, count = 0.0, 0
    for piece in pieces:
        ids = torch.tensor([piece], device=device(model))
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
        total += float(cross_entropy(logits.float(), ids[0, 1:], reduction="sum"))
        count += len(piece) - 1
    return total / count, count
