"""Answers to one prompt, generated token by token, with what each token was chosen from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from llm_adapters_lab.evaluation.decoding import Sampler, StopRule, Watched, check_fits, stream
from llm_adapters_lab.tasks.formats import Format
from widgets.kit.loaded_runs import SharedModel, token_texts

Shown = dict[str, Any]
"""A token as `AnswerGrid` shows it: its text `t`, its probability `p`, the candidates `c` as pairs of text and
probability, and as `k` its kind: "" for text, "control" for a control token, "after" for what follows the answer."""
SLICE = 0.03
"""Seconds for which an answer is generated before the next one gets its turn."""


@dataclass(frozen=True)
class Voice:
    """What answers: a base, perhaps with adapters.

    Attributes:
        shared: the model.
        names: of the adapters that are enabled.
        shares: instead, weights of adapters that are mixed.
    """

    shared: SharedModel
    names: tuple[str, ...] = ()
    shares: Mapping[str, float] | None = None

    def using(self) -> AbstractContextManager[None]:
        """Use the model within a context.

        Raises:
            BadSpec: the adapters cannot be mixed.
        """
        return self.shared.using(*self.names, shares=self.shares)


class Answer:
    """One answer so far.

    Attributes:
        tokens: their ids.
        shown: the same tokens for `AnswerGrid`.
        seconds: of computation.
        done: whether it has ended.
    """

    def __init__(self, voice: Voice, ids: list[int], form: Format | None, limit: int, sample: Sampler) -> None:
        """Prepare an answer; the model runs in `advance`.

        Args:
            voice: what answers.
            ids: token ids of the prompt.
            form: how it is written, for what ends an answer; without one, only the end token and `limit` do.
            limit: maximum number of tokens.
            sample: chooses each token.
        """
        self.voice, self.ids, self.form, self.limit = voice, ids, form, limit
        self.tokens: list[int] = []
        self.shown: list[Shown] = []
        self.seconds, self.done = 0.0, False
        self._watched = Watched(sample)
        self._stream: Iterator[int] | None = None
        self._from = self._read = 0

    @property
    def text(self) -> str:
        """The answer as it is scored."""
        if self.form:
            return self.form.answer_text(self.tokens)
        text: str = self.voice.shared.tokenizer.decode(self.tokens, skip_special_tokens=True)
        return text

    def advance(self, stopped: Callable[[], bool], seconds: float = SLICE) -> None:
        """Generate for some seconds; called in a thread.

        Args:
            stopped: whether to stop before the next token.
            seconds: of generating.

        Raises:
            BadSpec: the prompt is empty or too long, or the adapters cannot be mixed.
            NotFinite: the logits are nan or infinite.
        """
        began, shared = time.perf_counter(), self.voice.shared
        with self.voice.using():
            if self._stream is None:
                check_fits(shared.model, self.ids, self.limit)
                ended = StopRule(shared.model, shared.tokenizer, self.form)
                self._stream = stream(shared.model, self.ids, self.limit, ended, self._watched)
            while not self.done and not stopped():
                token = next(self._stream, None)
                if token is None:
                    self.done = True
                    break
                self._take(token)
                if time.perf_counter() - began > seconds:
                    break
        self.seconds += time.perf_counter() - began
        if self.done:
            self._mark_the_end()

    def _take(self, token: int) -> None:
        tokenizer = self.voice.shared.tokenizer
        self.tokens.append(token)
        control = token in tokenizer.all_special_ids
        ids = [token for token, _ in self._watched.candidates]
        pairs = zip(token_texts(tokenizer, ids), self._watched.candidates, strict=True)
        text = token_texts(tokenizer, [token])[0] if control else self._piece()
        candidates = [[text, round(chance, 5)] for text, (_, chance) in pairs]
        chance = round(self._watched.probability, 5)
        self.shown.append({"t": text, "p": chance, "c": candidates, "k": "control" if control else ""})

    def _piece(self) -> str:
        """Return the text that the last token adds; the bytes of one character may span several tokens."""
        tokenizer = self.voice.shared.tokenizer
        before: str = tokenizer.decode(self.tokens[self._from : self._read], skip_special_tokens=True)
        now: str = tokenizer.decode(self.tokens[self._from :], skip_special_tokens=True)
        if now.endswith("\ufffd"):
            return ""
        self._from, self._read = self._read, len(self.tokens)
        return now[len(before) :]

    def _mark_the_end(self) -> None:
        """Mark the tokens after the end of the answer, such as a repeated header."""
        kept, seen = self.text, ""
        for each in self.shown:
            if each["k"] == "":
                each["k"] = "after" if len(seen.strip()) >= len(kept) and each["t"].strip() else ""
                seen += each["t"]
