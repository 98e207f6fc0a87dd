"""Panel: what all panels have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

import ipywidgets as W


class Panel:
    """Shows its widget, tells observers of changes, has a place for errors, and may look by itself now and then.

    Attributes:
        widget: what is shown; the panel itself shows it too.
        problem: what the last callback raised, see `guarded`.
    """

    widget: Any

    def __init__(self) -> None:
        """Be a panel without a widget, which the class that builds on this one makes."""
        self.problem: Any = W.HTML()
        self.problem_of = ""
        self._observers: list[Callable[[Any], object]] = []
        self._task: asyncio.Task[None] | None = None

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.widget._repr_mimebundle_(**options)

    def observe(self, observer: Callable[[Self], object]) -> None:
        """Call `observer` with the panel after every change."""
        self._observers.append(observer)

    def close(self) -> None:
        """Look no more, and be gone from the page."""
        if self._task:
            self._task.cancel()
        self.widget.close()

    def _tell(self) -> None:
        for observer in self._observers:
            observer(self)

    def _look_every(self, seconds: float, look: Callable[[], object]) -> None:
        """Call `look` again and again in the kernel's own loop; outside a kernel, where none runs, never."""

        async def watch() -> None:
            while True:
                await asyncio.sleep(seconds)
                look()

        try:
            self._task = asyncio.get_running_loop().create_task(watch())
        except RuntimeError:  # no kernel
            return
