"""Which shortcuts of a training hold for a model, an adapter and rows: asked before, and tried before they are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.call_context import looks_back
from llm_adapters_lab.core.injection import Injection, injections
from llm_adapters_lab.core.modifiers.base import modified
from llm_adapters_lab.core.packed import scheme
from llm_adapters_lab.events import FellBack
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training.batches import collate
from llm_adapters_lab.training.loss import Objective, Shortcuts
from llm_adapters_lab.training.packing import why_not
from llm_adapters_lab.training.spec import TrainSpec

TOLERANCE = 1e-3
"""Nats by which the loss of a token may differ from the plain computation in fp32; a wrong one differs by more."""
ROUNDING = 4.0
"""In lower precision: largest admitted ratio of a fast path's differences to those of `rounding` (root mean squares).
A correct fast path is near 1; one in which rows see each other was at 57 and more."""


def choose(
    model: nn.Module, injection: Injection, samples: Sequence[Sample], plan: TrainSpec
) -> tuple[Shortcuts, list[FellBack]]:
    """Return the shortcuts of a plan that hold, and for each other one why it does not.

    What can be told from model, adapter and rows is told; the rest is tried on three short rows against the plain way.
    """
    able, reasons = told(model, injection, samples, plan)
    held, first = Shortcuts(), ""
    # In this order one shortcut after the other is given up.
    for cuts in (able, replace(able, share_prefix=False), replace(able, packing=False, share_prefix=False)):
        apart = "" if cuts == Shortcuts() else _apart(model, injection, samples, cuts)
        if not apart:
            held = cuts
            break
        first = first or apart
    for name in vars(able):
        if getattr(able, name) and not getattr(held, name):
            reasons[name] = f"{type(model).__name__} computes {first} with it"
    return held, [FellBack(f"train.{name}", f"{reason}; done the plain way.") for name, reason in reasons.items()]


def told(
    model: nn.Module, injection: Injection, samples: Sequence[Sample], plan: TrainSpec
) -> tuple[Shortcuts, dict[str, str]]:
    """Return the shortcuts that model, adapter and rows allow, and by name why others are not; none is tried."""
    wanted = Shortcuts(plan.label_head, plan.packing, plan.packing and plan.share_prefix)
    reasons = {}
    if wanted.label_head and model.get_output_embeddings() is None:  # type: ignore[operator]
        reasons["label_head"] = f"{type(model).__name__} has no output head of its own"
    whole = [i.config.type for i in injections(model).values() if "model" in i.adapters]
    config = model.get_submodule(injection.anatomy.decoder).config
    longest = max(len(sample.ids) for sample in samples)
    packing = why_not(model, config, longest)
    if any(modifier.forwards > 1 for _, _, modifier in modified(injection.adapters)):
        packing = "a split adapter runs every batch twice"
    if looks_back(model):
        packing = "an adapter looks at earlier tokens, and would see those of the row before"
    if wanted.packing and (reason := f"{whole[0]} puts virtual tokens before every row" if whole else packing):
        reasons["packing"] = reason
    elif wanted.share_prefix and (name := dropout(model)):
        reasons["share_prefix"] = f"{name} drops out for every row by itself"
    able = replace(wanted, **dict.fromkeys(reasons, False))
    return replace(able, share_prefix=able.packing and able.share_prefix), reasons


def dropout(model: nn.Module) -> str:
    """Return the name of a module that drops something out in training, or nothing."""
    name: str
    for name, module in model.named_modules():
        rates = {key: value for key, value in vars(module).items() if "drop" in key and isinstance(value, float)}
        if any(rates.values()) or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p):
            return name
    return ""


def _apart(model: nn.Module, injection: Injection, samples: Sequence[Sample], cuts: Shortcuts) -> str:
    """Say how the losses of three short rows differ from those of the plain way, or nothing if they do not."""
    rows = probes(samples)
    try:
        with trial(model, injection):
            with Objective(model, Shortcuts()).losses(model, rows) as plain:
                pass
            with Objective(model, cuts).losses(model, rows) as short:
                pass
            return off(plain, short, rounding(model, rows))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        return f"nothing ({type(error).__name__})"


def off(plain: torch.Tensor, short: torch.Tensor, noise: float | None) -> str:
    """Say how far losses are from what they should be, or nothing if only rounding sets them apart.

    Args:
        plain: loss of each token by the plain computation, in nats.
        short: the same by a fast path.
        noise: of `rounding`; None in fp32.
    """
    apart = plain - short
    far, spread = float(apart.abs().max()), float(apart.square().mean().sqrt())
    if far <= TOLERANCE or (noise is not None and spread <= ROUNDING * noise):
        return ""
    return f"losses that are up to {far:.2g} nats off"


def rounding(model: nn.Module, rows: Sequence[Sample]) -> float | None:
    """Return by how many nats rounding alone moves the loss of a token (root mean square); None in fp32.

    Measured between two computations that are both right: padded rows as one batch, and the same one by one.
    """
    if model.dtype == torch.float32 and scheme(model) != "int8":
        return None
    batch = collate(rows, 0, weights.device(model))
    inputs, labels = {name: batch[name] for name in ("input_ids", "attention_mask")}, batch["labels"][:, 1:]

    def losses(some: slice) -> torch.Tensor:
        logits = model(**{name: value[some] for name, value in inputs.items()}, use_cache=False).logits[:, :-1]
        return cross_entropy(logits.float().flatten(0, 1), labels[some].flatten(), reduction="none")

    one_by_one = torch.cat([losses(slice(i, i + 1)) for i in range(len(rows))])
    apart = (losses(slice(None)) - one_by_one)[labels.flatten() != IGNORED]
    return float(apart.square().mean().sqrt())


@contextmanager
def trial(model: nn.Module, *injections: Injection) -> Iterator[None]:
    """Try something on a model and adapters without dropout, away from their start; they are put back to the bit."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), ExitStack() as shaken:
            for injection in injections:
                shaken.enter_context(_shaken(injection))
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def probes(samples: Sequence[Sample]) -> list[Sample]:
    """Return three rows of different lengths, two of which begin alike, with a label everywhere."""
    ids = (samples[0].ids * 8)[:16]
    made = (ids, (*ids[:6], *ids[:5:-1][:5]), ids[::-1][:9])
    return [Sample("probe", row, row) for row in made]


@contextmanager
def _shaken(injection: Injection) -> Iterator[None]:
    """Move the adapter away from its start, where most change nothing, and back again to the bit."""
    generator = torch.Generator().manual_seed(0)
    copies = [adapter for adapter in injection.adapters.values() if adapter.trains_base]
    before: dict[nn.Parameter, torch.Tensor] = {}
    if not copies:  # those start as the base, which is not zero, and are large
        before = {p: p.detach().clone() for p in injection.parameters()}
    try:
        for p in before:
            p.add_(0.02 * torch.randn(p.shape, generator=generator).to(p))
        yield
    finally:
        for p, value in before.items():
            p.copy_(value)
