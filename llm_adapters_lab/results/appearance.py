"""How runs look in figures and lists: colour, line style and name.

Every adapter type keeps the colour of its registration everywhere; the bare base is grey. Most colours are those of
Okabe and Ito and of Tol, the others were searched so that colour-blind readers can tell all types apart and all read on
light and dark pages. A type that names none gets one of the former.

Source: Okabe and Ito 2008, "Color Universal Design"; Paul Tol 2021, "Colour schemes", SRON/EPS/TN/09-002.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_adapters_lab.config import flat
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.prompts import short_name

BASE = "#7f868e"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
SEVERAL = ("#2f7fc1", "#D55E00", "#009E73", "#CC79A7", "#b58900", "#7a6fd0", "#4aa3df", "#a05a2c", "#5b8c3a", "#c2477f")
"""Colours of runs that differ in more than their adapter type; all read on light and dark pages."""
SCALE = ("#7b6bd6", "#3f88c5", "#1f9e89", "#6aa84f", "#c79a00", "#d9702b")
"""From the lowest to the highest value of a field, in runs that differ only in that."""
MOST = 3
"""Maximum number of differing fields in a name."""
LONGEST = 40
"""Maximum number of characters of a value in a name."""
SHORT = {"adapter.type": "type", "adapter.at": "placement", "train.learning_rate": "lr"}
"""Fields that are not called by the last part of their key."""


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


def spec_fields(spec: RunSpec) -> dict[str, Any]:
    """Return all fields of a spec by dotted key; "adapter.type" is None for a bare base.

    Chat templates and long system prompts have short names.
    """
    fields = flat(spec.model_dump(mode="json"))
    for key in ("data.template", "data.system", "eval.template", "eval.system"):
        fields[key] = fields.get(key) and short_name(fields[key])
    if isinstance(members := fields.get("adapter.of"), list):
        fields["adapter.of"] = ", ".join(str(one["type"]) if isinstance(one, dict) else str(one) for one in members)
    # In the place of the adapter's fields, not after all others.
    return {"adapter.type" if key == "adapter" else key: value for key, value in fields.items()}


def looks(runs: Sequence[Run]) -> dict[str, Look]:
    """Return the look of each run by id.

    A run is named after its adapter type, or "base"; if that is not unique, with the fields in which it differs.
    """
    fields = {run.id: spec_fields(run.spec) for run in runs}
    kinds = {name: values.get("adapter.type") for name, values in fields.items()}
    result: dict[str, Look] = {}
    for name, kind in kinds.items():
        keys = _differing(fields[name], (fields[other] for other in fields if kinds[other] == kind))
        apart = ", ".join(f"{k.rpartition('.')[2].replace('_', ' ')} {fields[name][k]}" for k in keys[:MOST])
        title = f"{kind or 'base'} ({apart})" if apart else kind or "base"
        if title in {look.name for look in result.values()}:
            title += f" {name[-10:]}"
        turn = sum(look.colour == colour(kind) for look in result.values())
        result[name] = Look(title, colour(kind), turn)
    return result


def colours(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the colour of each run in a figure or table of several, by what they differ in.

    Runs that differ only in the seed share a colour. If all others differ in their adapter type, it is that of the
    type; if they differ in a single number, one of a scale from the lowest value to the highest; else one of a list.

    Args:
        fields: of the specs by dotted key, by run id; empty for a spec that cannot be read.
    """
    keys = dict.fromkeys(key for given in fields.values() for key in given if key not in ("state", "seed"))
    apart = [key for key in keys if len({repr(given.get(key)) for given in fields.values() if given}) > 1]
    groups = {run: tuple(repr(given.get(key)) for key in apart) for run, given in fields.items()}
    order = {group: number for number, group in enumerate(dict.fromkeys(groups.values()))}
    kinds = {groups[run]: given.get("adapter.type") for run, given in fields.items()}
    if len(set(kinds.values())) == len(order):
        return {run: colour(kinds[group]) for run, group in groups.items()}
    values = {run: given.get(apart[0]) for run, given in fields.items()} if len(apart) == 1 else {}
    numbers = {run: value for run, value in values.items() if isinstance(value, int | float)}
    if numbers and len(numbers) == len(fields):
        ranked = sorted(set(numbers.values()))
        step = (len(SCALE) - 1) / (len(ranked) - 1)
        return {run: SCALE[round(ranked.index(value) * step)] for run, value in numbers.items()}
    return {
        run: BASE if kinds[group] is None else SEVERAL[order[group] % len(SEVERAL)] for run, group in groups.items()
    }


def short_names(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a name for each run of a list, such as "lora r8 q,v s0": type, main size, placement and seed.

    The base is named if there are several. Runs that would share a name show the fields in which they differ.

    Args:
        fields: of the specs by dotted key, by run id; empty for a spec that cannot be read.
    """
    several = len({given.get("base") for given in fields.values() if given}) > 1
    parts = {run: _parts(given, several) for run, given in fields.items()}
    names = {}
    for run, given in fields.items():
        twins = [fields[other] for other in fields if parts[other] == parts[run]]
        keys = [key for key in _differing(given, twins) if key not in parts[run]]
        values = {key: str(given[key]) for key in keys[:MOST]}
        cut = {key: value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…" for key, value in values.items()}
        apart = [f"{SHORT.get(key) or key.rpartition('.')[2]}={value}" for key, value in cut.items()]
        names[run] = " ".join([*parts[run].values(), *apart])
    return names


def _parts(fields: Mapping[str, Any], several: bool) -> dict[str, str]:
    """Return the words of a short name by the field that each is about."""
    kind = fields.get("adapter.type")
    found = {"adapter.type": kind or "base"} if fields else {"": "?"}
    if several and fields:
        found = {"base": str(fields["base"]).rstrip("/").rpartition("/")[2], **found}
    if kind:
        # An adapter's own fields begin with its size.
        sizes = (key for key, value in fields.items() if key.startswith("adapter.") and type(value) is int)
        if size := next((key for key in sizes if key.count(".") == 1), None):
            found[size] = f"{size.removeprefix('adapter.')[0]}{fields[size]}"
        found |= {"adapter.at": fields["adapter.at"]} if fields.get("adapter.at") else {}
        found["seed"] = f"s{fields['seed']}"
    return found


def _differing(fields: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the fields in which any of the others differs."""
    seen = list(others)
    return [key for key, value in fields.items() if any(other.get(key) != value for other in seen)]
