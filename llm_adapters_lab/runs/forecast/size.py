"""The size of a run's model before any weight is loaded: parameters of base and adapter, and the memory they take."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models import quantization as quantizing
from llm_adapters_lab.models.blueprint import Blueprint, blueprint
from llm_adapters_lab.models.loading import pick_dtype
from llm_adapters_lab.models.spec import Dtype, Quantization
from llm_adapters_lab.runs.spec import RunSpec

STATES = 4
"""Tensors of an adapter's size during training: the parameter, its gradient and the two moments of AdamW."""


@dataclass(frozen=True)
class Size:
    """The size of a base with an adapter.

    Attributes:
        base: number of parameters of the base, shared ones counted once.
        trainable: number of parameters of the adapter.
        weights: bytes of the base's weights.
        training: bytes of the adapter, its gradients and the optimizer state.
        flops: of the training for each token, counted: forward and backward 4 for each weight of the base, and for each
            trained one 2 if it is one of the base's, else 6. Attention scores are left out.
    """

    base: int
    trainable: int
    weights: int
    training: int
    flops: int = 0

    @property
    def share(self) -> float:
        """Trainable parameters as a share of the base's."""
        return self.trainable / max(1, self.base)


def size(
    base: str | Blueprint,
    adapter: AdapterConfig | None,
    dtype: Dtype = "auto",
    *,
    quantization: Quantization = "none",
    trust_remote_code: bool = False,
) -> Size:
    """Count parameters and bytes. Activations, which grow with batch and length, are not included.

    Args:
        base: as in a spec, or its blueprint.
        adapter: its config, or None for the bare base.
        dtype: of the base's weights.
        quantization: of its projections; "none" leaves them as the files have them.
        trust_remote_code: run model code that comes with a hub repository.

    Raises:
        LabError: base or adapter cannot be built; the message says why.
    """
    plan = base if isinstance(base, Blueprint) else blueprint(base, trust_remote_code)
    model = plan.skeleton
    total = sum(p.numel() for p in model.parameters())
    weights = quantizing.weight_bytes(model, plan.quantization(quantization), pick_dtype(dtype))
    if adapter is None:
        return Size(total, 0, weights, 0)
    try:
        injection = inject(model, adapter)
    except BadSpec:  # prompt tuning from a text needs the tokenizer; any other fault is raised the second time
        injection = inject(model, adapter, tokenizer=plan.tokenizer)
    try:
        bytes_ = sum(p.numel() * p.element_size() for p in injection.parameters())
        own = 2 if any(adapter.trains_base for adapter in injection.adapters.values()) else 6
        return Size(total, injection.count(), weights, STATES * bytes_, 4 * total + own * injection.count())
    finally:
        injection.eject()


def size_of(spec: RunSpec, base: Blueprint | None = None) -> Size:
    """Return the `size` of a run's model; `base` is the blueprint of the spec's base, if it has been read."""
    plan = base or blueprint(*spec.base_parts)
    if (regime := spec.train.regime) is None or spec.adapter is None or not spec.learns:
        return size(plan, spec.adapter, spec.dtype, quantization=spec.quantization)
    heads, merged = (
        size(plan, spec.adapter.headed(regime.heads, dense), spec.dtype, quantization=spec.quantization)
        for dense in (False, regime.dense)
    )
    # The factors at the last merge, and what is merged, have neither gradients nor moments.
    return replace(heads, training=heads.training + heads.training // STATES + merged.training // STATES)
