"""The parameters of a module that several sites share are counted once a site.

Area: adapters
Elsewhere: found here.
Before: `count()` gave -7,004 for a module shared among sites under a mask.
Here: shared tensors are counted, masked and saved once.
Verdict: silent → right
"""

from typing import Any

import torch

from llm_adapters_lab.adapters.series import SeriesConfig
from llm_adapters_lab.core import inject, modified
from llm_adapters_lab.core.registry import REGISTRY
from llm_adapters_lab.models.random_models import tiny


def test_a_shared_module_counts_once(monkeypatch: Any) -> None:
    series = REGISTRY["series"].cls

    def shared(cls: Any, config: Any, places: Any, world: Any) -> dict[str, Any]:
        one = cls(config, next(iter(places.values())).site, next(iter(places.values())).host)
        return dict.fromkeys(places, one)

    monkeypatch.setattr(series, "build", classmethod(shared))
    plain = inject(tiny("tiny:llama"), SeriesConfig(bottleneck=8, at="mlp"))
    sparse: dict[str, Any] = {"score": "random", "sparsity": 0.5}
    masked = inject(tiny("tiny:llama"), SeriesConfig(bottleneck=8, at="mlp", sparse=sparse))
    assert len(plain.sites) > 1 and plain.count() == sum(p.numel() for p in set(plain.parameters()))
    matrices = modified(masked.adapters)
    dropped = sum(modifier.dropped for _, _, modifier in matrices)
    assert len(matrices) == 2 and masked.count() == plain.count() - dropped > 0
    assert sum(t.numel() for t in plain.state_dict().values()) == plain.count()
    assert all(isinstance(w, torch.nn.Parameter) for _, w, _ in matrices)
