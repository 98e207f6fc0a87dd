"""A state-space mixer beside the attention counts as MLP.

Area: models
Elsewhere: found here.
Before: in Falcon-H1, `up` also meant the `in_proj` of the Mamba mixer, and `mlp` its `out_proj`.
Here: an MLP consists of projections only. Other parts of a layer have no role; `anatomy`, dry run and the model panel
    name them.
"""

import pytest
from odd_models import MAMBA, decoder

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.placement import sites
from llm_adapters_lab.errors import UnknownAnatomy


def test_a_state_space_mixer_counts_as_mlp() -> None:
    model = decoder("falcon_h1", **MAMBA)
    anatomy = Anatomy.of(model)
    assert [site.path for site in sites(anatomy, "up@0")] == ["model.layers.0.feed_forward.up_proj"]
    assert [site.path for site in sites(anatomy, "mlp@1", "sublayer")] == ["model.layers.1.feed_forward.down_proj"]
    assert not any("mamba" in site.path for site in sites(anatomy, "attn+mlp"))
    assert "mamba (FalconH1Mixer) in layers 0-1" in anatomy.remark
    with pytest.raises(UnknownAnatomy, match=r"keeps no plain key/value cache"):
        anatomy.cache_shapes(model)  # for prefixes: the mixer's state cannot be prepended
