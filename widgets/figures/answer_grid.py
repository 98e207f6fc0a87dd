"""Answers side by side, token by token: hover or focus shows what each token was chosen from."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

from widgets.kit.elements import look, static


class AnswerGrid(anywidget.AnyWidget):
    """Columns with the turns of a conversation, of which answers grow while they are generated.

    Attributes:
        columns: what answers, each {"key", "name", "title", "colour", "note", "removable"}.
        turns: by key, the turns of each column: {"asked", "tokens", "verdict", "foot", "good"} with the tokens of
            `kit.answers.Answer.shown`, or "text" or "problem" instead of them.
        part: what has been added since the last change: a list of turns with "key", "turn" (number) and "from" (number
            of the first of its tokens).
        tinted: whether tokens are tinted by their probability.
        removed: key of the column that the user has removed.
    """

    _esm, _css = static("answer_grid.js"), look("playground.css")
    columns: Any = traitlets.List().tag(sync=True)
    turns: Any = traitlets.Dict().tag(sync=True)
    part: Any = traitlets.List().tag(sync=True)
    tinted = traitlets.Bool(True).tag(sync=True)
    removed = traitlets.Unicode("").tag(sync=True)

    def show(self, columns: list[dict[str, Any]], turns: dict[str, list[dict[str, Any]]]) -> None:
        """Show columns and their turns."""
        with self.hold_sync():
            self.columns, self.turns = columns, turns
