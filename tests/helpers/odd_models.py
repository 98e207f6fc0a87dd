"""Tiny random models that are not plain decoders: experts, state-space mixers, layers that differ, encoders."""

from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

_WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
_TOKENS = {"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_GROUPS = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1}
_LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
_LATENT |= {"head_dim": 4, "num_key_value_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": EXPERTS,
    "gpt_oss": EXPERTS,
    "llama4_text": EXPERTS | {"interleave_moe_layer_step": 1, "intermediate_size_mlp": 64},
    "deepseek_v3": EXPERTS | _GROUPS | _LATENT | {"first_k_dense_replace": 1},
    "longcat_flash": EXPERTS
    | _LATENT
    | {"num_layers": 2, "n_routed_experts": 4, "moe_topk": 2, "zero_expert_num": 1}
    | {"ffn_hidden_size": 64, "expert_ffn_hidden_size": 16},
    "qwen3_next": EXPERTS
    | {"shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"]}
    | {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2, "chunk_size": 8},
    "jamba": {"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_dt_rank": 4}
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "nemotron_h": EXPERTS
    | _GROUPS
    | {"num_hidden_layers": 3, "layers_block_type": ["mamba", "attention", "moe"], "n_groups": 1, "chunk_size": 8}
    | {"moe_shared_expert_intermediate_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8},
    "lfm2_moe": EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "falcon_h1": MAMBA,
    "granitemoehybrid": EXPERTS
    | {"shared_intermediate_size": 16, "layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8}
    | {"mamba_d_state": 8, "mamba_n_groups": 1},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8, "mamba_headdim": 8, "n_mamba_heads": 8}
    | {"mamba_ngroups": 1, "chunk_size": 8, "use_mem_rope": True, "num_mem_blocks": 1, "adapter_rank": 4},
    "gemma4_text": {"num_kv_shared_layers": 1, "layer_types": ["sliding_attention", "full_attention"] * 2}
    | {"num_hidden_layers": 4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128}
    | {"global_head_dim": 8, "attention_k_eq_v": True},
    "rwkv": {"attention_hidden_size": 32},
}
"""Fields of the config of a small model of each kind: experts, latent and linear attention, state spaces, hybrids."""


def decoder(kind: str, **fields: Any) -> Any:
    """Return a causal language model of a type of transformers: two layers, width 32; fields change its config."""
    fields = {"num_hidden_layers": 2, "head_dim": 8, **_WIDTHS, **_TOKENS, **fields}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields)).eval()


def family(kind: str, **fields: Any) -> Any:
    """Return a model of `FAMILIES`; fields change its config."""
    return decoder(kind, **FAMILIES[kind] | fields)


def encoder_decoder(kind: str, **fields: Any) -> Any:
    """Return a model with an encoder of three layers and a decoder of two."""
    named = {"d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    named |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 2}
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
    config = CONFIG_MAPPING[kind](**_TOKENS, **(t5 if kind == "t5" else named) | fields)
    torch.manual_seed(0)
    if kind == "whisper":
        return transformers.WhisperForConditionalGeneration(config).eval()
    return AutoModelForSeq2SeqLM.from_config(config).eval()


_LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_SOUND = {"conv_dim": (8, 8), "conv_kernel": (3, 3), "conv_stride": (2, 2), "num_feat_extract_layers": 2}
_SOUND |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", {"vocab_size": 128}),
    "vit": ("ViTForImageClassification", {"image_size": 16, "patch_size": 8}),
    "wav2vec2": ("Wav2Vec2ForCTC", {"vocab_size": 32, **_SOUND}),
    "audio-spectrogram-transformer": (
        "ASTForAudioClassification",
        {"patch_size": 4, "frequency_stride": 4, "time_stride": 4, "max_length": 16, "num_mel_bins": 8},
    ),
}
"""Class and fields of the config of a small encoder for text, images and sound."""


def encoder(kind: str) -> Any:
    """Return a model of `ENCODERS`: two layers, width 32."""
    name, fields = ENCODERS[kind]
    torch.manual_seed(0)
    return getattr(transformers, name)(CONFIG_MAPPING[kind](**_LAYERS, **fields)).eval()
