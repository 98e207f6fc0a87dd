"""The base class of all panels, and how panels show errors and notes."""

from __future__ import annotations

import asyncio
import functools
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import ipywidgets as W

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.markup import Html, el
from widgets.kit.elements import AccessibleNames, styles

P = ParamSpec("P")
T = TypeVar("T", bound="Panel")


def page(*children: Any) -> Any:
    """Return widgets below each other, with the stylesheets and names for screen readers."""
    hidden = W.Layout(display="none")
    style = W.HTML(el("style", Html(styles())), layout=hidden)
    return W.VBox([style, AccessibleNames(layout=hidden), *children]).add_class("lab")


def error_markup(error: Exception) -> str:
    """Return the markup of an error: the message of a `LabError`, any other with its traceback."""
    if isinstance(error, LabError):
        return message(str(error))
    trace = "".join(traceback.format_exception(error))
    return message(error_text(error), el("details", el("summary", "traceback"), el("pre", trace)))


@contextmanager
def errors_in(widget: Any) -> Iterator[None]:
    """Show an exception in a widget: a notebook does not show the exceptions of callbacks."""
    try:
        yield
    except Exception as error:
        widget.value = message(error_text(error))


def message(text: str, *more: str) -> str:
    """Return the markup of an error message followed by other markup; "" for no text. Escapes the text."""
    return el("div", el("pre", f"✗ {text}"), *more, class_="lab-error", role="alert") if text else ""


def note(text: str) -> str:
    """Return the markup of a line of help; "" for no text."""
    return el("div", text, class_="lab-note") if text else ""


def error_text(error: Exception) -> str:
    """Return the message of an error, preceded by its class unless it is a `LabError`."""
    return str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"


def guarded(callback: Callable[Concatenate[T, P], object]) -> Callable[Concatenate[T, P], None]:
    """Decorate a method so that its exception is shown in the panel until the same method succeeds.

    A notebook does not show exceptions of callbacks: a click that fails would appear to do nothing.
    """

    @functools.wraps(callback)
    def call(self: T, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(self, *args, **kwargs)
        except Exception as error:
            self.problem.value, self.problem_of = error_markup(error), callback.__name__
        else:
            if self.problem_of == callback.__name__:
                self.problem.value, self.problem_of = "", ""

    return call


def schedule(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Schedule a coroutine in the kernel's event loop; outside a kernel, run it and what it schedules to completion."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(_complete(work))
        return
    task = loop.create_task(work())
    _tasks.add(task)  # the loop itself keeps only a weak reference
    task.add_done_callback(_tasks.discard)


async def _complete(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await work()
    while _tasks:
        await asyncio.gather(*_tasks)


_tasks: set[asyncio.Task[None]] = set()


class Silent:
    """Base of classes whose widgets are changed both by the user and by code.

    Attributes:
        quiet: True while code changes them; callbacks for changes by the user return at once.
    """

    quiet = False

    @contextmanager
    def silently(self) -> Iterator[None]:
        """Change widgets without triggering the callbacks for the user."""
        before, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = before


class Panel(Silent):
    """A widget with observers, a place for errors, and polling.

    Attributes:
        widget: the root widget, made by the subclass. Displaying the panel displays it with the stylesheet.
        problem: the message of the last callback that failed, see `guarded`.
        problem_of: name of that callback; "" for none.
    """

    widget: Any

    def __init__(self) -> None:
        """Set up everything but the widget."""
        self.problem = W.HTML()
        self.problem_of = ""
        self._observers: list[Callable[[Any], object]] = []
        self._task: asyncio.Task[None] | None = None

    def _repr_mimebundle_(self, **options: Any) -> Any:
        shown = self.widget if "lab" in self.widget._dom_classes else page(self.widget)
        return shown._repr_mimebundle_(**options)

    def observe(self, observer: Callable[[Self], object]) -> None:
        """Call `observer` with the panel after every change."""
        self._observers.append(observer)

    def close(self) -> None:
        """Stop polling and remove the panel from the page."""
        if self._task:
            self._task.cancel()
        self.widget.close()

    def _notify(self) -> None:
        for observer in self._observers:
            observer(self)

    def _poll(self, seconds: float, look: Callable[[], object]) -> None:
        """Call `look` every `seconds` in the kernel's event loop; never outside a kernel, where no loop runs."""

        async def watch() -> None:
            while True:
                await asyncio.sleep(seconds)
                look()

        try:
            self._task = asyncio.get_running_loop().create_task(watch())
        except RuntimeError:  # no kernel
            return
