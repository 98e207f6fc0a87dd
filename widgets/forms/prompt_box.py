"""A text area that Shift+Enter, Ctrl+Enter or Cmd+Enter submits."""

from __future__ import annotations

import anywidget
import traitlets

from widgets.kit.elements import static


class PromptBox(anywidget.AnyWidget):
    """A text area.

    Attributes:
        value: its text.
        label: its name for screen readers.
        placeholder: shown while it is empty.
        rows: its height in lines.
        submitted: how often the keys were pressed.
    """

    _esm = static("prompt_box.js")
    value = traitlets.Unicode("").tag(sync=True)
    label = traitlets.Unicode("").tag(sync=True)
    placeholder = traitlets.Unicode("").tag(sync=True)
    rows = traitlets.Int(3).tag(sync=True)
    submitted = traitlets.Int(0).tag(sync=True)
