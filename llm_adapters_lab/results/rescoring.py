"""Score stored predictions again by another rule."""

from __future__ import annotations

from typing import Any

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.scoring import count, judge
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.tasks.base import Rule
from llm_adapters_lab.tasks.registry import get_task


def rescore(record: Run, rule: Rule) -> dict[str, dict[str, Any]]:
    """Read the stored answers of a run by another rule and score them; nothing is written.

    Args:
        record: a finished run.
        rule: lab or original.

    Returns:
        The new score of each task, with the keys of the stored one.

    Raises:
        BadSpec: the run is unfinished, or its protocol generates no text.
    """
    if not record.done:
        raise BadSpec(f"The run {record.id} is {record.summary['status']}; run its spec again, then rescore it.")
    results, predictions = {}, list(record.predictions())
    for name, stored in record.summary["scores"].items():
        if stored.get("protocol") == "options":
            raise BadSpec(f"{name} was scored by likelihood in {record.id}: there is no text to read again.")
        task = get_task(name)
        own = {p["id"]: p for p in predictions if p["task"] == name and "text" in p}
        if len(own) != stored["total"]:
            raise BadSpec(f"{record.id}: predictions.jsonl holds {len(own)} of {stored['total']} answers to {name}.")
        again = [judge(task, p, rule) for p in own.values()]
        results[name] = stored | {"extraction": rule} | count(again)
    return results
