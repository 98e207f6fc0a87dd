"""A choice from a long list: grouped, with a search box, one line about each option, and typed values if allowed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import anywidget
import traitlets

from widgets.kit.elements import static


@dataclass(frozen=True)
class Option:
    """One line of a list.

    Attributes:
        value: what the picker's `value` becomes.
        label: how it is called; the value by default.
        hint: one line about it.
        chips: a few words on what it can do.
        group: the heading that it is below.
        amount: a short text at the right, such as a number.
    """

    value: str
    label: str = ""
    hint: str = ""
    chips: tuple[str, ...] = ()
    group: str = ""
    amount: str = ""


class Picker(anywidget.AnyWidget):
    """A button that opens a list to choose from.

    Attributes:
        value: the chosen value; one that is no option was typed, or set by code.
        options: `Option`s as dictionaries, see `offer`; groups are in the order of their first option.
        folded: groups whose options appear on request, or when they match what is searched for.
        name: for screen readers.
        free: text of the line that takes what is typed as the value, with ``{}`` for it; "" if only options are valid.
        search: placeholder of the search box.
        note: a line below the button.
        error: why the value is invalid, in place of the note; "" if it is valid.
        pending: whether the value is still being looked up.
        disabled: whether the list cannot be opened.
        opened: whether the list is open, as the browser says.
    """

    _esm = static("picker.js")
    _css = static("picker.css")
    value = traitlets.Unicode("").tag(sync=True)
    options: Any = traitlets.List().tag(sync=True)
    folded: Any = traitlets.List().tag(sync=True)
    name = traitlets.Unicode("").tag(sync=True)
    free = traitlets.Unicode("").tag(sync=True)
    search = traitlets.Unicode("search").tag(sync=True)
    note = traitlets.Unicode("").tag(sync=True)
    error = traitlets.Unicode("").tag(sync=True)
    pending = traitlets.Bool(False).tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)
    opened = traitlets.Bool(False).tag(sync=True)

    def offer(self, options: Iterable[Option]) -> None:
        """Replace the options; the value stays."""
        self.options = [{**asdict(each), "label": each.label or each.value} for each in options]
