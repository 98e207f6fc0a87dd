"""An adapter on a base in bf16 never moves, or lifts the whole network to fp32.

Area: training
Elsewhere: VersatIL PR #5, keras-hub#2629: updates are rounded away; mlx-examples#613, mflux#740: fp32 everywhere.
Here: adapters are trained and saved in fp32 on a base of any dtype, whose activations keep their dtype.
Verdict: right → right
"""

from pathlib import Path

import torch
from composition_cases import put
from contract import logits, tokens
from safetensors.torch import load_file

from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.models.random_models import tiny


def test_small_updates_arrive_and_activations_stay_in_bf16(tmp_path: Path) -> None:
    model = tiny("tiny:llama").bfloat16()
    injection = put(model, "a")
    before = [p.detach().clone() for p in injection.parameters()]
    optimizer = torch.optim.AdamW(injection.parameters(), lr=2.5e-5)
    for _ in range(50):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = [((p - old).abs() > 5e-4).float().mean() for p, old in zip(injection.parameters(), before, strict=True)]
    assert min(moved) > 0.5 and all(p.dtype == torch.float32 for p in injection.parameters())
    assert {p.dtype for name, p in model.named_parameters() if "adapters" not in name} == {torch.bfloat16}
    found = logits(model, tokens())
    assert found.dtype == torch.bfloat16
    save_adapter(injection, tmp_path / "a")
    assert {t.dtype for t in load_file(tmp_path / "a" / "adapter.safetensors").values()} == {torch.float32}
    again = tiny("tiny:llama").bfloat16()
    load_adapter(again, tmp_path / "a")
    assert torch.equal(logits(again, tokens()), found)
