"""What a sweep would cost, as the command line prints it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_adapters_lab import terminal
from llm_adapters_lab.terminal import cell, clock, percent, say

if TYPE_CHECKING:
    from llm_adapters_lab.estimate import Cost
    from llm_adapters_lab.sweep import Standing

GIGA = 1e9


def show_costs(what: Any, root: Path, jobs: int, as_json: bool) -> None:
    """Print what every run of a sweep would cost, and all of them; nothing is started."""
    from llm_adapters_lab.estimate import costs
    from llm_adapters_lab.sweep import check

    points = what.points()
    check(points)
    found = costs(points, root)
    if as_json:
        terminal.print_json([_cost(cost) for cost in found])
        return
    rows = [
        {
            **{name: changed(cost, name) for name in cost.changes},
            **{"state": cost.state.name, "trainable": cost.size.trainable, "of base": percent(cost.size.share)},
            "GB": round((cost.size.weights + cost.size.training) / GIGA, 3),
            **{"time": None if cost.seconds is None else clock(cost.seconds), "run": cost.run.id},
        }
        for cost in found
    ]
    terminal.show_rows(rows)
    say(_total(found, jobs))


def _total(found: Sequence[Cost], jobs: int) -> str:
    from llm_adapters_lab.estimate import TIMES

    open_ = [cost for cost in found if cost.state.name != "finished"]
    known = [cost.seconds for cost in open_ if cost.seconds is not None]
    lines = [f"{len(found)} runs, {len(found) - len(open_)} of them finished, {len(open_)} to do."]
    lines.append("GB: weights, adapter, gradients and AdamW's moments; activations and the libraries come on top.")
    if open_ and known:
        several = f", {jobs} at a time: {clock(sum(known) / jobs)} at best" if jobs > 1 else ""
        missing = f"; the other {len(open_) - len(known)}: unknown" if len(known) < len(open_) else ""
        lines.append(f"Time for {len(known)} to do: {clock(sum(known))}{several} ({TIMES}){missing}.")
    elif open_:
        lines.append("Time: unknown; no finished run here has the same base, data, batch, steps and scoring.")
    return "\n".join(lines)


def _cost(cost: Cost) -> dict[str, Any]:
    size = {"trainable": cost.size.trainable, "base": cost.size.base, "bytes": cost.size.weights + cost.size.training}
    fixed = {"id": cost.run.id, "changes": cost.changes, "state": cost.state.name}
    return fixed | size | {"seconds": cost.seconds, "from_runs": cost.alike}


def changed(of: Standing | Cost, name: str) -> str:
    """Return in words what a run of a sweep has in a field that is varied."""
    from llm_adapters_lab.sweep_file import value_words

    value = of.changes.get(name)
    return value_words(value) if name in of.changes else cell(None)
