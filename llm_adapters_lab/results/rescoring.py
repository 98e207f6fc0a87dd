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
        BadSpec: the run is unfinished, its protocol generates no text, or its answers are not those it has counted.
    """
    if not record.done:
        raise BadSpec(f"The run {record.id} is {record.summary['status']}; run its spec again, then rescore it.")
    results, answers = {}, record.answers()
    for name, stored in record.summary["scores"].items():
        if stored.get("protocol") == "options":
            raise BadSpec(f"{name} was scored by likelihood in {record.id}: there is no text to read again.")
        task = get_task(name)
        again = [judge(task, p, rule) for p in answers.values() if p["task"] == name]
        results[name] = stored | {"extraction": rule} | count(again)
    return results
