"""The training phase of a run: train the adapter, or load it if an interrupted run has trained it already."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.saving import save_adapter
from llm_adapters_lab.core.tensor_files import read_tensors
from llm_adapters_lab.errors import NoView
from llm_adapters_lab.evaluation.decoding import StopRule
from llm_adapters_lab.evaluation.scoring import RULES
from llm_adapters_lab.events import Noticed, Resumed, Step
from llm_adapters_lab.files import read_json
from llm_adapters_lab.inspection.token_choice import tokens_run
from llm_adapters_lab.runs.environment import cpu_contention
from llm_adapters_lab.runs.forecast.memory import WORTH_IT, estimate, estimated
from llm_adapters_lab.runs.recovery.resume import ResumePoint
from llm_adapters_lab.runs.rows import answer_limit
from llm_adapters_lab.runs.session import Phase, Position, RunSession
from llm_adapters_lab.runs.summary import started, training_summary
from llm_adapters_lab.runs.trackers import Trackers
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.batches import step_count
from llm_adapters_lab.training.checkpoints import Checkpoint
from llm_adapters_lab.training.device import make_accelerator, place
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.regimes import Heads
from llm_adapters_lab.training.reward import Answering

EXAMINED = 16
"""Number of training rows on which it is found out which tokens run."""
ADVICE = "Raise train.answers or train.temperature, or first train on solved questions."


def train_or_load(
    session: RunSession, injection: Injection | None, resumed: ResumePoint
) -> Generator[Position, None, dict[str, Any] | None]:
    """Train and save the adapter, or load the one that an interrupted run has saved.

    Returns:
        A summary of the training; None for a bare base, and in every process but the main one.
    """
    spec, base, record = session.spec, session.base, session.record
    if resumed.faults:
        session.emit(Noticed(" ".join(resumed.faults)))
    accelerator = make_accelerator(spec.train.precision)
    place(base.model, injection, accelerator)
    if spec.train.trackers and session.group.is_main:
        session.trackers = Trackers(spec.train.trackers, record)
    if injection is not None and not spec.learns:
        session.emit(started(spec, base, injection, 0))
        for event in session.rows.events():
            session.emit(event)
        session.checkpointer.check()
        if session.group.is_main:
            save_adapter(injection, record.folder / "adapter", spec.base, session.base_print)
            session.checkpointer.close()
        yield Position(Phase.SAVED)
        return None
    if injection is not None and not resumed.trained:
        counts = yield from _train(session, injection, resumed.checkpoint, accelerator)
        yield Position(Phase.TRAINED)
        if not session.group.is_main:
            return None
        if spec.data.form == "rows":
            form = session.rows.training_format(base.tokenizer, spec.data)
            injection.prompt = {"template": form.chat or form.name, "system": form.system}
        save_adapter(injection, record.folder / "adapter", spec.base, session.base_print)
        record.write("train.json", trained := training_summary(record) | counts)
        session.checkpointer.close()
        yield Position(Phase.SAVED)
        return trained
    session.emit(Resumed(spec.id, "scoring", 0) if resumed.trained else started(spec, base, injection, 0))
    for event in session.rows.events() if not resumed.trained else ():
        session.emit(event)
    session.checkpointer.check()
    if injection is None:
        return None
    injection.load_saved(read_tensors(record.folder / "adapter" / "adapter.safetensors"))
    yield Position(Phase.SAVED)
    return read_json(record.folder / "train.json")


def _train(
    session: RunSession, injection: Injection, saved: Checkpoint | None, accelerator: Accelerator
) -> Generator[Position, None, dict[str, Any]]:
    spec, base = session.spec, session.base
    samples, left_out = session.rows.samples(base.tokenizer, spec.data)
    held_out, learnt = samples[: spec.data.validation], samples[spec.data.validation :]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begun = started(spec, base, injection, step_count(spec.train, len(learnt)))
    session.emit(Resumed(spec.id, "training", saved.facts["step"]) if saved else begun)
    for told in session.rows.events() if not saved else ():
        session.emit(told)
    if text := cpu_contention():
        session.emit(Noticed(text))
    large = base.model.get_memory_footprint() >= WORTH_IT
    if large and not saved and (memory := estimate(spec, learnt, base.blueprint)):
        session.emit(estimated(memory))
    pad_id = base.tokenizer.pad_token_id
    extra: dict[str, Any] = {"answering": _answering(session)} if spec.train.objective == "reward" else {}
    if regime := spec.train.regime:
        rank, world = accelerator.process_index, accelerator.num_processes
        extra["heads"] = Heads(injection, spec.adapter, regime, spec.seed, rank, world)
    gradients = session.gradients(base.model, injection, learnt, spec.train, pad_id, **extra)
    yield Position(Phase.READY)
    yield Position(Phase.TRAINING, saved.facts["step"] if saved else 0)
    session.checkpointer.check()
    options: dict[str, Any] = {"validation": held_out, "seed": spec.seed, "pad_id": pad_id, "gradients": gradients}
    options |= {"saved": saved, "after_step": session.checkpointer}
    for event in train(base.model, injection, learnt, spec.train, accelerator, **options):
        session.emit(event)
        if isinstance(event, Step):
            yield Position(Phase.TRAINING, event.step)
    if text := _tokens_run(injection, learnt[:EXAMINED]):
        session.emit(Noticed(text))
    if all(event.get("measures", {}).get("idle") == 1 for event in session.record.events("Step")):
        session.emit(Noticed("The answers to every question had the same reward, so nothing was learnt. " + ADVICE))
    return {"rows": len(learnt), "rows_too_long": left_out.too_long}


def _tokens_run(injection: Injection, samples: Sequence[Sample]) -> str:
    """Return which share of the tokens of some rows runs through the MLPs of an adapter that chooses; "" of others."""
    found: dict[str, list[torch.Tensor]] = {}
    try:
        for sample in samples:
            ids = torch.tensor([sample.ids], device=weights.device(injection.model))
            for key, run in tokens_run(injection, ids).items():
                found.setdefault(key, []).append(run)
    except NoView:
        return ""
    shares = {injection.sites[key]: float(torch.cat(runs).float().mean()) for key, runs in found.items()}
    work = {p: p.d_in * p.d_out for p in injection.anatomy.projections}
    saved = sum(
        (1 - share) * sum(w for p, w in work.items() if (p.layer, p.sublayer) == (site.layer, site.sublayer))
        for site, share in shares.items()
    )
    layers = ", ".join(f"{site.layer}: {100 * share:.0f} %" for site, share in shares.items())
    mean, rest = sum(shares.values()) / len(shares), saved / sum(work.values())
    return (
        f"Of the tokens of {len(samples)} training rows, {100 * mean:.0f} % run through the MLPs (by layer {layers}); "
        f"{100 * rest:.0f} % of the multiplications of the projections are left out."
    )


def _answering(session: RunSession) -> Answering:
    """Return how training answers questions: as the scoring of its task does, where a right answer is worth 1."""
    spec, base, task = session.spec, session.base, get_task(session.spec.data.task)
    form = session.rows.training_format(base.tokenizer, spec.data)
    rule = spec.eval.extraction or RULES[spec.eval.protocol]
    gold = {row.id: row.answer for row in session.rows.train}

    def reward(row: str, answer: list[int]) -> float:
        return float(task.judge(form.answer_text(answer), gold[row], rule)[1])

    limit = answer_limit(spec, task.name, form, ())
    return Answering(reward, StopRule(base.model, base.tokenizer, form), limit)
