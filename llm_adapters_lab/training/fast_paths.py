"""Which fast paths hold for a model, an adapter and rows: ruled out by inspection, then verified on a few rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.call_context import CONTEXT_ATTRIBUTE, looks_back
from llm_adapters_lab.core.injection import Injection, injections
from llm_adapters_lab.core.modifiers.base import modified
from llm_adapters_lab.core.quantized import scheme
from llm_adapters_lab.events import FellBack
from llm_adapters_lab.tasks.tokens import IGNORED, Sample, documents
from llm_adapters_lab.training.batches import collate
from llm_adapters_lab.training.distributed import sharded
from llm_adapters_lab.training.last_layer import last_parts
from llm_adapters_lab.training.loss import FastPaths, Objective, adds_router_loss, call_inputs, row_inputs
from llm_adapters_lab.training.lower_layers import LowerStates, layers_below
from llm_adapters_lab.training.packing import packing_obstacle
from llm_adapters_lab.training.spec import TrainSpec

TOLERANCE = 1e-3
"""Admissible difference of a token's loss from the plain computation in fp32, in nats; wrong ones differ by more."""
ROUNDING = 4.0
"""In lower precision: maximum ratio of a fast path's differences to `rounding_noise` (root mean squares).
A correct fast path is near 1; one in which rows see each other was at 57 and more."""
GRADIENT_TOLERANCE = 1e-2
"""Admissible change of the gradients by recomputation, relative to their norm. They are equal to the bit where kernels
are deterministic, and far off where a recipe does not compute what was there."""
HEAD_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}
"""Logits in fp32 that are there at a time. At 262,144 words that is 64 labels on a CPU, where a step took 1.13 times as
long as with all at once (shape of Gemma-3-270M, 4 rows of 64 labels; with 128: 1.08). The value for GPUs is a guess."""
FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, IndexError)
"""Errors by which a model shows that it cannot run in an unusual way."""


def choose_fast_paths(
    model: nn.Module, injection: Injection, samples: Sequence[Sample], plan: TrainSpec
) -> tuple[FastPaths, list[FellBack]]:
    """Return the fast paths of a plan that hold, and for each of the others an event with the reason.

    Those that inspection does not rule out are compared with the plain computation on three short rows.
    """
    able, reasons = eligible(model, injection, samples, plan)
    held, first, wanted = FastPaths(), "", able
    able = replace(able, head_chunk=0, label_layer=False, recompute=False)
    for paths in (able, replace(able, share_prefix=False), replace(able, packing=False, share_prefix=False)):
        fault = "" if paths == FastPaths() else _try(model, injection, samples, paths)
        if not fault:
            held = paths
            break
        first = first or fault
    for name in vars(able):
        if getattr(able, name) and not getattr(held, name):
            reasons[name] = f"{type(model).__name__} computes {first} with it"
    # Each of these alone; the head in small chunks, as there are few labels.
    small = {"head_chunk": replace(held, head_chunk=4), "label_layer": replace(held, label_layer=True)}
    for (name, tried), what in zip(small.items(), ("its head in chunks", "its last layer at labels only"), strict=True):
        if held.label_head and (value := getattr(wanted, name)):
            if fault := _try(model, injection, samples, tried):
                reasons[name] = f"{type(model).__name__} computes {fault} with {what}"
            held = held if fault else replace(held, **{name: value})
    if wanted.recompute:
        if fault := _try_gradients(model, injection, samples, held):
            reasons["recompute"] = f"{type(model).__name__} computes {fault} with it"
        held = replace(held, recompute=not fault)
    return held, [FellBack(f"train.{name}", f"{reason}; computed without it.") for name, reason in reasons.items()]


def eligible(
    model: nn.Module, injection: Injection, samples: Sequence[Sample], plan: TrainSpec
) -> tuple[FastPaths, dict[str, str]]:
    """Return the fast paths that inspection does not rule out, and by name why it rules out others."""
    wanted = FastPaths(
        label_head=plan.label_head,
        packing=plan.packing,
        share_prefix=plan.packing and plan.share_prefix,
        label_layer=plan.label_head and not (plan.compile or plan.regime or _needs_all_tokens(injection)),
        # Compiled layers choose themselves what to keep, and spread weights are not at hand when it is needed.
        recompute=plan.recompute and not (plan.gradient_checkpointing or plan.compile or sharded()),
    )
    reasons = {}
    if wanted.label_head and model.get_output_embeddings() is None:  # type: ignore[operator]
        reasons["label_head"] = f"{type(model).__name__} has no output head of its own"
    if wanted.packing and (reason := _packing_obstacle(model, injection, samples)):
        reasons["packing"] = reason
    elif wanted.share_prefix and (reason := _sharing_obstacle(model, injection, samples)):
        reasons["share_prefix"] = reason
    able = replace(wanted, **dict.fromkeys(reasons, False))
    size = _head_chunk(model, samples, plan) if able.label_head else 0
    if size and sharded():
        size, reasons["head_chunk"] = 0, "the weights of the output head are spread over the processes"
    if able.label_layer and (reason := _last_layer_obstacle(model, injection)):
        reasons["label_layer"] = reason
    able = replace(able, **dict.fromkeys(reasons.keys() - {"head_chunk"}, False))
    return replace(able, share_prefix=able.packing and able.share_prefix, head_chunk=size), reasons


