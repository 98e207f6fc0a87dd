"""Adapters as markup: the idea, formulas and source from the docstrings, parameters."""

from __future__ import annotations

import re
import sys

from llm_adapters_lab.core.registry import Entry, all_adapters, get_adapter
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.runs.presets import adapter_presets, expand

NO_ADAPTER = ""
"""The choice of the bare base."""
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def description(name: str) -> Html:
    """Return idea, formulas, parameter count and source of an adapter or a preset."""
    if name == NO_ADAPTER:
        return el("div", "Nothing is trained: the base is evaluated as it is.")
    preset = adapter_presets().get(name) if name not in all_adapters() else None
    entry = get_adapter(expand({"type": name})["type"])
    parts = [el("div", preset.idea if preset else entry.idea)]
    doc = (entry.cls.__doc__ or "") if entry.module == "__main__" else _doc(entry)
    formulas = [line.strip() for line in doc.splitlines()[1:] if line.startswith("    ") and line.strip()]
    if formulas:
        parts.append(el("pre", "\n".join(formulas)))
    if counts := re.search(r"^Parameters: (.+?)(?:\n\n|\Z)", _doc(entry), re.M | re.S):
        parts.append(el("div", f"Parameters: {' '.join(counts[1].split())}"))
    parts.append(el("div", "Source: ", link(preset.source if preset and preset.source else entry.source)))
    return el("div", *parts, class_="lab-about")


def _doc(entry: Entry) -> str:
    module = sys.modules.get(entry.cls.__module__)
    return (module.__doc__ if module else None) or ""


def link(source: str) -> Html:
    """Return a source with its arXiv numbers as links; the rest is plain text."""
    pieces: list[str] = []
    for number, piece in enumerate(_ARXIV.split(source)):
        address = f"https://arxiv.org/abs/{piece}"
        linked = el("a", f"arXiv:{piece}", href=address, target="_blank", rel="noopener noreferrer")
        pieces.append(linked if number % 2 else piece)
    return el("span", *pieces)
