"""Learning rates that a search has found for each method: what `train.learning_rate: auto` stands for.

`recipes.json` is written from a benchmark by ``benchmarks/methods.py``. A rate depends on base, batch, number of steps
and rank, so that every run with `auto` says where its rate comes from, and in what it differs.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from llm_adapters_lab.errors import BadSpec, choices

AUTO = "auto"
NEAR = 0.05
"""Nats above the lowest validation loss within which rates count as good."""


@cache
def recipes() -> dict[str, Any]:
    """Return the evidence.

    Returns:
        source (a file), seen (dotted fields of the benchmark with their values), and rates: by type of adapter, each
        with rate (the best), low and high (the lowest and highest rate whose loss was within `NEAR` of the best) and
        tried (the lowest and highest rate of the search).
    """
    content: dict[str, Any] = json.loads((resources.files(__package__) / "recipes.json").read_text(encoding="utf-8"))
    return content


def rate_of(adapter: str) -> float:
    """Return the best learning rate of a type of adapter.

    Raises:
        BadSpec: none has been measured.
    """
    known = recipes()["rates"]
    if adapter not in known:
        raise BadSpec(
            f"train.learning_rate = auto: no rate of {adapter!r} has been measured. Give a number, or search it by a "
            f"benchmark. {choices(adapter, known)}"
        )
    return float(known[adapter]["rate"])


def origin(adapter: str, fields: dict[str, Any]) -> str:
    """Return in a sentence or two where the rate of a type of adapter comes from, and what is different here.

    Args:
        adapter: its type.
        fields: of the run, by dotted key.
    """
    found, own = recipes(), recipes()["rates"][adapter]
    text = (
        f"train.learning_rate = auto stands for {own['rate']:g}, the best for {adapter} in {found['source']}; "
        f"rates from {own['low']:g} to {own['high']:g} came within {NEAR} nats of it."
    )
    seen = found["seen"].items()
    apart = [f"{key} = {fields.get(key)} (there {value})" for key, value in seen if fields.get(key) != value]
    return f"{text} This run differs: {', '.join(apart)}. Its best rate may be another." if apart else text
