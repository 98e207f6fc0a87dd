"""The scoring phase of a run: answer every row of a task and score the answers."""

from __future__ import annotations

from typing import Any

from llm_adapters_lab.evaluation.predictions import decoding_method, evaluate
from llm_adapters_lab.evaluation.scoring import score
from llm_adapters_lab.events import Scored, Scoring
from llm_adapters_lab.files import append_line
from llm_adapters_lab.runs.session import RunSession
from llm_adapters_lab.tasks.registry import get_task


def score_task(session: RunSession, name: str) -> dict[str, Any]:
    """Return the score of a task. Answers are recorded one by one, and recorded ones are reused.

    Args:
        session: of the run.
        name: of the task.
    """
    spec, base, record = session.spec, session.base, session.record
    task, plan, test = get_task(name), spec.eval, session.rows.test[name]
    done = session.group.broadcast({p["id"]: p for p in record.predictions() if p["task"] == name})
    predictions: list[dict[str, Any]] = []
    options: dict[str, Any] = {"protocol": plan.protocol, "rule": plan.extraction, "likelihood": plan.likelihood}
    options |= {"template": spec.data.template, "batch": plan.batch, "max_new_tokens": plan.max_new_tokens}
    options |= {"exemplars": session.rows.shots.get(name, ()), "done": done, "share": session.group.share_work}
    for prediction in evaluate(base.model, base.tokenizer, task, test, **options):
        predictions.append(prediction)
        if session.group.is_main and prediction != done.get(prediction["id"]):
            append_line(record.folder / "predictions.jsonl", prediction)
        if len(predictions) % plan.batch == 0 or len(predictions) == len(test):
            session.emit(Scoring(name, len(predictions), len(test)))
            session.checkpointer.check()
    result = score(task, predictions, test, protocol=plan.protocol, rule=plan.extraction, shots=plan.shots)
    result["decoding"] = decoding_method(base.model, plan.protocol)
    session.emit(Scored(name, result))
    session.checkpointer.check()
    return result
