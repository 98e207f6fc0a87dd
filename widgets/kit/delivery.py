"""Hand a file to the user through the browser, wherever the kernel runs."""

from __future__ import annotations

import anywidget
import ipywidgets as W
import traitlets

from widgets.kit.elements import static

MOST = 200_000_000
"""Bytes of the largest file that is sent through the browser."""


class _File(anywidget.AnyWidget):
    """A file that the browser saves as soon as it is shown, once.

    It is a widget of its own since Jupyter limits the size of all messages but those that open a widget.
    """

    _esm = static("delivery.js")
    name = traitlets.Unicode("").tag(sync=True)
    data = traitlets.Bytes(b"").tag(sync=True)
    done = traitlets.Bool(False).tag(sync=True)


class Delivery:
    """A place for the file that was delivered last.

    Attributes:
        widget: to be shown.
        file: the file; None before the first.
    """

    def __init__(self) -> None:
        """Deliver nothing yet."""
        self.widget = W.HBox()
        self.file: _File | None = None

    def deliver(self, name: str, data: bytes) -> None:
        """Have the browser save a file under a name; a link saves it again."""
        before, self.file = self.file, _File(name=name, data=data)
        self.widget.children = [self.file]
        if before:
            before.close()

    def clear(self) -> None:
        """Remove the file."""
        self.widget.children = []
        if self.file:
            self.file.close()
        self.file = None
