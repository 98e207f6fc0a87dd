"""The scoring phase of a run: answer every row of a task and score the answers."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from llm_adapters_lab.core.call_context import grouped
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.evaluation.forgetting import loss_per_token, read_text, windows
from llm_adapters_lab.evaluation.predictions import decoding_method, evaluate
from llm_adapters_lab.evaluation.scoring import score
from llm_adapters_lab.evaluation.spec import LEARNT, EvalSpec
from llm_adapters_lab.events import Noticed, ReadText, Scored, Scoring
from llm_adapters_lab.files import append_line
from llm_adapters_lab.runs.rows import answer_limit, scoring_format
from llm_adapters_lab.runs.session import RunSession
from llm_adapters_lab.tasks.formats import Format
from llm_adapters_lab.tasks.registry import get_task


def score_task(session: RunSession, name: str) -> dict[str, Any]:
    """Return the score of a task. Answers are recorded one by one, and recorded ones are reused.

    Beside the keys of `scoring.score` it has what else could move it: decoding, template, trained_with (the template of
    the training, if its prompts are others), dtype, batch, max_new_tokens and limit_from ("auto", "spec" or "task"),
    both None where nothing is generated.

    Args:
        session: of the run.
        name: of the task.
    """
    spec, base, record = session.spec, session.base, session.record
    task, plan, test = get_task(name), spec.eval, session.rows.test[name]
    done = session.group.broadcast({p["id"]: p for p in record.predictions() if p["task"] == name})
    predictions: list[dict[str, Any]] = []
    options: dict[str, Any] = {"protocol": plan.protocol, "rule": plan.extraction, "likelihood": plan.likelihood}
    form = scoring_format(spec, name, test, base.tokenizer)
    limit = None if plan.protocol == "options" else answer_limit(spec, name, form, test)
    options |= {"template": form, "batch": plan.batch, "max_new_tokens": limit}
    options |= {"exemplars": session.rows.shots.get(name, ()), "done": done, "share": session.group.share_work}
    asked = _asked(session, name, form) | {"max_new_tokens": limit, "limit_from": limit and _limit_from(plan)}
    if asked["trained_with"]:
        session.emit(
            Noticed(
                f"{name} is asked with the prompt {asked['template']!r}, but the adapter is trained with "
                f"{asked['trained_with']!r}. Its score may be below that of the bare base for that reason alone."
            )
        )
    with grouped(base.model, session.rows.groups.test.get(name, ())):
        for prediction in evaluate(base.model, base.tokenizer, task, test, **options):
            predictions.append(prediction)
            if session.group.is_main and prediction != done.get(prediction["id"]):
                append_line(record.folder / "predictions.jsonl", prediction)
            if len(predictions) % plan.batch == 0 or len(predictions) == len(test):
                session.emit(Scoring(name, len(predictions), len(test)))
                session.checkpointer.check()
    result = score(task, predictions, test, protocol=plan.protocol, rule=plan.extraction, shots=plan.shots)
    result |= asked
    session.emit(Scored(name, result))
    session.checkpointer.check()
    return result


def measure_forgetting(session: RunSession, injection: Injection | None) -> dict[str, Any]:
    """Return what `ReadText` has, for the summary; nothing without `eval.forgetting`."""
    name, base, asked = session.spec.eval.forgetting, session.base, session.spec.eval.group
    if not name:
        return {}
    pieces = windows(base.tokenizer, read_text(name), base.blueprint.context)
    group = asked if asked in session.rows.groups.names else ""
    with grouped(base.model, [group] * bool(group)):
        loss, tokens = loss_per_token(base.model, pieces)
    with injection.disabled() if injection else nullcontext():
        bare = loss_per_token(base.model, pieces)[0] if injection else loss
    event = ReadText(name, tokens, loss, bare)
    session.emit(event)
    return {"forgetting": {"text": name, "tokens": tokens, "loss": loss, "base_loss": bare}}


def _asked(session: RunSession, name: str, form: Format) -> dict[str, Any]:
    spec, model = session.spec, session.base.model
    plan, first, trained = spec.eval, session.rows.test[name][:1], form
    if spec.learns and spec.data.form == "rows":
        trained = session.rows.training_format(session.base.tokenizer, spec.data)
    same = (trained.name, trained.system) == (form.name, form.system)
    if not (same or (first[0].messages and not trained.chat)):  # a chat has no prompt in a plain format
        same = trained.prompts(first)[0][0] == form.prompts(first)[0][0]
    other = trained.name
    if other == form.name:
        other += f" with the system prompt {trained.system!r:.60}" if trained.system else " without a system prompt"
    packed = session.base.blueprint.quantization(spec.quantization)
    return {
        "decoding": decoding_method(model, plan.protocol),
        "template": form.name,
        "trained_with": None if same else other,
        "dtype": str(model.dtype).removeprefix("torch.") + (f" {packed}" if packed != "none" else ""),
        "batch": plan.batch,
    }


def _limit_from(plan: EvalSpec) -> str:
    return LEARNT if plan.max_new_tokens == LEARNT else "spec" if plan.max_new_tokens else "task"
