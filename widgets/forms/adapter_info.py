"""What an adapter says of itself, as markup: idea, formula and count from its module's docstring, and its source."""

from __future__ import annotations

import re
import sys

from llm_adapters_lab.core.registry import Entry, all_adapters, get_adapter
from llm_adapters_lab.markup import Html, el
from llm_adapters_lab.runs.forecast.size import Size
from llm_adapters_lab.runs.presets import adapter_presets, expand

BARE = ""
"""Stands for no adapter among the kinds."""
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_LINK = "color: var(--jp-content-link-color, #0b5cad); text-decoration: underline"
_UNITS = ("B", "kB", "MB", "GB", "TB")


def kinds() -> list[tuple[str, str]]:
    """Return what there is to choose from as (words, name): the bare base, every adapter, every preset of one."""
    own = [(name, name) for name in all_adapters()]
    return [("none: the bare base", BARE), *own, *((f"{name} (preset)", name) for name in adapter_presets())]


def formulas(entry: Entry) -> str:
    """Return the indented lines of an adapter's docstring, where its formulas stand; "" if it has none."""
    module = sys.modules.get(entry.cls.__module__)
    text = entry.cls.__doc__ if entry.cls.__module__ == "__main__" or module is None else module.__doc__
    lines = [line.strip() for line in (text or "").splitlines()[1:] if line.startswith("    ") and line.strip()]
    return "\n".join(lines)


def about(name: str) -> str:
    """Return idea, formulas, count and source of an adapter or of a preset of one."""
    if name == BARE:
        return el("div", "Nothing is trained: the base is scored as it is.")
    preset = adapter_presets().get(name) if name not in all_adapters() else None
    entry = get_adapter(expand({"type": name})["type"])
    module = sys.modules.get(entry.cls.__module__)
    counts = re.search(r"^Parameters: (.+?)(?:\n\n|\Z)", (module.__doc__ if module else None) or "", re.M | re.S)
    parts = [el("div", preset.idea if preset else entry.idea)]
    if text := formulas(entry):
        parts.append(el("pre", text, style="margin: 4px 0 4px 1.5em; white-space: pre-wrap"))
    if counts:
        parts.append(el("div", f"Parameters: {' '.join(counts[1].split())}"))
    parts.append(el("div", "Source: ", link(preset.source if preset and preset.source else entry.source)))
    return el("div", *parts, style="max-width: 720px; line-height: 1.4")


def link(source: str) -> str:
    """Return a source with its arXiv number as a link; anything else stays text."""
    pieces: list[str] = []
    for number, piece in enumerate(_ARXIV.split(source)):
        new = {"target": "_blank", "rel": "noopener noreferrer", "style": _LINK}
        pieces.append(el("a", f"arXiv:{piece}", href=f"https://arxiv.org/abs/{piece}", **new) if number % 2 else piece)
    return el("span", *pieces)


def sizes(size: Size, dtype: str) -> Html:
    """Return trainable parameters, share and memory in words."""
    share = f"{size.share:.2%}" if size.share >= 1e-4 else f"{size.share:.1e}"
    count = el("b", f"{size.trainable:,} trainable parameters")
    parts = f"weights {amount(size.weights)} ({dtype})"
    if not size.trainable:
        head = el("div", "Nothing is trained; the base has ", el("b", f"{size.base:,} parameters"))
        return el("div", head, el("div", f"Memory, at least: {parts}."), style="line-height: 1.4")
    parts += f" + adapter, its gradients and the two moments of AdamW {amount(size.training)}"
    total = f"Memory while it trains, at least {amount(size.weights + size.training)}: {parts}. "
    more = "Activations come on top; they grow with rows at a time, their length and the layers."
    head = el("div", count, f", {share} of the {size.base:,} of the base")
    return el("div", head, el("div", total + more), style="line-height: 1.4")


def amount(size: float) -> str:
    """Return bytes in the unit that a person would choose, in powers of 1000."""
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.3g} {unit}"
