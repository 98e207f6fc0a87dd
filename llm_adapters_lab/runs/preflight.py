"""Checks before a run: read its rows and find faults before any weight is loaded."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import torch
from accelerate.utils import is_torch_version

from llm_adapters_lab._version import __version__
from llm_adapters_lab.core.blending import begin_from_saved
from llm_adapters_lab.core.injection import find_sites, inject
from llm_adapters_lab.core.saved_adapters import looking_in
from llm_adapters_lab.errors import BadSpec, choices
from llm_adapters_lab.evaluation.forgetting import read_text, windows
from llm_adapters_lab.evaluation.predictions import ask
from llm_adapters_lab.evaluation.scoring import RULES
from llm_adapters_lab.models import quantization
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs import trackers
from llm_adapters_lab.runs.forecast.fits import require_memory
from llm_adapters_lab.runs.rows import Rows, answer_limit, read_rows, scoring_format
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.encoding import count_control_rows
from llm_adapters_lab.tasks.formats import Format
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.round_trip import indistinct, unreadable
from llm_adapters_lab.tasks.tokens import documents, text_ids
from llm_adapters_lab.training import deepspeed_zero
from llm_adapters_lab.training.compilation import require_compiler
from llm_adapters_lab.training.distributed import ProcessGroup, sharded
from llm_adapters_lab.training.regimes import check_sites


def preflight(spec: RunSpec, base: Blueprint) -> Rows:
    """Read the rows of a run, and check everything that can be checked before its weights load.

    Args:
        spec: of the run.
        base: the blueprint of its base.

    Raises:
        LabError: spec, rows, base or placement are at fault, or there is not enough memory.
    """
    rows = read_rows(spec)
    if spec.adapter:  # what is checked has the parts of all groups
        spec = spec.model_copy(update={"adapter": spec.adapter.with_groups(rows.groups.names)})
    check_spec(spec, base)
    require_memory(spec, rows, base)
    check_rows(spec, rows, base)
    return rows


def check_rows(spec: RunSpec, rows: Rows, base: Blueprint) -> None:
    """Check the rows as the tokenizer writes them; `rows` then knows which are left out or cannot be judged right.

    Raises:
        BadSpec: under 10 % of the training rows or of a scored set are usable, or over 50 % of a set cannot be judged
            right; both are allowed by `data.allow_dropped`. Or the rows do not fit the model.
    """
    if not (spec.learns or spec.eval.tasks or spec.eval.forgetting):
        return
    tokenizer, data, rule = base.usable_tokenizer(spec.learns), spec.data, spec.eval.extraction
    rule, allow = rule or RULES[spec.eval.protocol], "To run it anyway, set data.allow_dropped: true."
    if spec.adapter and spec.learns:
        pairs = sum(bool(row.rejected) for row in rows.train)
        if pairs != (len(rows.train) if spec.train.objective == "dpo" else 0):
            learn = "The objective dpo needs one in all, others in none."
            raise BadSpec(f"{pairs} of {len(rows.train)} training rows have a rejected answer. {learn}")
        if equal := sum(row.rejected == row.output for row in rows.train if row.rejected):
            rows.notes.append(f"In {equal:,} of {pairs:,} pairs, both answers are equal; nothing is learnt from them.")
        samples, left_out = rows.samples(tokenizer, data)
        base.check_ids(max(sample.ids) for sample in samples)
        longest, virtual = (
            max(len(sample.ids) for sample in documents(samples)),
            sum(getattr(part, "virtual_tokens", 0) for part in spec.adapter.parts),
        )
        if base.context and longest + virtual > base.context:
            besides = f" beside the {virtual} virtual tokens of the adapter" if virtual else ""
            room = f"{spec.base} takes {base.context - virtual}{besides}: set data.max_tokens to at most that."
            raise BadSpec(f"The longest training row has {longest} tokens, but {room}")
        if 10 * (len(samples) - left_out.unknown) < left_out.rows and not data.allow_dropped:
            raise BadSpec(f"Under 10 % of the training rows are usable. {left_out.text} {allow}")
        if data.form == "rows":
            form = rows.training_format(tokenizer, data)
            rows.notes += template_notes(spec.base, form)
            rows.unreadable = [unreadable(tokenizer, get_task(data.task), rows.train, "train", form, rule)]
    if text := spec.eval.forgetting:
        base.check_ids(chain(*windows(tokenizer, read_text(text), base.context)))
        known = rows.groups.names
        if known and spec.eval.group not in known and not (spec.adapter and spec.adapter.has_mean):
            raise BadSpec(f"eval.forgetting = {text} is read by one part. {choices('', known)} Set eval.group to it.")
    for name, asked in rows.test.items():
        task, of = get_task(name), f"test/{name}"
        form = scoring_format(spec, name, asked, tokenizer)
        limit = 0 if spec.eval.protocol == "options" else answer_limit(spec, name, form, asked)
        if limit:
            found = unreadable(tokenizer, task, asked, of, form, rule, limit)
        else:
            found = indistinct(tokenizer, task, asked, of, form)
        rows.unreadable.append(found)
        _check_questions(spec, rows, base, name, form, limit)
    rows.unreadable = [found for found in rows.unreadable if found.count]
    for found in rows.unreadable:
        if 2 * found.count > found.total and not data.allow_dropped:
            raise BadSpec(f"{found.text} This is the tokenizer of {spec.base} with the rule {rule!r}. {allow}")


def _check_questions(spec: RunSpec, rows: Rows, base: Blueprint, name: str, form: Format, limit: int) -> None:
    """Note the scored rows of a task that cannot be answered as they are asked; refuse the run if most cannot."""
    tokenizer, task, asked, shots = base.tokenizer, get_task(name), rows.test[name], rows.shots.get(name, ())
    shown, notes = [*shots, *(replace(row, output="") for row in asked)], []
    if written := count_control_rows(tokenizer, shown, form):
        read_as = "a token" if form.control_tokens == "allow" else "text"
        where = f"{written:,} of {len(shown):,} rows have a control token written out"
        notes = [f"test/{name}: {where}, read as {read_as}."]
    choose = bool(base.context and task.labels) and (spec.eval.likelihood or not limit)
    questions = ask(tokenizer, task, asked, form, shots, limit, choose)
    if max(tokenizer.get_vocab().values(), default=0) >= base.embeddings:
        base.check_ids(chain(*(question.ids for question, _ in questions), *text_ids(tokenizer, task.labels)))
    virtual = getattr(spec.adapter, "virtual_tokens", 0)
    fits = (base.context or sys.maxsize) - virtual
    unknown = [tokenizer.unk_token_id in question.ids[1:] for question, _ in questions]
    of = f"of {len(asked):,} rows"
    if long := sum(need > fits for _, need in questions):
        room = f"the {fits} tokens of {spec.base}" + " beside its virtual tokens" * bool(virtual)
        answer = f"an answer of eval.max_new_tokens = {limit}" if limit else "their longest option"
        notes.append(f"test/{name}: {long:,} {of} exceed {room} with {answer}, and count as wrong.")
    if any(unknown):
        notes.append(f"test/{name}: {sum(unknown):,} {of} have characters that the tokenizer does not know.")
    rows.notes += [note for note in (*template_notes(spec.base, form), *notes) if note not in rows.notes]
    usable = sum(need <= fits and not strange for (_, need), strange in zip(questions, unknown, strict=True))
    if 10 * usable < len(asked) and not spec.data.allow_dropped:
        advice = (
            "Lower eval.max_new_tokens or eval.shots, or use another base; to run it anyway, set data.allow_dropped."
        )
        raise BadSpec(f"Under 10 % of the rows can be answered. {' '.join(notes)} {advice}")


def template_notes(base: str, form: Format) -> list[str]:
    """Return what could surprise in how rows are written, by the chat template that is used or is not."""
    own = getattr(form.tokenizer, "chat_template", None)
    if not form.chat:
        why = f"{base} has a chat template, but rows are written with the plain prompt {form.name!r}."
        return [f"{why} To use it, set template: chat."] if own else []
    notes = []
    if form.name != "chat":
        why = "whose own is another" if own else "which has none of its own"
        notes = [f"Rows are written by the chat template {form.name} for {base}, {why}."]
    if "strftime_now" in form.chat:
        notes.append("The chat template writes today's date: on another day, prompts differ.")
    begin, adds = form.tokenizer.bos_token, text_ids(form.tokenizer, ["a"], begin=True)[0][0]
    if adds == form.tokenizer.bos_token_id and not any(name in form.chat for name in ("bos_token", begin)):
        why = f"The chat template writes no begin token, though the tokenizer puts {begin} before plain text"
        notes.append(f"{why}; as in apply_chat_template, there is none.")
    return notes


def check_spec(spec: RunSpec, base: Blueprint | None = None, root: str | Path | None = None) -> None:
    """Check base and placement on a model without weights, and that everything the training asks for is installed.

    Args:
        spec: of a run.
        base: the blueprint of its base, if it has been read.
        root: folder of the runs that it may refer to; by default, as in `looking_in`.

    Raises:
        LabError: something is at fault.
    """
    trackers.require(spec.train.trackers)
    base = base or Blueprint(*spec.base_parts)
    skeleton = base.skeleton
    if sharded():
        _check_spread(spec.base, base.quantization(spec.quantization))
    quantization.check(spec.base, base.config, spec.quantization)
    if spec.quantization.startswith("nf4") and not torch.cuda.is_available():
        quantization.check_widths(quantization.projections(skeleton))
    if spec.adapter:
        if spec.train.compile and spec.learns:
            require_compiler("cuda" if torch.cuda.is_available() else "cpu")
        sites = find_sites(spec.adapter, base.anatomy, skeleton)
        if spec.train.regime and spec.learns:
            check_sites(spec.adapter, spec.train.regime, sites.values())
        if spec.adapter.saved:
            with looking_in(root) if root else nullcontext():
                injection = inject(skeleton, spec.adapter, tokenizer=base.tokenizer_if_any)
                try:
                    begin_from_saved(injection, base.tokenizer_if_any)
                finally:
                    injection.eject()


def _check_spread(base: str, quantization: str) -> None:
    """Refuse quantised weights that cannot be sharded."""
    if quantization == "int8" and not deepspeed_zero.requested():
        raise BadSpec(f"{base} in int8 does not work with FSDP, which loses its scales. Choose nf4, or ZeRO 3.")
    if quantization == "torchao":
        raise BadSpec(f"{base} is quantised by torchao, which FSDP and ZeRO 3 cannot shard. Replicate it: --multi_gpu.")


def check_group(group: ProcessGroup, spec: RunSpec, fresh: bool) -> None:
    """Check that all processes of a group are about to execute the same run, and can share it.

    Raises:
        BadSpec: they are not, or cannot.
    """
    if group.count > 1:
        versions = {name: version(name) for name in ("torch", "transformers", "accelerate")}
        wanted = {"the spec": spec.canonical(), "fresh": fresh, "FSDP or ZeRO 3": sharded()}
        group.require_equal({"llm_adapters_lab": __version__, **versions, **wanted})
        _check_shareable(spec, group.count)


def _check_shareable(spec: RunSpec, count: int) -> None:
    if spec.learns and spec.train.batch % count:
        raise BadSpec(
            f"train.batch = {spec.train.batch} cannot be divided evenly among {count} processes. "
            "Choose a multiple of their number: the batch is that of all processes together."
        )
    regime = spec.train.regime if spec.learns else None
    if regime and (regime.heads % count or sharded()):
        why = f"train.regime.heads = {regime.heads} cannot be divided evenly among {count} processes"
        raise BadSpec(
            f"{'train.regime does not work with FSDP or ZeRO 3' if sharded() else why}. Change one of the two."
        )
    if spec.device_map != "none":
        raise BadSpec(
            f"device_map = {spec.device_map} spreads the base over all devices, but each of {count} processes has one. "
            "Set it to none and shard the base by FSDP or ZeRO 3, see docs/processes.md; or start one process."
        )
    if sharded() and spec.train.compile:
        raise BadSpec("train.compile does not work with FSDP or ZeRO 3, whose layers replace their weights. Remove it.")
    if not sharded() or deepspeed_zero.requested():
        return
    if os.environ.get("FSDP_VERSION", "2") != "2" or is_torch_version("<", "2.7"):
        raise BadSpec("Only version 2 of FSDP is supported, from torch 2.7 on. Set fsdp_version: 2 for accelerate.")
