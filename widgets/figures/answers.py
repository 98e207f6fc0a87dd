"""Two answers side by side, of the base and with the adapter, growing token by token by turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets as W

from llm_adapters_lab.evaluation.decoding import Ended
from llm_adapters_lab.evaluation.streaming import Pick, check_room, said, stream
from llm_adapters_lab.markup import el
from llm_adapters_lab.tasks.tokens import prompt_ids
from widgets.kit.model_cache import Loaded

_BOX = "border: 1px solid var(--jp-border-color2, #bdbdbd); margin: 0; padding: 6px 8px; line-height: 1.4; "
_BOX += "font-family: var(--jp-code-font-family, monospace); white-space: pre-wrap; overflow-wrap: anywhere; "
_BOX += "max-height: 28em; overflow: auto"


def boxed(text: str, least: str = "9em") -> str:
    """Return the markup of a text that is shown as it stands, in a box of some least height."""
    return el("pre", text, style=f"{_BOX}; min-height: {least}", tabindex="0")


class Answer:
    """An answer that grows.

    Attributes:
        name: whose it is.
        text: so far.
        box: shows it.
        foot: shows what there is to say about it.
        widget: the column.
        tokens: so far.
        seconds: that the model has worked on it.
    """

    def __init__(self, name: str) -> None:
        """Be empty."""
        self.name: Any = W.Label(name, style={"font_weight": "bold"})
        self.box, self.foot = W.HTML(), W.Label()
        column = W.Layout(flex="1 1 320px", min_width="0")
        self.widget: Any = W.VBox([self.name, self.box, self.foot], layout=column)
        self.clear()

    def clear(self) -> None:
        """Be empty again."""
        self.tokens: list[int] = []
        self.seconds = 0.0
        self.show("", "")

    def show(self, text: str, more: str) -> None:
        """Show the text, and below it counts and what else there is to say."""
        speed = len(self.tokens) / max(self.seconds, 1e-9)
        words = f"{len(self.tokens)} tokens · {speed:.0f} tokens/s" if self.tokens else ""
        self.text, self.box.value = text, boxed(text)
        self.foot.value = " · ".join(part for part in (words, more) if part)


class SideBySide:
    """Both answers.

    Attributes:
        base: without the adapter.
        adapted: with it.
        stopped: set it to stop at the next token.
        widget: two columns where there is room, else one below the other.
    """

    def __init__(self) -> None:
        """Be empty."""
        self.base, self.adapted, self.stopped = Answer("base"), Answer("with the adapter"), False
        row = W.Layout(flex_flow="row wrap", grid_gap="0 16px")
        self.widget: Any = W.HBox([self.base.widget, self.adapted.widget], layout=row)

    def clear(self) -> None:
        """Be empty again."""
        self.base.clear()
        self.adapted.clear()

    async def answer(
        self,
        loaded: Loaded,
        prompt: str,
        template: str | None,
        limit: int,
        make_pick: Callable[[], Pick],
        judge: Callable[[str], str],
    ) -> None:
        """Let both answer a prompt, until both have ended or `stopped` is set.

        The model takes its steps in another thread, one at a time; between two of them the loop has its turn.

        Args:
            loaded: the model.
            prompt: the text it is given.
            template: prompt form, for its stop strings; None: nothing but end token and limit ends an answer.
            limit: most tokens of an answer.
            make_pick: makes what chooses the tokens of one answer.
            judge: what to say about an answer that is complete.

        Raises:
            BadSpec: the prompt is empty or too long.
        """
        ids = prompt_ids(loaded.tokenizer, prompt)
        await asyncio.to_thread(_check, loaded, ids, limit)
        ended = Ended(loaded.model, loaded.tokenizer, template)
        going = [(side, stream(loaded.model, ids, limit, ended, make_pick())) for side in (self.base, self.adapted)]
        while going:
            for side, tokens in list(going):
                began = time.perf_counter()
                token = await asyncio.to_thread(_step, loaded, tokens, side is self.base)
                if self.stopped:
                    return
                side.seconds += time.perf_counter() - began
                if token is not None:
                    side.tokens.append(token)
                text = said(loaded.tokenizer, side.tokens, template)
                if token is None:
                    going.remove((side, tokens))
                    side.show(text, judge(text))
                else:
                    side.show(text.rstrip("\ufffd"), "")  # the bytes of a letter may come in several tokens


def _check(loaded: Loaded, ids: list[int], limit: int) -> None:
    with loaded.lock:
        check_room(loaded.model, ids, limit)


def _step(loaded: Loaded, tokens: Iterator[int], bare: bool) -> int | None:
    """Return the next token of an answer, None after its end."""
    with loaded.lock:
        if not bare:
            return next(tokens, None)
        with loaded.injection.disabled():
            return next(tokens, None)
