"""A state-space mixer beside the attention counts as MLP.

Area: models
Elsewhere: found here.
Before: in Falcon-H1, `up` also meant the `in_proj` of the Mamba mixer, and `mlp` its `out_proj`.
Here: the mixer is a sublayer of its own, `ssm`, with the roles `in_proj` and `out_proj`; its convolution has no role,
    and `anatomy`, dry run and the model panel name it.
Verdict: silent → right
"""

import pytest
from odd_models import family

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.placement import sites
from llm_adapters_lab.errors import UnknownAnatomy


def test_a_state_space_mixer_counts_as_mlp() -> None:
    model = family("falcon_h1")
    anatomy = Anatomy.of(model)
    assert [site.path for site in sites(anatomy, "up@0")] == ["model.layers.0.feed_forward.up_proj"]
    assert [site.path for site in sites(anatomy, "mlp@1", "sublayer")] == ["model.layers.1.feed_forward.down_proj"]
    assert not any("mamba" in site.path for site in sites(anatomy, "attn+mlp"))
    assert [s.role for s in sites(anatomy, "ssm@0")] == ["in_proj", "out_proj"]
    assert [s.role for s in sites(anatomy, "mixer@0", "sublayer")] == ["ssm", "attn"]
    assert "mamba.conv1d (Conv1d) in layers 0-1" in anatomy.remark
    assert anatomy.cache_shapes(model) == {0: (2, 8, 8), 1: (2, 8, 8)}  # for prefixes: of the attention beside it
    with pytest.raises(UnknownAnatomy, match=r"keeps no plain key/value cache"):
        Anatomy.of(state := family("mamba2")).cache_shapes(state)
