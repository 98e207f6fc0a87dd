"""A dense model is refused because its family also has mixtures of experts.

Area: models
Elsewhere: found here.
Before: every class named "moe" and every parameter of three dimensions counted as routed experts: Granite 4 dense,
    dense layers of Qwen3-MoE, RWKV and RecurrentGemma were refused, and the message listed attention and norms.
Here: structure decides, layer by layer; all of these have roles, and none of them that of an expert.
Verdict: refused → right
"""

from odd_models import EXPERTS, decoder, family

from llm_adapters_lab.core.anatomy import Anatomy


def test_a_dense_model_is_taken_for_experts() -> None:
    none = {"num_local_experts": 0, "num_experts_per_tok": 0, "mamba_n_heads": 8, "mamba_d_head": 8}
    granite = decoder("granitemoehybrid", shared_intermediate_size=64, layer_types=["attention"] * 2, **none)
    assert Anatomy.of(granite).roles == ("q", "k", "v", "o", "gate_up", "down", "attn", "mlp")
    qwen = Anatomy.of(decoder("qwen3_moe", mlp_only_layers=[0, 1], **EXPERTS))
    assert qwen.roles == ("q", "k", "v", "o", "gate", "up", "down", "attn", "mlp") and not qwen.left_out
    assert Anatomy.of(family("rwkv")).roles == ("k", "v", "attn.gate", "o", "up", "gate", "down", "attn", "mlp")
    griffin = Anatomy.of(family("recurrent_gemma"))
    assert [s.role for s in griffin.sublayers] == ["ssm", "mlp", "ssm", "mlp", "attn", "mlp"]
    assert not any("expert" in f"{s.role} {s.sublayer}" for s in griffin.projections)
