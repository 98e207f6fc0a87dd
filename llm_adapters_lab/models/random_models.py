"""Tiny random models of many families, for tests and for looking at: two layers, width 32."""

from __future__ import annotations

from typing import Any

import torch

from llm_adapters_lab.errors import BadSpec, choices

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
_GATED = {**_SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1}
_GATED |= {"eos_token_id": 2}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 512, "rotary_dim": 4}
_GPT |= {"bos_token_id": 1, "eos_token_id": 2}
_OWN: dict[str, dict[str, Any]] = {
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
_HEAD_DIM = ("qwen3", "gemma", "gemma2", "gemma3_text", "glm", "glm4")
TINY = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi", "phi3", "olmo2", "stablelm", "granite"),
    *("cohere", "starcoder2", "glm", "gpt2", "gptj", "gpt_neo", "gpt_neox", "opt", "bloom", "falcon", "mpt"),
    *("codegen", "glm4"),
)


def tiny_config(base: str) -> Any:
    """Return the configuration of `tiny:<family>`: two layers, width 32.

    Raises:
        BadSpec: the family is unknown.
    """
    from transformers import CONFIG_MAPPING

    family = base.removeprefix("tiny:")
    if family not in TINY:
        raise BadSpec(f"There is no tiny model {family!r}. {choices(family, TINY)}")
    kind = "gemma3_text" if family == "gemma3" else family
    fields = _OWN.get(family, _GATED) | ({"head_dim": 8} if kind in _HEAD_DIM else {})
    if family in ("gemma2", "gemma3"):
        fields = {**fields, "query_pre_attn_scalar": 8}
    return CONFIG_MAPPING[kind](**fields)


def tiny(base: str, seed: int = 0) -> Any:
    """Return a random model of `tiny:<family>`, always the same for one seed."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(tiny_config(base)).eval()
