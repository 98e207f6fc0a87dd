"""A placement reaches only some of the layers it names.

Area: models
Elsewhere: peft#3658, #3534, #1024: only the layers that have the module are matched, 5 of 30 on Gemma 4.
Before: on a Gemma 4 whose values are its keys, `v` gave 3 of 6 layers, and `q,v@4-5` became `q` on shared keys.
Here: a role that is missing in a layer asked for is an error that names role and layers; `v?` takes those that have
    it. Dry run, `anatomy`, `show` and the card count sites by role and layer.
Verdict: silent → refused
"""

import pytest
from odd_models import decoder

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.placement import describe, sites
from llm_adapters_lab.core.sites import describe_counts, placement_counts
from llm_adapters_lab.errors import EmptyPlacement


def test_half_the_layers_get_no_adapter() -> None:
    equal = Anatomy.of(decoder("gemma4_text", num_hidden_layers=6, attention_k_eq_v=True, **GEMMA))
    for at in ("v", "q,v", "q,k,v@0-5", "q+v@1"):
        with pytest.raises(EmptyPlacement, match="v in layers 1.*, which it has only in layers 0,2,4"):
            sites(equal, at)
    shared = Anatomy.of(decoder("gemma4_text", num_hidden_layers=6, num_kv_shared_layers=2, **GEMMA))
    for at, missing in (("k,v", "4-5"), ("q,v@4-5", "4-5"), ("v@3-4", "4"), ("v.in", "4-5")):
        with pytest.raises(EmptyPlacement, match=rf"v(\.in)? in layers {missing}, which it has only in layers 0-3"):
            sites(shared, at)
    with pytest.raises(EmptyPlacement, match="qkv in layers 0-5, which it has nowhere"):
        sites(equal, "q,qkv")
    found = sites(equal, "q,v?")
    assert describe_counts(placement_counts(found)) == "q@0-5 (6) + v@0,2,4 (3)"
    assert sites(equal, describe(equal, [site.path for site in found])) == found


GEMMA = {
    "hidden_size_per_layer_input": 0,
    "global_head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}
