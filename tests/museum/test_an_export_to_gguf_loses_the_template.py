"""An export to GGUF loses tokenizer, chat template or generation configuration.

Area: export
Elsewhere: unsloth#2374, #2142, #211, #3899, llama.cpp#7062.
Here: GGUF is read, but no format of export. A merged model is a folder with all of them, and answers alike.
Verdict: right → right
"""

from pathlib import Path

import torch
from typer.testing import CliRunner

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.cli.app import app
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.saving import save_merged
from llm_adapters_lab.models.loading import load_base


def test_gguf_is_not_offered_and_a_merged_folder_is_whole(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["export", "some-run", str(tmp_path / "out"), "--format", "gguf"])
    assert refused.exit_code == 2
    assert "'peft', 'lab'" in refused.output
    base, ids = load_base("nano", "fp32"), torch.tensor([[5, 6, 7, 8]])
    base.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    injection = inject(base.model, LoRAConfig(rank=2, at="q,v"))
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(0.02)
        before = base.model(ids).logits
    save_merged(injection, tmp_path / "merged", base.tokenizer)
    again = load_base(str(tmp_path / "merged"), "fp32")
    assert again.tokenizer.chat_template == base.tokenizer.chat_template
    assert again.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert again.model.generation_config.eos_token_id == base.model.generation_config.eos_token_id
    assert torch.allclose(again.model(ids).logits, before, atol=1e-5)
