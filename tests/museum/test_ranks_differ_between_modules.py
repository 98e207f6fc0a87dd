"""An adapter whose modules have different ranks or scales is refused, or loaded with one rank for all.

Area: export
Elsewhere: found here: every folder of EVA, which redistributes ranks, was refused over a field without effect.
Before: `rank_pattern`, `alpha_pattern` and `eva_config` were refused.
Here: ranks are filled up with zeros and scales move into B, so that the outputs are those of peft.
Verdict: refused → right
"""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from contract import logits
from peft_folders import IDS, PEFT_WARNINGS, base, lora, move, write_folder

from llm_adapters_lab.core.saving import load_adapter
from llm_adapters_lab.errors import StateMismatch

pytestmark = PEFT_WARNINGS
PATTERNS: dict[str, Any] = {"rank_pattern": {"q_proj": 2, r".*1\.mlp\.down_proj": 7}, "alpha_pattern": {"v_proj": 3}}


@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern")
@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "eva"}])
def test_patterns_of_peft_are_read(more: dict[str, Any], tmp_path: Path) -> None:
    if more.get("init_lora_weights") == "eva":
        model = peft.get_peft_model(
            base(), lora(**more, eva_config=peft.EvaConfig(rho=2.0)), low_cpu_mem_usage=True
        ).eval()
        rows = [{"input_ids": IDS.repeat(4, 1), "attention_mask": torch.ones(8, 7, dtype=torch.long)}] * 4
        peft.initialize_lora_eva_weights(model, rows, show_progress_bar=False)
        assert model.peft_config["default"].rank_pattern
        move(model)
        model.save_pretrained(tmp_path)
        expected = logits(model, IDS)
    else:
        expected = write_folder(tmp_path, lora(**PATTERNS, **more))
    model = base()
    load_adapter(model, tmp_path)
    assert logits(model, IDS).allclose(expected, atol=1e-5)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"rank_pattern": {', '"rank_pattern": {".*0.self_attn.q_proj": 1,', 1))
    with pytest.raises(StateMismatch, match=r"0.self_attn.q_proj has rank 1 in the config, but lora_A \(\d, 32\)"):
        load_adapter(base(), tmp_path)
