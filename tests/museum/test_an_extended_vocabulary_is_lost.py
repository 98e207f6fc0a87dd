"""Tokens that were added to a vocabulary, and the rows trained for them, are lost when the adapter is saved or merged.

Area: export
Elsewhere: transformers#45127, unsloth PR #9331, peft#1300, peft#1173, LlamaFactory#7665.
Here: an adapter is tied to the vocabulary it was trained with; a whole embedding in a peft folder is refused by name; a
    tied head stays tied in a merged folder. Rows of new tokens have their own way, `tokens`.
Verdict: refused → refused
"""

from pathlib import Path
from typing import Any

import peft
import pytest
from contract import config, logits, shake
from peft_folders import IDS, PEFT_WARNINGS, lora, move
from transformers import AutoModelForCausalLM

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.saving import load_adapter, save_adapter, save_merged
from llm_adapters_lab.errors import CannotConvert, StateMismatch, WrongBase
from llm_adapters_lab.models import random_models

pytestmark = [*PEFT_WARNINGS, pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")]


def extended(by: int) -> Any:
    model = random_models.tiny("tiny:gemma2")
    model.resize_token_embeddings(model.config.vocab_size + by, mean_resizing=False)
    return model


def test_added_tokens_are_kept_or_refused(tmp_path: Path) -> None:
    other = peft.get_peft_model(extended(3), lora(modules_to_save=["embed_tokens"]))
    move(other)
    other.save_pretrained(tmp_path / "rows")
    other = peft.get_peft_model(extended(3), lora())
    other.save_pretrained(tmp_path / "saved", save_embedding_layers=True)
    for folder, match in (("rows", "modules_to_save"), ("saved", "embed_tokens has tensors and is not named")):
        with pytest.raises((CannotConvert, StateMismatch), match=match):
            load_adapter(extended(3), tmp_path / folder)
    model = extended(3)
    injection = inject(model, config("full-fine-tuning"))
    shake(injection)
    expected = logits(model, IDS + model.config.vocab_size - 128)
    save_adapter(injection, tmp_path / "lab")
    with pytest.raises(WrongBase, match=r"embed_tokens.weight is \(\d+, 32\), was"):
        load_adapter(extended(0), tmp_path / "lab")
    save_merged(injection, tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert logits(again, IDS + model.config.vocab_size - 128).allclose(expected, atol=1e-5)
