"""Finished runs with their models in memory, and texts tokenised for them.

All panels share one copy of a model, which is freed when the last of them releases it.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.decoding import context_length
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.tasks.tokens import prompt_ids, text_ids

MAX_TOKENS = 512
"""Maximum length of a text. The logit lens keeps the probabilities of the whole vocabulary for each token."""


@dataclass(eq=False)
class LoadedRun:
    """A run with its model in memory.

    Attributes:
        run: the record.
        model: with the adapter in it.
        tokenizer: of the model.
        injection: the adapter.
        lock: to be held while the model is used, since disabling the adapter affects every user of the model.
    """

    run: Run
    model: Any
    tokenizer: Any
    injection: Injection
    lock: threading.Lock = field(default_factory=threading.Lock)


_known: WeakValueDictionary[tuple[str, int], LoadedRun] = WeakValueDictionary()
_loading = threading.Lock()


def load_run(run: Run) -> LoadedRun:
    """Return a run with its model, on the GPU if there is one; the model is loaded unless a panel holds it already.

    Raises:
        BadSpec: the run has no trained adapter.
        LabError: the base is missing or has changed.
    """
    with _loading:
        file = run.folder / "adapter" / "adapter.safetensors"
        # The time distinguishes a run that was repeated from the one in memory.
        key = (str(run.folder.resolve()), file.stat().st_mtime_ns if file.is_file() else 0)
        if (found := _known.get(key)) is not None:
            return found
        base, injection = restore(run)
        if injection is None or base.tokenizer is None:
            raise BadSpec(f"The run {run.id} has no adapter or no tokenizer, so it cannot be inspected. Pick another.")
        if torch.cuda.is_available():
            base.model.to("cuda")
        loaded = _known[key] = LoadedRun(run, base.model, base.tokenizer, injection)
        return loaded


def free_memory() -> None:
    """Free the memory of models that are no longer used; their modules hold reference cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class TokenizedText:
    """A tokenised text.

    Attributes:
        ids: token ids, of shape (tokens,).
        words: each token as text.
        first: position of the first inspected token, at least 1: nothing predicts token 0.
        last: position of the last inspected token.
    """

    ids: torch.Tensor
    words: list[str]
    first: int
    last: int


EMPTY = TokenizedText(torch.zeros(0, dtype=torch.long), [], 0, 0)


def tokenize(loaded: LoadedRun, prompt: str | Sequence[int], answer: str = "") -> TokenizedText:
    """Tokenise a text.

    Args:
        loaded: the model.
        prompt: the whole text, or what precedes the answer; or its token ids.
        answer: tokenised separately, as in training. If there is one, only its tokens are inspected.

    Raises:
        BadSpec: the text has too few or too many tokens.
    """
    front = prompt_ids(loaded.tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    ids = [*front, *text_ids(loaded.tokenizer, [answer])[0]]
    with loaded.lock:
        limit = min(MAX_TOKENS, context_length(loaded.model) or MAX_TOKENS)
    if not 2 <= len(ids) <= limit:
        raise BadSpec(f"The text has {len(ids)} tokens, but must have 2 to {limit}. Change it.")
    first = max(len(front), 1) if len(ids) > len(front) else 1
    return TokenizedText(torch.tensor(ids), token_texts(loaded.tokenizer, ids), first, len(ids) - 1)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return each token as text, with the leading space that some tokenizers strip when they decode a single token."""
    texts = []
    for token in ids:
        text: str = tokenizer.decode([token])
        marked = str(tokenizer.convert_ids_to_tokens(token)).startswith("▁") and not text.startswith(" ")
        texts.append(f" {text}" if marked else text)
    return texts
