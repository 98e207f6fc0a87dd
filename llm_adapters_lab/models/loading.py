"""Load a base model: packaged, from a hub id, a local folder or a GGUF file, or tiny and random for tests."""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from llm_adapters_lab.core import quantized
from llm_adapters_lab.core.anatomy import describe_anatomy
from llm_adapters_lab.core.vocabulary import extend_model
from llm_adapters_lab.errors import ModelUnavailable
from llm_adapters_lab.models import quantization as quantizing
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.models.random_models import tiny
from llm_adapters_lab.models.spec import DeviceMap, Dtype, Quantization
from llm_adapters_lab.models.trust import check_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Base:
    """A loaded base model.

    Attributes:
        model: in evaluation mode, on the CPU or where `device_map` put it.
        tokenizer: of the model, or None for a tiny random one.
        blueprint: what it was built from.
    """

    model: Any
    tokenizer: Any
    blueprint: Blueprint

    @property
    def name(self) -> str:
        """The name under which it was asked for."""
        return self.blueprint.name


def load_base(
    base: str | Blueprint,
    dtype: Dtype = "auto",
    *,
    quantization: Quantization = "none",
    device_map: DeviceMap | dict[str, Any] = "none",
    trust_remote_code: bool = False,
) -> Base:
    """Load a model with its tokenizer.

    Args:
        base: a packaged base (`models.spec.PACKAGED`), `tiny:<family>`, a local folder, a GGUF file, or a hub id; or
            the blueprint of one, whose configuration and tokenizer are then used and not read again.
        dtype: of the weights; "auto" is bf16 on a GPU that has it, else fp32 (a CPU without matrix units trains
            many times slower in bf16).
        quantization: of the projections while they are loaded; "none" leaves them as the files have them.
        device_map: "auto" spreads the modules over the GPUs, the rest over memory, and what does not fit there over
            the disk; a dict says where each module goes, as accelerate understands it.
        trust_remote_code: run model code that comes with a hub repository. Off unless you know whose code it is.

    Raises:
        BadSpec: `tiny:` names an unknown family, or the base cannot be quantised.
        ModelUnavailable: nothing was found under that name, and the message says where it was looked for; or its files
            lack weights.
    """
    plan = base if isinstance(base, Blueprint) else Blueprint(base, trust_remote_code)
    chosen = pick_dtype(dtype)
    quantizing.check(plan.name, None, quantization)
    options: dict[str, Any] = {"dtype": chosen}
    if quantization != "none":
        options["quantization_config"] = quantizing.settings(quantization, chosen)
    if plan.random:
        if plan.tokens:
            plan.usable_tokenizer(trains=False)  # raises if there is none
        model = _random(plan, options)
        describe_anatomy(model, plan.roles)
        return Base(model, plan.tokenizer, plan)
    source, extra = plan.source
    options |= {"trust_remote_code": plan.trust_remote_code, **extra}
    if device_map != "none":
        options |= {"device_map": device_map, "offload_folder": tempfile.mkdtemp(prefix="llm-adapters-lab-")}
    with plan.naming_errors():
        if extra:
            check_model(source, plan.name, None, weights=False)
        else:  # pickled weights are never opened
            options |= {"use_safetensors": True, "config": copy.deepcopy(plan.config)}
            quantizing.check(plan.name, options["config"], quantization)
            if quantized.loaded_scheme(options["config"]) == quantization:
                options.pop("quantization_config", None)  # the files are what is asked for
            options = quantized.prepare_config(options["config"]) | options
        tokenizer = plan.tokenizer
        with quantized.quiet_loading(options.get("config")):
            found: Any = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    model, info = found
    _require_complete(plan.name, info)
    if plan.tokens:
        extend_model(model, tokenizer, plan.tokens)
    describe_anatomy(model, plan.roles)
    if folder := options.get("offload_folder"):
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    quantizing.pin_packing(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Base(model.eval(), tokenizer, plan)


def _require_complete(base: str, info: dict[str, Any]) -> None:
    """Refuse a model for which transformers did not find all weights and initialised the others at random."""
    if info["missing_keys"]:
        first, *others = sorted(info["missing_keys"])
        raise ModelUnavailable(
            f"{base} is not loaded: its files lack {first}{f' and {len(others)} more' if others else ''}, which would "
            "be random. Fetch or save the model again; if it is quantised, see quantization_config in its config.json."
        )


def _random(plan: Blueprint, options: dict[str, Any]) -> Any:
    """Return a random model, the same every time; transformers only quantises what it loads from files."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found: Any = tiny(plan.name) if plan.tiny else plan.build("cpu")
    model = found.to(options["dtype"])
    if "quantization_config" in options:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, **options)
        quantizing.pin_packing(model)
    return model.eval()


def to_device(model: Any, device: torch.device) -> None:
    """Move a model as a whole, unless each of its parts has its own device."""
    if getattr(model, "hf_device_map", None) is None:
        model.to(device)


def pick_dtype(dtype: Dtype) -> torch.dtype:
    """Return the torch dtype that a spec's `dtype` means on this machine."""
    if dtype != "auto":
        return DTYPES[dtype]
    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
