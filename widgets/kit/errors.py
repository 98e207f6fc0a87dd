"""Guard: shows what a callback raises. A notebook shows it nowhere: a failing click would look like a lost one."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.markup import el

_LOOK = "color: var(--lab-error, var(--jp-error-color1, #b00020)); line-height: 1.4"
_WRAP = "white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere; margin: 0"
_WRAP += "; max-height: 24em; overflow: auto"


class Guarded(Protocol):
    """What has a place for messages.

    Attributes:
        problem: a widget whose `value` is markup.
        problem_of: name of the callback that has failed; "" for none.
    """

    problem: Any
    problem_of: str


P = ParamSpec("P")
G = TypeVar("G", bound=Guarded)


def guarded(callback: Callable[Concatenate[G, P], object]) -> Callable[Concatenate[G, P], None]:
    """Decorate a method so that its exceptions stand in the panel, until the same method succeeds."""

    @functools.wraps(callback)
    def call(self: G, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(self, *args, **kwargs)
        except Exception as error:
            self.problem.value, self.problem_of = error_markup(error), callback.__name__
        else:
            if self.problem_of == callback.__name__:
                self.problem.value, self.problem_of = "", ""

    return call


def error_markup(error: Exception) -> str:
    """Return the markup of an error: the lab's own in its words, any other with where it arose."""
    if isinstance(error, LabError):
        return message(str(error))
    where = "".join(traceback.format_exception(error))
    return message(f"{type(error).__name__}: {error}", el("details", el("summary", "where"), el("pre", where)))


def message(text: str, *more: str) -> str:
    """Return the markup of an error message; "" for no text. This is where it is escaped."""
    if not text:
        return ""
    return el("div", el("pre", f"✗ {text}", style=_WRAP), *more, style=_LOOK, role="alert")


def note(text: str) -> str:
    """Return the markup of a line of help; "" for no text."""
    look = "color: var(--jp-ui-font-color2, #5b6570); line-height: 1.4; font-size: 90%"
    return el("div", text, style=look) if text else ""


def why(error: Exception) -> str:
    """Return the words for an error: its own if it is one of the lab, else with its kind in front."""
    return str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
