"""Folders that peft itself writes, and changes to them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from contract import logits, tokens
from safetensors.torch import load_file, save_file

from llm_adapters_lab.models import random_models

IDS = tokens()

PEFT_WARNINGS = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft asks for it
    pytest.mark.filterwarnings("ignore:unclosed file .*adapter_config.json:ResourceWarning"),  # peft opens it
]


def base() -> Any:
    return random_models.tiny("tiny:llama")


def lora(**fields: Any) -> peft.LoraConfig:
    usual = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    return peft.LoraConfig(**(usual | fields))


def move(model: Any) -> None:
    """Move every trainable tensor off its initial value, as training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def write_folder(folder: Path, config: Any = None, name: str = "default") -> torch.Tensor:
    """Save an adapter of peft that has been trained; return its logits."""
    model = peft.get_peft_model(base(), config or lora(), adapter_name=name).eval()
    move(model)
    model.save_pretrained(folder)
    return logits(model, IDS)


Tensors = dict[str, torch.Tensor]


def change(folder: Path, new: Callable[[Tensors], Tensors]) -> None:
    """Replace the tensors of a folder."""
    file = folder / "adapter_model.safetensors"
    save_file(new(load_file(file)), file)
