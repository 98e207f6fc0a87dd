"""Finished runs with their models in memory, and texts tokenised for them.

All panels share one copy of a base, with the adapters of all runs that are in use in it. An adapter is removed with its
run, and the base freed when the last of them is released.
"""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakValueDictionary, finalize

import torch
from transformers.utils import logging

from llm_adapters_lab.core.composition import mix, stack
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.errors import BadSpec, LabError
from llm_adapters_lab.evaluation.decoding import context_length
from llm_adapters_lab.models.loading import Base, to_device
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.restoring import load_base, restore
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import prompt_ids, text_ids

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MAX_TOKENS = 512
"""Maximum length of a text. The logit lens keeps the probabilities of the whole vocabulary for each token."""


class SharedModel:
    """A base in memory with the adapters of several runs.

    Attributes:
        model: with all adapters in it.
        tokenizer: of the model.
        loaded: both, as they were loaded.
        released: the adapters that no run needs any more; they are removed at the next use.
    """

    def __init__(self, model: Any, tokenizer: Any, loaded: Base | None = None) -> None:
        """Take a model, on the device where it stays."""
        self.model, self.tokenizer, self.loaded = model, tokenizer, loaded
        self.released: list[Injection] = []
        self._lock = threading.Lock()

    @contextmanager
    def using(self, *names: str, shares: Mapping[str, float] | None = None) -> Iterator[None]:
        """Use the model alone within a context, with these adapters enabled and all others disabled.

        Args:
            names: of adapters, one after the other; without any, the base alone.
            shares: instead, weights of adapters that are mixed.

        Raises:
            BadSpec: these adapters cannot be mixed.
        """
        with self._lock:
            while self.released:
                self.released.pop().eject()
            if shares:
                mix(self.model, shares)
            else:
                stack(self.model, *names)
            yield


@dataclass(eq=False)
class LoadedRun:
    """A run with its model in memory.

    Attributes:
        run: the record.
        model: with the adapter in it, and perhaps those of other runs.
        tokenizer: of the model.
        injection: the adapter.
        shared: the model and what else is in it; by default, nothing else.
    """

    run: Run
    model: Any
    tokenizer: Any
    injection: Injection
    shared: SharedModel | None = None

    @property
    def base(self) -> SharedModel:
        """The model and what else is in it."""
        if self.shared is None:
            self.shared = SharedModel(self.model, self.tokenizer)
        return self.shared

    @property
    def lock(self) -> AbstractContextManager[None]:
        """A context in which the model is used: with this adapter only, and by nothing else at the same time."""
        return self.base.using(self.injection.name)


_known: WeakValueDictionary[tuple[str, int], LoadedRun] = WeakValueDictionary()
_bases: WeakValueDictionary[str, SharedModel] = WeakValueDictionary()
_loading = threading.Lock()
_numbers = count(1)


def load_run(run: Run) -> LoadedRun:
    """Return a run with its model, on the GPU if there is one; the base is loaded unless a panel holds it already.

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
        shared = _bases.get(base_key(run.spec))
        try:
            loaded = _load(run, shared)
        except LabError:
            if shared is None:
                raise
            loaded = _load(run, None)  # it may not get along with the other adapters
        _known[key] = loaded
        return loaded


def base_key(spec: RunSpec) -> str:
    """Return a text that is the same for runs that can share a copy of their base."""
    own = spec.id if spec.tokens else ""  # new tokens enlarge the base
    return repr((spec.base_parts, spec.dtype, spec.quantization, spec.device_map, own))


def _load(run: Run, shared: SharedModel | None) -> LoadedRun:
    name = re.sub(r"\W", "_", f"run_{run.id}_{next(_numbers)}")
    if shared is None:
        if run.spec.adapter is None or not (run.folder / "adapter" / "adapter.json").is_file():
            restore(run)  # raises
            raise BadSpec(f"The run {run.id} has no adapter, so it cannot be inspected. Pick another.")
        with _without_progress():
            base = load_base(run.spec)
        to_device(base.model, DEVICE)
        shared = SharedModel(base.model, base.tokenizer, base)
    with shared.using():
        _, injection = restore(run, shared.loaded, name)
    if injection is None or shared.tokenizer is None:
        raise BadSpec(f"The run {run.id} has no adapter or no tokenizer, so it cannot be inspected. Pick another.")
    if getattr(shared.model, "hf_device_map", None) is None:
        for adapter in injection.adapters.values():
            adapter.to(DEVICE)
    loaded = LoadedRun(run, shared.model, shared.tokenizer, injection, shared)
    finalize(loaded, shared.released.append, injection).atexit = False
    _bases.setdefault(base_key(run.spec), shared)
    return loaded


@contextmanager
def _without_progress() -> Iterator[None]:
    """Disable the progress bar of transformers, which would appear below the cell that was run last."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


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
