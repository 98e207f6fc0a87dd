"""The rail of views: a list of small sketches with names, in groups, for mouse and keyboard."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

from widgets.kit.elements import look, static


class ViewRail(anywidget.AnyWidget):
    """A list from which one view is chosen; those that do not apply are disabled, with the reason as their tooltip.

    Attributes:
        items: name, label, group, icon, hint and reason ("" if it applies) of each view; groups are contiguous.
        value: name of the selected view.
    """

    _esm, _css = static("view_rail.js"), look("inspect.css")
    items: Any = traitlets.List().tag(sync=True)
    value = traitlets.Unicode("").tag(sync=True)
