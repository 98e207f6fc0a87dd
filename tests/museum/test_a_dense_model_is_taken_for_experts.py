"""A dense model is refused because its family also has mixtures of experts.

Area: models
Elsewhere: found here.
Before: every class named "moe" and every parameter of three dimensions counted as routed experts: Granite 4 dense,
    dense layers of Qwen3-MoE, RWKV and RecurrentGemma were refused, and the message listed attention and norms.
Here: structure decides. What cannot be adapted is refused for what it is.
"""

import pytest
from odd_models import EXPERTS, decoder

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.errors import UnknownAnatomy


def test_a_dense_model_is_taken_for_experts() -> None:
    none = {"num_local_experts": 0, "num_experts_per_tok": 0, "mamba_n_heads": 8, "mamba_d_head": 8}
    granite = decoder("granitemoehybrid", shared_intermediate_size=64, layer_types=["attention"] * 2, **none)
    assert Anatomy.of(granite).roles == ("q", "k", "v", "o", "gate_up", "down", "attn", "mlp")
    qwen = Anatomy.of(decoder("qwen3_moe", mlp_only_layers=[0, 1], **EXPERTS))
    assert qwen.roles == ("q", "k", "v", "o", "gate", "up", "down", "attn", "mlp") and not qwen.left_out
    with pytest.raises(UnknownAnatomy, match="exactly one output projection") as rwkv:
        Anatomy.of(decoder("rwkv", attention_hidden_size=32))
    with pytest.raises(UnknownAnatomy, match="No attention") as griffin:
        Anatomy.of(decoder("recurrent_gemma", num_hidden_layers=3, lru_width=32, attention_window_size=4))
    assert not any("expert" in str(error.value) for error in (rwkv, griffin))
