"""The survey: a tiny random model of every causal family of the installed transformers, adapted and checked.

For each family an adapter is put at its token mixers, at its feed-forward parts, and at both. At each place it must
leave the base unchanged to the bit at first, change it once moved, answer the same when merged, and leave no trace when
ejected. With both, decoding with a cache must equal decoding without, and five training steps with all fast paths must
equal the plain ones.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import Injection, inject, injections
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.registry import all_adapters, get_adapter
from llm_adapters_lab.core.sites import ranges
from llm_adapters_lab.errors import CannotMerge, EmptyPlacement, LabError
from llm_adapters_lab.models.random_models import causal_families, tiny
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.spec import TrainSpec

YES, NONE, UNMERGED = "yes", "has none", "yes, but its layers share weights, so a merge is refused"
TOLERANCE = 1e-4
"""Largest difference of two ways to compute the same logits, relative to the largest logit; and of losses, in nats."""
STEPS = 5
CACHES = ("past_key_values", "cache_params", "state")
"""Under which names models return and take what they keep between calls."""


@dataclass
class Surveyed:
    """What the survey found on one family.

    Attributes:
        family: name of the family in transformers.
        fault: why it cannot be built, run or analysed; "" if it can.
        sublayers: kinds of sublayers with the layers that have them.
        mixers, mlp, both, cache, training: "yes", "has none", or what is wrong.
    """

    family: str
    fault: str = ""
    sublayers: str = ""
    mixers: str = ""
    mlp: str = ""
    both: str = ""
    cache: str = ""
    training: str = ""
    built: bool = field(default=True)

    @property
    def adapted(self) -> bool:
        """Whether an adapter works at token mixers, feed-forward parts and both, where the family has them."""
        return not self.fault and all(found in (YES, NONE, UNMERGED) for found in (self.mixers, self.mlp, self.both))

    def row(self) -> dict[str, str]:
        """Return the facts for a table, without empty ones."""
        facts = {key: value for key, value in asdict(self).items() if value and key != "built"}
        return {"family": self.family, "adapted": YES if self.adapted else "no" if self.built else "not built", **facts}


def usual_adapter() -> str:
    """Return the method that the survey uses if none is named: one that sits at experts too, and that others extend."""
    known = {name: entry.cls for name, entry in all_adapters().items() if entry.cls.experts}
    return next(name for name, cls in known.items() if any(issubclass(c, cls) and c is not cls for c in known.values()))


def survey(families: Sequence[str] = (), adapter: str = "") -> Iterator[Surveyed]:
    """Yield what is found on each family.

    Args:
        families: of transformers; by default, all that have a causal language model.
        adapter: type of the adapter; by default `usual_adapter`.
    """
    adapter = adapter or usual_adapter()
    for family in families or causal_families():
        with _quiet():
            yield _survey(family, get_adapter(adapter).config(**get_adapter(adapter).cls.example))


def summary(found: Sequence[Surveyed]) -> str:
    """Return how many families can be built, and how many of these are adapted."""
    built = [one for one in found if one.built]
    count = sum(one.adapted for one in built)
    return (
        f"{count} of {len(built)} families are adapted ({100 * count / max(1, len(built)):.1f} %); {len(found)} in all."
    )


def _survey(family: str, config: AdapterConfig) -> Surveyed:
    found = Surveyed(family)
    try:
        model = _steady(family)
        ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
        plain = _logits(model, ids)
        if not bool(plain.isfinite().all()):
            raise ValueError("its logits are not finite")
    except Exception as error:  # whatever a family raises, it is the finding
        found.fault, found.built = f"not built: {_told(error)}", False
        return found
    try:
        anatomy = Anatomy.of(model)
    except LabError as error:
        found.fault = _told(error)
        return found
    layers: dict[str, list[int]] = {}
    for site in anatomy.projections:
        layers.setdefault(site.sublayer, []).append(site.layer)
    found.sublayers = "; ".join(f"{kind} {ranges(own)}" for kind, own in layers.items())
    mixers = "attn?" if "attn" in layers else "mixer?"
    for name, at in (("mixers", mixers), ("mlp", "mlp?"), ("both", f"{mixers},mlp?")):
        setattr(found, name, _place(model, config, at, ids, plain))
    if found.mixers == NONE:  # there is no language model without one
        found.mixers = f"none found. {anatomy.remark}"
    if found.both in (YES, UNMERGED):
        found.cache = _attempt(lambda: _cache(model, config, f"{mixers},mlp?", ids))
        found.training = _attempt(lambda: _training(family, config, f"{mixers},mlp?"))
    return found


def _place(model: Any, config: AdapterConfig, at: str, ids: torch.Tensor, plain: torch.Tensor) -> str:
    """Return "yes", or what is wrong with an adapter at a place."""
    try:
        injection = inject(model, config, at=at)
    except EmptyPlacement:
        return NONE
    except Exception as error:
        return _told(error)
    try:
        return _attempt(lambda: _checked(model, injection, ids, plain))
    finally:
        if injection.adapters:
            injection.eject()


def _checked(model: Any, injection: Injection, ids: torch.Tensor, plain: torch.Tensor) -> str:
    if not torch.equal(_logits(model, ids), plain):
        return "changes the base before training"
    _move(injection)
    changed = _logits(model, ids)
    if torch.allclose(changed, plain, atol=1e-6):
        return "has no effect"
    twin, verdict = copy.deepcopy(model), YES
    try:
        merge(injections(twin)[injection.name])
    except CannotMerge:
        verdict = UNMERGED
    if verdict == YES and not _same(_logits(twin, ids), changed):
        return "answers otherwise when merged"
    injection.eject()
    return verdict if torch.equal(_logits(model, ids), plain) else "leaves a trace when ejected"


def _cache(model: Any, config: AdapterConfig, at: str, ids: torch.Tensor) -> str:
    try:
        base = _stepwise(model, ids)
    except RuntimeError as error:
        return f"the base itself does not decode: {_told(error)}"
    if base is None:
        return NONE
    if not _same(base, _logits(model, ids)):
        return "the base itself decodes otherwise"
    injection = inject(model, config, at=at)
    try:
        _move(injection)
        found = _stepwise(model, ids)
        return YES if found is not None and _same(found, _logits(model, ids)) else "decodes otherwise"
    finally:
        injection.eject()


@torch.no_grad()
def _stepwise(model: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """Return the logits of decoding token by token with a cache; None if the model returns none."""
    given: dict[str, Any] = {}
    parts = []
    for token in torch.split(ids, 1, dim=1):
        output = model(input_ids=token, **given, use_cache=True)
        given = {name: cache for name in CACHES if (cache := getattr(output, name, None)) is not None}
        if not given:
            return None
        parts.append(output.logits)
    return torch.cat(parts, dim=1)


def _training(family: str, config: AdapterConfig, at: str) -> str:
    losses = []
    for fast in (True, False):
        model = _steady(family)
        torch.manual_seed(0)
        injection = inject(model, config, at=at)
        plan = TrainSpec(max_steps=STEPS, batch=4, label_head=fast, packing=fast, share_prefix=fast)
        events = train(model, injection, _rows(), plan)
        losses.append([event.loss for event in events if hasattr(event, "loss")])
    most = max(abs(a - b) for a, b in zip(*losses, strict=True))
    return YES if most <= TOLERANCE else f"losses differ by {most:.1g}"


def _steady(family: str) -> Any:
    """Return a tiny model whose outputs are the same every time: frozen, and without dropout and jitter."""
    model = tiny(f"tiny:{family}").requires_grad_(False)
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and (name == "p" or "drop" in name or "jitter" in name):
                setattr(module, name, 0.0)
    return model


def _rows() -> list[Sample]:
    generator = torch.Generator().manual_seed(1)
    rows = [(5, 6, 7, *torch.randint(3, 60, (4 + n,), generator=generator).tolist()) for n in range(4)]
    return [Sample(f"row/{n}", ids, ids) for n, ids in enumerate(rows)]


def _attempt(check: Any) -> str:
    try:
        return str(check())
    except Exception as error:
        return _told(error)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * max(1.0, float(b.abs().max()))


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
        return found


def _move(injection: Injection) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
