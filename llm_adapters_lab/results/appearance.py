"""How runs look in figures: colour, dash and label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_adapters_lab.config import flat
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.runs.record import Run

BASE = "#7f868e"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")


@dataclass(frozen=True)
class Look:
    """How a run appears in every figure.

    Attributes:
        name: short and unique among the runs shown; not escaped.
        colour: that of its adapter type.
        turn: how many runs before it have the same colour; chooses dash, hatching and symbol.
    """

    name: str
    colour: str
    turn: int


def colour(kind: str | None) -> str:
    """Return the colour of an adapter type; grey for the bare base (None)."""
    entry = all_adapters().get(kind or "")
    return (entry.colour or COLOURS[sum(entry.name.encode()) % len(COLOURS)]) if entry else BASE


def looks(runs: Sequence[Run]) -> dict[str, Look]:
    """Return the look of each run by id.

    A run is called by its adapter type, or "base"; where that is not unique, by what sets it apart from the others.
    """
    fields = {run.id: flat(run.spec.model_dump(mode="json")) for run in runs}
    kinds = {name: values.get("adapter.type") for name, values in fields.items()}
    result: dict[str, Look] = {}
    for name, kind in kinds.items():
        same = [fields[other] for other in fields if kinds[other] == kind]
        keys = [k for k in fields[name] if any(other.get(k) != fields[name][k] for other in same)]
        apart = ", ".join(f"{k.rpartition('.')[2].replace('_', ' ')} {fields[name][k]}" for k in keys[:3])
        title = f"{kind or 'base'} ({apart})" if apart else kind or "base"
        if title in {look.name for look in result.values()}:
            title += f" {name[-10:]}"
        turn = sum(look.colour == colour(kind) for look in result.values())
        result[name] = Look(title, colour(kind), turn)
    return result
