"""Tiny random models that are not plain decoders: experts, state-space mixers, layers that differ, encoders."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

_WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
_TOKENS = {"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}


def decoder(kind: str, **fields: Any) -> Any:
    """Return a causal language model of a type of transformers: two layers, width 32; fields change its config."""
    fields = {"num_hidden_layers": 2, "head_dim": 8, **_WIDTHS, **_TOKENS, **fields}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields)).eval()


def encoder_decoder(kind: str, **fields: Any) -> Any:
    """Return a model with an encoder of three layers and a decoder of two."""
    named = {"d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    named |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 2}
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
    config = CONFIG_MAPPING[kind](**_TOKENS, **(t5 if kind == "t5" else named) | fields)
    return AutoModelForSeq2SeqLM.from_config(config).eval()