def _head_chunk(model: nn.Module, samples: Sequence[Sample], plan: TrainSpec) -> int:
    """Return how many labels have their logits at a time; 0 if no micro-batch has more."""
    answers = plan.answers if plan.objective == "reward" else 1
    counts = sorted(sample.counted for sample in samples)[-(plan.micro_batch or plan.batch) :]
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", 1)  # type: ignore[operator, union-attr]
    size = max(1, HEAD_BYTES["cuda" if weights.device(model).type == "cuda" else "cpu"] // (4 * vocabulary))
    return size if sum(counts) * answers > size else 0


def _packing_obstacle(model: nn.Module, injection: Injection, samples: Sequence[Sample]) -> str:
    if whole := [i.config.type for i in injections(model).values() if "model" in i.adapters]:
        return f"{whole[0]} puts virtual tokens before every row"
    if looks_back(model):
        return "an adapter looks at earlier tokens, and would see those of the previous row"
    if any(modifier.forwards > 1 for _, _, modifier in modified(injection.adapters)):
        return "a split adapter runs every batch twice"
    if kinds := [k for k in ("ssm", "conv") if k in {site.sublayer for site in injection.anatomy.projections}]:
        return f"a mixer ({kinds[0]}) carries its state from one row into the next"
    config = getattr(model.get_submodule(injection.anatomy.decoder), "config", model.config)
    return packing_obstacle(model, config, max(len(sample.ids) for sample in documents(samples)))


def _sharing_obstacle(model: nn.Module, injection: Injection, samples: Sequence[Sample]) -> str:
    if name := find_dropout(model):
        return f"{name} draws its dropout separately for every row"
    if adds_router_loss(model):
        return "the router loss of the base counts every token of every row"
    reads_call = hasattr(model.get_submodule(injection.anatomy.decoder), CONTEXT_ATTRIBUTE)
    if reads_call and (names := {name for sample in samples for name in sample.extras}):
        return f"rows have inputs of their own ({', '.join(sorted(names))}), and a shared token would have one for all"
    return ""


def _needs_all_tokens(injection: Injection) -> bool:
    """Return whether an adapter looks at more than a token at a time, or runs every batch twice."""
    kinds, modifiers = injection.adapters.values(), [modifier for _, _, modifier in modified(injection.adapters)]
    looks = any(kind.needs_context or kind.looks_back or kind.penalty is not None for kind in kinds)
    return looks or any(modifier.forwards > 1 for modifier in modifiers)


def _last_layer_obstacle(model: nn.Module, injection: Injection) -> str:
    if adds_router_loss(model):
        return "the router loss of the base counts every token"
    return "" if last_parts(injection.anatomy) else f"the last MLP of {type(model).__name__} is no module of its own"


def find_dropout(model: nn.Module) -> str:
    """Return the name of a module with active dropout, or ""."""
    name: str
    for name, module in model.named_modules():
        rates = {key: value for key, value in vars(module).items() if "drop" in key and isinstance(value, float)}
        if any(rates.values()) or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p):
            return name
    return ""


def _try(model: nn.Module, injection: Injection, samples: Sequence[Sample], paths: FastPaths) -> str:
    """Return how the losses of three short rows differ from the plain computation, or ""."""
    rows = probe_rows(samples)
    if paths.label_layer:
        rows = [replace(row, labels=(*(IGNORED,) * (len(row.ids) - 2), *row.ids[-2:])) for row in rows]
    try:
        with trial_run(model, injection):
            with Objective(model, FastPaths(), 0, injection).losses(model, rows) as plain:
                pass
            with Objective(model, paths, 0, injection).losses(model, rows) as fast:
                pass
            return mismatch(plain, fast, rounding_noise(model, rows))
    except FAILURES as error:
        return f"nothing ({type(error).__name__})"


def _try_gradients(model: nn.Module, injection: Injection, samples: Sequence[Sample], paths: FastPaths) -> str:
    """Return how the gradients of three short rows change with recomputation, or ""."""
    rows, trained = probe_rows(samples), [p for p in injection.parameters() if p.requires_grad]
    found = []
    try:
        with trial_run(model, injection), torch.enable_grad():
            for recompute in (False, True):
                with Objective(model, replace(paths, recompute=recompute), 0, injection).losses(model, rows) as losses:
                    each = torch.autograd.grad(losses.sum(), trained, allow_unused=True)
                found.append(torch.cat([g.flatten().float() for g in each if g is not None]))
        far = float((found[0] - found[1]).norm() / found[0].norm().clamp(min=1e-30))
        return "" if far <= GRADIENT_TOLERANCE else f"gradients that are {far:.2g} of their norm off"
    except FAILURES as error:
        return f"nothing ({type(error).__name__})"


