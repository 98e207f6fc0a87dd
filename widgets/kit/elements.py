"""Small widgets that ipywidgets lacks, and shorthands for those that it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as W
import traitlets

from llm_adapters_lab.markup import el


def static(name: str) -> str:
    """Return the text of a file in the folder `static`: the stylesheet, or the front-end module of a widget."""
    return (Path(__file__).parents[1] / "static" / name).read_text(encoding="utf-8")


def look(name: str) -> str:
    """Return the stylesheet of a view with the common one, for a view that is shown without a page of the lab."""
    return static("lab.css") + static(name)


def styles() -> str:
    """Return all stylesheets: `lab.css`, and those of single places and views."""
    folder = Path(__file__).parents[1] / "static"
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.css"), key=_rank))


def _rank(path: Path) -> tuple[bool, str]:
    return path.name != "lab.css", path.name


def button(
    text: str,
    tooltip: str = "",
    style: str = "",
    *,
    disabled: bool = False,
    click: Callable[[Any], object] | None = None,
) -> Any:
    """Return a button; its style is "primary", "danger" or "", and `click` is called with the button."""
    made = W.Button(description=text, tooltip=tooltip, button_style=style, disabled=disabled)
    if click:
        made.on_click(click)
    return made


def field(kind: Any, label: str, width: str, **traits: Any) -> Any:
    """Return a labelled control of class `kind`; `width` includes the label and is limited to the page."""
    layout = W.Layout(width=width, max_width="98%")
    return kind(description=label, style={"description_width": "initial"}, layout=layout, **traits)


def text_area(tooltip: str, rows: int, **traits: Any) -> Any:
    """Return a text area as wide as the page. It shows plain text, so nothing has to be escaped."""
    return W.Textarea(tooltip=tooltip, rows=rows, layout=W.Layout(width="auto"), **traits)


def row(*children: Any) -> Any:
    """Return widgets side by side; they wrap on a narrow page."""
    return W.HBox(children, layout=W.Layout(flex_flow="row wrap", align_items="center"))


def toolbar(*children: Any) -> Any:
    """Return controls side by side, close together, as wide as the page; they wrap."""
    return W.Box(children, layout=W.Layout(width="auto")).add_class("lab-toolbar")


def column(*children: Any, css: str = "") -> Any:
    """Return widgets below each other, as wide as the page; `css` is a class of the stylesheet."""
    made = W.VBox(children, layout=W.Layout(width="auto"))
    return made.add_class(css) if css else made


def card(title: str, *children: Any, css: str = "") -> Any:
    """Return widgets in a frame with a title above; `css` is a further class of the stylesheet."""
    head = W.HTML(el("div", title, class_="lab-card-title")) if title else None
    made = W.VBox([*([head] if head else []), *children], layout=W.Layout(width="auto", min_width="0"))
    made.add_class("lab-card")
    return made.add_class(css) if css else made


def segments(options: Any, tooltip: str, **traits: Any) -> Any:
    """Return a choice of one of a few options as buttons in a row."""
    return W.ToggleButtons(options=options, tooltip=tooltip, **traits).add_class("lab-segments")


class Shared:
    """Makes widgets that share a layout and, by kind, a style: a page has to load each that is not shared.

    Set no trait of the layout or style of one of them. To hide one, use `hide`.
    """

    def __init__(self) -> None:
        """Start without styles."""
        self._layout = W.Layout(width="auto", min_width="0")
        self._styles: dict[Any, Any] = {}

    def make(self, kind: Any, **traits: Any) -> Any:
        """Return a widget of a kind."""
        style = {"style": self._styles[kind]} if kind in self._styles else {}
        made = kind(layout=self._layout, **traits, **style)
        if "style" in made.trait_names():
            self._styles.setdefault(kind, made.style)
        return made


def hide(hidden: object, *widgets: Any) -> None:
    """Hide widgets, or show them again, whose layouts may be shared."""
    for widget in widgets:
        (widget.add_class if hidden else widget.remove_class)("lab-hidden")


def show_if(shown: object, *widgets: Any) -> None:
    """Show or hide widgets; hidden ones take no space."""
    for widget in widgets:
        widget.layout.display = "" if shown else "none"


class Collapsible:
    """A button that shows and hides what is below it. Unlike ipywidgets' accordion, it works with the keyboard."""

    def __init__(self, title: str, content: Any) -> None:
        """Start collapsed."""
        self._title, self._box = title, W.VBox([content])
        self.button = W.ToggleButton()
        self.button.add_class("lab-fold")
        self.button.observe(self._toggled, "value")
        self.widget = W.VBox([self.button, self._box])
        self._toggled()

    def _toggled(self, change: Any = None) -> None:
        self.button.description = f"{'▾' if self.button.value else '▸'} {self._title}"
        show_if(self.button.value, self._box)


class CopyMenu(anywidget.AnyWidget):
    """A menu that copies one of several `texts`, by name, to the clipboard, in the browser."""

    _esm = static("copy_menu.js")
    texts = traitlets.Dict().tag(sync=True)
    label = traitlets.Unicode("Copy as …").tag(sync=True)


class FieldHelp(anywidget.AnyWidget):
    """An invisible widget that shows the help of the field that has the focus: `texts` by `lab-at-…` class, without it.

    ipywidgets shows no tooltip of a text box that has a label.
    """

    _esm = static("field_help.js")
    texts = traitlets.Dict().tag(sync=True)


class Heartbeat(anywidget.AnyWidget):
    """A place that stays empty while `beat` changes, and else says for how long the kernel has not answered.

    After a restart of the kernel a page looks as before, but nothing in it works. `seen` follows `beat` once the page
    has processed everything that was sent before it.
    """

    _esm = static("heartbeat.js")
    beat = traitlets.Int(0).tag(sync=True)
    seen = traitlets.Int(0).tag(sync=True)
    patience = traitlets.Int(20).tag(sync=True)


class AccessibleNames(anywidget.AnyWidget):
    """An invisible widget that helps the controls around it.

    It gives them the names that screen readers need, lets the arrow keys change numbers, and moves the focus to a field
    that is clicked in a message. The names come from tooltips and from the labels next to the controls. ipywidgets
    gives slider handles no name, and its empty labels hide the titles of text boxes from browsers.
    """

    _esm = static("accessible_names.js")
