"""Inventories of skills in folders of peft, in both directions."""

from pathlib import Path

import peft
import pytest
import torch
from contract import logits, tokens
from peft_folders import PEFT_WARNINGS, base, change, move

from llm_adapters_lab.core import grouped, inject, load_adapter, to_peft
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import CannotConvert, StateMismatch
from llm_adapters_lab.models import random_models

pytestmark = PEFT_WARNINGS
FIELDS = {"r": 2, "n_tasks": 3, "n_skills": 4, "n_splits": 2, "target_modules": ["q_proj", "v_proj"]}


def written(folder: Path) -> torch.Tensor:
    """Save an inventory of peft; return its logits for rows of the tasks 2 and 0."""
    model = peft.get_peft_model(base(), peft.PolyConfig(task_type="CAUSAL_LM", **FIELDS)).eval()
    move(model)
    model.save_pretrained(folder)
    with torch.no_grad():
        return model(input_ids=tokens(), task_ids=torch.tensor([2, 0])).logits


def test_a_folder_of_peft_answers_the_same(tmp_path: Path) -> None:
    theirs, model = written(tmp_path), base()
    injection = load_adapter(model, tmp_path)
    assert injection.config.groups == ("0", "1", "2")
    with grouped(model, ["2", "0"]):
        assert torch.allclose(logits(model, tokens()), theirs, atol=1e-6)


@pytest.mark.parametrize("groups", [("de", "fr", "it"), ()])
def test_peft_reads_what_the_lab_writes(groups: tuple[str, ...], tmp_path: Path) -> None:
    model = base()
    config = get_adapter("poly").config(rank=2, alpha=5.0, skills=4, blocks=2, at="q,v", groups=groups)
    injection = inject(model, config)
    move(model)
    with grouped(model, groups[1:]):
        ours = logits(model, tokens())
    to_peft(injection, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path).eval()
    with torch.no_grad():
        found = theirs(input_ids=tokens(), task_ids=torch.tensor([1, 2] if groups else [0, 0])).logits
    assert torch.allclose(found, ours, atol=1e-6)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    for name, value in {"n_tasks": "10000000000", "r": "-1", "n_splits": '"many"'}.items():
        old = f'"{name}": {FIELDS[name]}'
        assert old in text
        (tmp_path / "adapter_config.json").write_text(text.replace(old, f'"{name}": {value}'))
        with pytest.raises((StateMismatch, CannotConvert)):
            load_adapter(base(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    change(tmp_path, lambda tensors: {name: t for name, t in tensors.items() if "router" not in name})
    with pytest.raises(StateMismatch, match=r"missing .*poly_router\.module_logits"):
        load_adapter(base(), tmp_path)


def test_a_transposed_weight_is_refused(tmp_path: Path) -> None:
    injection = inject(random_models.tiny("tiny:gpt2"), get_adapter("poly").config(rank=2, at="down"))
    with pytest.raises(CannotConvert, match="whose weight is transposed"):
        to_peft(injection, tmp_path / "peft")
