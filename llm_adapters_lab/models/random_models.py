"""Tiny random models of many families, for tests and inspection: two layers, width 32."""

from __future__ import annotations

from typing import Any

from llm_adapters_lab.errors import BadSpec, choices

TINY = tuple(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3 phi phi3 olmo2 stablelm granite cohere starcoder2 glm gpt2 gptj "
    "gpt_neo gpt_neox opt bloom falcon mpt codegen glm4".split()
)
"""The families."""

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


def family_of(base: str) -> str:
    """Return the family that `tiny:<family>` names.

    Raises:
        BadSpec: the family is unknown.
    """
    family = base.removeprefix("tiny:")
    if family not in TINY:
        raise BadSpec(f"There is no tiny model {family!r}. {choices(family, TINY)}")
    return family


def tiny_config(base: str) -> Any:
    """Return the configuration of `tiny:<family>`: two layers, width 32.

    Raises:
        BadSpec: the family is unknown.
    """
    from transformers import CONFIG_MAPPING

    family = family_of(base)
    fields = dict(_FIELDS.get(family, _GATED))
    if family in _HEAD_DIM:
        fields["head_dim"] = 8
    if family in ("gemma2", "gemma3"):
        fields["query_pre_attn_scalar"] = 8
    return CONFIG_MAPPING["gemma3_text" if family == "gemma3" else family](**fields)


def tiny(base: str, seed: int = 0) -> Any:
    """Return a random model of `tiny:<family>`, always the same for the same seed."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(tiny_config(base)).eval()