def keep_lower(
    model: nn.Module, injection: Injection, samples: Sequence[Sample], plan: TrainSpec, paths: FastPaths
) -> tuple[LowerStates | None, list[FellBack]]:
    """Return what keeps the states below an adapter for `train.cache_below`; otherwise an event with the reason."""
    config: Any = model.config
    obstacles = {
        "the first layer has an adapter": not layers_below(injection),
        "compiled layers cannot be skipped": plan.compile,
        "the weights of the layers are spread over the processes": sharded(),
        "the router loss of the base needs all layers": adds_router_loss(model),
        f"{type(model).__name__} has an encoder": getattr(config, "is_encoder_decoder", False),
        f"{(dropping := find_dropout(model))} draws its dropout in every step": bool(dropping),
    }
    if not (reason := next((reason for reason, holds in obstacles.items() if holds), "")):
        rows = probe_rows(samples)
        try:
            with trial_run(model, injection), TemporaryDirectory() as folder:
                with Objective(model, paths, 0, injection).losses(model, rows) as plain:
                    pass
                objective = Objective(model, paths, 0, injection)
                objective.lower = LowerStates(model, injection, rows, 1, Path(folder))
                with objective.losses(model, rows) as kept:
                    pass
                fault = mismatch(plain, kept, rounding_noise(model, rows))
        except FAILURES as error:
            fault = f"nothing ({type(error).__name__})"
        reason = f"{type(model).__name__} computes {fault} with it" if fault else ""
    if reason:
        return None, [FellBack("train.cache_below", f"{reason}; the layers below run in every step.")]
    return LowerStates(model, injection, samples, plan.cache_below), []


def mismatch(plain: torch.Tensor, fast: torch.Tensor, noise: float | None) -> str:
    """Return by how much losses differ from the correct ones, or "" if by rounding only.

    Args:
        plain: loss of each token by the plain computation, in nats.
        fast: the same by a fast path.
        noise: from `rounding_noise`; None in fp32.
    """
    difference = plain - fast
    far, spread = float(difference.abs().max()), float(difference.square().mean().sqrt())
    if far <= TOLERANCE or (noise is not None and spread <= ROUNDING * noise):
        return ""
    return f"losses that are up to {far:.2g} nats off"


def rounding_noise(model: nn.Module, rows: Sequence[Sample]) -> float | None:
    """Return by how many nats rounding alone moves the loss of a token (root mean square); None in fp32.

    Measured between two correct computations: padded rows as one batch, and the same rows one by one.
    """
    if model.dtype == torch.float32 and scheme(model) != "int8":
        return None
    device, decoder = weights.device(model), model.get_submodule(Anatomy.of(model).decoder)
    batch, extras = collate(rows, 0, device), row_inputs(decoder, rows, device)
    inputs, labels = {name: batch[name] for name in ("input_ids", "attention_mask")}, batch["labels"][:, 1:]

    def losses(some: slice) -> torch.Tensor:
        with call_inputs(decoder, {name: value[some] for name, value in extras.items()}):
            logits = model(**{name: value[some] for name, value in inputs.items()}, use_cache=False).logits[:, :-1]
        return cross_entropy(logits.float().flatten(0, 1), labels[some].flatten(), reduction="none")

    one_by_one = torch.cat([losses(slice(i, i + 1)) for i in range(len(rows))])
    difference = (losses(slice(None)) - one_by_one)[labels.flatten() != IGNORED]
    return float(difference.square().mean().sqrt())


@contextmanager
def trial_run(model: nn.Module, *injections: Injection) -> Iterator[None]:
    """Run a model without dropout and gradients, its adapters moved away from their start; restore both to the bit."""
    with weights.evaluating(model), torch.no_grad(), ExitStack() as moved:
        for injection in injections:
            moved.enter_context(_perturbed(injection))
        yield


def probe_rows(samples: Sequence[Sample]) -> list[Sample]:
    """Return three rows of different lengths, two with a common beginning, with a label everywhere."""
    ids = (samples[0].ids * 8)[:16]
    made = (ids, (*ids[:6], *ids[:5:-1][:5]), ids[::-1][:9])
    like = [samples[i % len(samples)] for i in range(len(made))]
    return [Sample("probe", row, row, s.extras, group=s.group) for s, row in zip(like, made, strict=True)]


@contextmanager
def _perturbed(injection: Injection) -> Iterator[None]:
    """Move the adapter away from its start, where most have no effect, and back again to the bit."""
    generator = torch.Generator().manual_seed(0)
    moved = [a for a in injection.adapters.values() if not a.trains_base]  # a copy of the base has an effect
    before = {p: p.detach().clone() for a in moved for p in a.parameters() if p.requires_grad}
    try:
        for p in before:
            p.add_(0.02 * torch.randn(p.shape, generator=generator).to(p))
        yield
    finally:
        for p, value in before.items():
            p.copy_(value)
