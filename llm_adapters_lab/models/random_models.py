"""Tiny random models, for tests and inspection: of every causal family of transformers, width 32."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import BadSpec, choices

TINY = tuple(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3 phi phi3 olmo2 stablelm granite cohere starcoder2 glm gpt2 gptj "
    "gpt_neo gpt_neox opt bloom falcon mpt codegen glm4".split()
)
"""The families with a configuration of their own here: two layers. Those of all others are derived: four layers."""

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
_GATED = {**_SMALL, **_SPECIAL, "intermediate_size": 64, "num_key_value_heads": 2, "pad_token_id": 0}
_GPT = {**_SPECIAL, "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 512, "rotary_dim": 4}
_FIELDS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "gptj": _GPT,
    "codegen": _GPT,
    "gpt_neo": {**_SMALL, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 128},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 128, "expansion_ratio": 2},
    "falcon": {**_SMALL, "ffn_hidden_size": 128},
    "opt": {**_SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 512},
    "gpt_neox": {**_SMALL, "intermediate_size": 64},
}
_HEAD_DIM = ("qwen3", "gemma", "gemma2", "gemma3", "glm", "glm4")


_SIZES = {
    128: "vocab_size max_position_embeddings n_positions max_seq_len n_ctx context_length hidden_size_global",
    64: "intermediate_size ffn_dim ffn_hidden_size n_inner dim_ff dff d_ff encoder_ffn_dim decoder_ffn_dim d_inner "
    "shared_intermediate_size intermediate_size_mlp dense_intermediate_size feed_forward_size mamba_d_ssm "
    "vocab_size_per_layer_input",
    32: "hidden_size n_embd d_model embed_dim dim_model emb_dim embedding_dim word_embed_proj_dim embedding_size "
    "input_embedding_size output_embedding_size lru_width index_head_dim",
    16: "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size q_lora_rank "
    "moe_shared_expert_intermediate_size expert_ffn_hidden_size kv_lora_rank o_lora_rank hidden_size_per_layer_input "
    "mamba_d_head mamba_headdim mamba_head_dim router_hidden_size swa_head_dim time_step_rank mamba_dt_rank",
    8: "head_dim dim_head d_kv d_head kv_channels qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim "
    "linear_value_head_dim linear_head_dim mamba_d_state state_size ssm_state_size sliding_window attention_head_size "
    "laurel_rank d_rel conf_conv_kernel_size chunk_size mamba_chunk_size query_pre_attn_scalar window_size "
    "attention_window_size",
    4: "num_hidden_layers n_layer n_layers num_layers num_blocks num_attention_heads attention_heads n_head n_heads "
    "num_heads decoder_attention_heads encoder_attention_heads num_decoder_attention_heads index_n_heads index_topk "
    "num_encoder_attention_heads rotary_dim num_experts num_local_experts n_routed_experts moe_num_experts "
    "linear_num_value_heads linear_num_heads mamba_n_heads mamba_num_heads swa_num_attention_heads zero_expert_num",
    2: "encoder_layers decoder_layers num_encoder_layers num_decoder_layers num_key_value_heads num_kv_heads "
    "swa_num_key_value_heads linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k "
    "mamba_expand expand n_mamba_heads num_kv_shared_layers attn_layer_period expert_layer_period o_groups "
    "num_query_groups",
    1: "n_group topk_group num_expert_group n_groups mamba_n_groups attn_layer_offset first_k_dense_replace",
}
"""Upper limits of the fields of any configuration."""
_LIMITS = {name: size for size, names in _SIZES.items() for name in names.split()}
_TWICE = ["linear_attention", "full_attention"] * 2
_NEEDED: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [8, 24], "axial_pos_shape": [8, 16]},
    "xmod": {"default_language": "en_XX"},
    "mamba2": {"head_dim": 16},
    "bamba": {"attn_layer_indices": [1, 3]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "falcon_h1": {"mamba_d_head": 16},
    "granitemoehybrid": {"layer_types": _TWICE},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 32}
    | {"indexer_compress_ratio": 4},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "zamba": {"attention_hidden_size": 64},
    "zamba2": {"n_mamba_heads": 4, "hybrid_layer_ids": [1, 3]},
}
"""What cannot be derived from the defaults of a family."""


def family_of(base: str) -> str:
    """Return the family that `tiny:<family>` names.

    Raises:
        BadSpec: the family is unknown.
    """
    family = base.removeprefix("tiny:")
    if family not in TINY and family not in causal_families():
        raise BadSpec(f"There is no tiny model {family!r}. {choices(family, TINY)}")
    return family


def causal_families() -> list[str]:
    """Return every family of which the installed transformers has a causal language model.

    Read from its source: an import would load torch.
    """
    found = find_spec("transformers")
    assert found is not None and found.origin is not None
    source = (Path(found.origin).parent / "models/auto/modeling_auto.py").read_text(encoding="utf-8")
    mapping = source.partition("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = ")[2].partition("\n)")[0]
    return sorted(set(re.findall(r'\("([\w.-]+)",', mapping)))


def tiny_config(base: str) -> Any:
    """Return the configuration of `tiny:<family>`.

    Raises:
        BadSpec: the family is unknown.
    """
    from transformers import CONFIG_MAPPING

    family = family_of(base)
    if family not in TINY:
        return _derived(CONFIG_MAPPING[family])
    fields = dict(_FIELDS.get(family, _GATED))
    if family in _HEAD_DIM:
        fields["head_dim"] = 8
    if family in ("gemma2", "gemma3"):
        fields["query_pre_attn_scalar"] = 8
    return CONFIG_MAPPING["gemma3_text" if family == "gemma3" else family](**fields)


def _derived(kind: Any, default: Any = None) -> Any:
    """Return a small configuration of a class: its defaults, with every known size cut, in nested ones too."""
    from transformers import PreTrainedConfig

    default = kind() if default is None else default
    given, fields = vars(default), {}
    depth = next((given[name] for name in ("num_hidden_layers", "n_layer", "num_layers") if given.get(name)), None)
    for name, value in given.items():
        if isinstance(value, PreTrainedConfig):
            fields[name] = _derived(type(value), value).to_dict()
        elif isinstance(value, list) and len(value) == depth and not name.startswith("_"):  # one value for each layer
            kinds = [v for i, v in enumerate(value) if v not in value[:i]]
            fields[name] = (kinds * 4)[:4]
        elif name.endswith("token_id") and name in _SPECIAL | {"pad_token_id": 0}:
            fields[name] = (_SPECIAL | {"pad_token_id": 0})[name]
        elif type(value) is int and name in _LIMITS:
            fields[name] = min(value, _LIMITS[name])
        elif value is None and name in ("head_dim", "num_experts_per_tok"):
            fields[name] = _LIMITS[name]
    heads = [given.get(name) for name in ("num_attention_heads", "num_key_value_heads")]
    if heads[0] is not None and heads[0] == heads[1]:
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    elif heads[0] is not None and "num_key_value_heads" in given:
        fields["num_key_value_heads"] = 2
    return kind(**fields | _NEEDED.get(kind.model_type, {}))


def tiny(base: str, seed: int = 0) -> Any:
    """Return a random model of `tiny:<family>`, always the same for the same seed."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(tiny_config(base)).eval()
