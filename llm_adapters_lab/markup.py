"""Build HTML from text, which is escaped here; only the page of a report is a Jinja2 template."""

from __future__ import annotations

import html


class Html(str):
    """Markup; `el` and Jinja2 escape any other string."""

    def __html__(self) -> str:
        """Return the markup for Jinja2."""
        return self


def el(tag: str, *children: str, **attributes: str) -> Html:
    """Return an element.

    Args:
        tag: name of the element.
        children: elements or text.
        attributes: values are escaped; in names, `class_` means class and `aria_label` aria-label.
    """
    names = "".join(f' {key.strip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    inner = "".join(child if isinstance(child, Html) else html.escape(child) for child in children)
    return Html(f"<{tag}{names}>{inner}</{tag}>")
