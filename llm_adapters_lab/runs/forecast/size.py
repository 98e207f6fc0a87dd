"""How large a run's model is, before any weight is loaded: parameters of base and adapter, and the memory they need."""

from __future__ import annotations

from dataclasses import dataclass

from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.quantized_formats import named
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models import loading
from llm_adapters_lab.models import spec as models_spec
from llm_adapters_lab.models.blueprint import outline
from llm_adapters_lab.models.quantization import size as packed_size
from llm_adapters_lab.models.spec import Quantization
from llm_adapters_lab.runs.spec import RunSpec

STATES = 4
"""Tensors of an adapter's size while it is trained: itself, its gradient and the two moments of AdamW."""


@dataclass(frozen=True)
class Size:
    """Sizes of a model with an adapter.

    Attributes:
        base: parameters of the base, shared ones once.
        trainable: parameters of the adapter.
        weights: bytes of the base's weights.
        training: bytes of the adapter, its gradients and the optimiser's moments.
    """

    base: int
    trainable: int
    weights: int
    training: int

    @property
    def share(self) -> float:
        """Trainable parameters as a share of the base's."""
        return self.trainable / max(1, self.base)


def size(
    base: str,
    adapter: AdapterConfig | None,
    dtype: models_spec.Dtype = "auto",
    *,
    quantization: Quantization = "none",
    trust_remote_code: bool = False,
) -> Size:
    """Count parameters and bytes; activations, which grow with batch and length, are not among them.

    Args:
        base: as in a spec.
        adapter: its config, or None for the bare base.
        dtype: of the base's weights.
        quantization: of its projections; "none" is as its files are.
        trust_remote_code: run model code that comes with a hub repository.

    Raises:
        LabError: base or adapter cannot be built; the message says why.
    """
    model, _ = outline(base, trust_remote_code)
    scheme = quantization if quantization != "none" else named(model.config)
    total = sum(p.numel() for p in model.parameters())
    weights = packed_size(model, scheme, loading.pick_dtype(dtype))
    if adapter is None:
        return Size(total, 0, weights, 0)
    try:
        injection = inject(model, adapter)
    except BadSpec:
        # One that starts from a text needs to know its tokens; whatever else is wrong is said the second time.
        injection = inject(model, adapter, tokenizer=loading.tokenizer(base, trust_remote_code=trust_remote_code))
    try:
        bytes_ = sum(p.numel() * p.element_size() for p in injection.parameters())
        return Size(total, injection.count(), weights, STATES * bytes_)
    finally:
        injection.eject()


def size_of(spec: RunSpec) -> Size:
    """Return what `size` says of a run."""
    more = {"quantization": spec.quantization, "trust_remote_code": spec.trust_remote_code}
    return size(spec.base, spec.adapter, spec.dtype, **more)  # type: ignore[arg-type]
