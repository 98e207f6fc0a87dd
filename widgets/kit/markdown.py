"""Markdown as HTML that is safe to show: a note is text from outside."""

from __future__ import annotations

from typing import Any

from markdown_it import MarkdownIt

from llm_adapters_lab.markup import Html

LONGEST = 20_000
"""Characters that are shown."""


def _web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _open_link(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noopener noreferrer")
    shown: str = renderer.renderToken(tokens, index, options, env)
    return shown


# An image would be fetched from another machine as soon as the note is shown.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("image")
_MARKDOWN.validateLink = _web  # type: ignore[method-assign]
_MARKDOWN.add_render_rule("link_open", _open_link)


def markdown(text: str) -> Html:
    """Return the markup of a text: HTML in it stays text, links lead to web pages only, and images are links."""
    return Html(f'<div class="lab-markdown">{_MARKDOWN.render(text[:LONGEST])}</div>')
