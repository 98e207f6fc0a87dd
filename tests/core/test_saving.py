"""Saved adapters are restored bit for bit, into the same base only, and merged models work without the lab."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contract import ALL, CASES, config, logits, shake, tokens
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.core.fingerprint import fingerprint
from llm_adapters_lab.core.injection import inject, injections
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.saving import load_adapter, save_adapter, save_merged
from llm_adapters_lab.errors import BadSpec, CannotMerge, StateMismatch, WrongBase
from llm_adapters_lab.models import loading, random_models

IDS = tokens()
MERGES = [case for case in CASES if get_adapter(CASES[case]["type"]).cls.merged is not None]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@ALL
def test_a_saved_adapter_is_restored_bit_for_bit(case: str, family: str, tmp_path: Path) -> None:
    model = random_models.tiny(f"tiny:{family}")
    injection = inject(model, config(case))
    shake(injection)
    save_adapter(injection, tmp_path, f"tiny:{family}")
    again = random_models.tiny(f"tiny:{family}")
    loaded = load_adapter(again, tmp_path)
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    assert loaded.count() == injection.count()


def test_another_tokenizer_is_rejected_and_an_override_is_on_the_card(tmp_path: Path) -> None:
    base, other = loading.load_base("nano", "fp32"), loading.load_base("nano", "fp32")
    injection = inject(base.model, config("lora"))
    shake(injection)
    save_adapter(injection, tmp_path / "a", "nano", fingerprint(base.model, base.tokenizer))
    injection.eject()
    load_adapter(base.model, tmp_path / "a", tokenizer=base.tokenizer)
    other.tokenizer.add_tokens(["anothertoken"])
    with pytest.raises(WrongBase, match="another base: the vocabulary differ"):
        load_adapter(other.model, tmp_path / "a", tokenizer=other.tokenizer)
    assert not injections(other.model)
    loaded = load_adapter(other.model, tmp_path / "a", tokenizer=other.tokenizer, check_base=False)
    save_adapter(loaded, tmp_path / "b", "nano")
    exported = CliRunner().invoke(app, ["export", str(tmp_path / "b"), str(tmp_path / "c")])
    assert exported.exit_code == 0, exported.output
    text = (tmp_path / "c" / "README.md").read_text(encoding="utf-8")
    assert "- **not the base it was trained on: the vocabulary differ**" in text


def test_another_base_is_rejected_with_the_differences(tmp_path: Path) -> None:
    model = random_models.tiny("tiny:llama")
    injection = inject(model, config("lora"))
    shake(injection)
    save_adapter(injection, tmp_path, "tiny:llama")
    other = random_models.tiny("tiny:llama", seed=1)
    before = logits(other, IDS)
    with pytest.raises(WrongBase, match=r"another base: .*embed_tokens.weight has other values.* and \d+ more"):
        load_adapter(other, tmp_path)
    assert torch.equal(logits(other, IDS), before)
    assert not any(m._forward_hooks for m in other.modules())
    one = random_models.tiny("tiny:llama")
    with torch.no_grad():
        one.model.layers[1].mlp.up_proj.weight[3, 5] += 1.0
    with pytest.raises(WrongBase, match=r"base: model.layers.1.mlp.up_proj.weight has other values\. "):
        load_adapter(one, tmp_path)
    with pytest.raises(WrongBase, match="is missing"):
        load_adapter(random_models.tiny("tiny:gpt2"), tmp_path)
    load_adapter(one, tmp_path, check_base=False)
    for dtype in (torch.bfloat16, torch.float16):
        load_adapter(random_models.tiny("tiny:llama").to(dtype), tmp_path)  # the same base, rounded
    with pytest.raises(WrongBase):
        load_adapter(random_models.tiny("tiny:llama", seed=1).to(torch.bfloat16), tmp_path)


def test_damaged_folders_are_rejected_and_leave_no_trace(tmp_path: Path) -> None:
    model = random_models.tiny("tiny:llama")
    whole = tmp_path / "whole"
    injection = inject(model, config("lora"))
    save_adapter(injection, whole)
    injection.eject()
    plain = logits(model, IDS)
    tensors = load_file(whole / "adapter.safetensors")
    first = next(iter(tensors))

    def check(change: str, error: type[Exception], match: str) -> None:
        folder = tmp_path / change
        shutil.copytree(whole, folder)
        if change == "missing":
            save_file({k: v for k, v in tensors.items() if k != first}, folder / "adapter.safetensors")
        elif change == "unexpected":
            save_file({**tensors, "more": torch.ones(1)}, folder / "adapter.safetensors")
        elif change == "shape":
            save_file({**tensors, first: torch.ones(7, 7)}, folder / "adapter.safetensors")
        elif change == "torn":
            content = (folder / "adapter.safetensors").read_bytes()
            (folder / "adapter.safetensors").write_bytes(content[: len(content) // 2])
        elif change == "json":
            (folder / "adapter.json").write_text("{")
        else:
            shutil.rmtree(folder)
        with pytest.raises(error, match=match):
            load_adapter(model, folder)
        assert torch.equal(logits(model, IDS), plain)
        assert not any(m._forward_hooks for m in model.modules())

    check("missing", StateMismatch, f"missing {first}")
    check("unexpected", StateMismatch, "unexpected more")
    check("shape", StateMismatch, r"\(7, 7\), expected")
    check("torn", BadSpec, "adapter.safetensors cannot be read as safetensors")
    check("json", BadSpec, "adapter.json cannot be read as JSON")
    check("nothing", BadSpec, "holds no adapter")


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "gptj", "gpt_neox", "phi3", "gemma2"])
@pytest.mark.parametrize("case", MERGES)
def test_merged_folders_load_without_the_lab(case: str, family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = random_models.tiny(f"tiny:{family}")
    injection = inject(model, config(case))
    shake(injection)
    expected = logits(model, IDS)
    homeless = case in ("bitfit", "adapter-bias")
    if homeless and any("bias" not in dict(h.named_parameters()) for h in injection._hosts.values()):
        with pytest.raises(CannotMerge, match="has no bias"):
            save_merged(injection, tmp_path / "merged")
        assert torch.equal(logits(model, IDS), expected)
        return
    save_merged(injection, tmp_path / "merged", max_shard_size="40KB")
    shards = list((tmp_path / "merged").glob("*.safetensors"))
    assert len(shards) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits(again, IDS), expected, atol=1e-5)
    with pytest.raises(BadSpec, match="exists already"):
        save_merged(inject(again, config("lora")), tmp_path / "merged")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("case", ["lora", "ia3", "full-fine-tuning", "lora-sparse", "dora"])
def test_after_saving_the_model_is_merged_like_the_folder(case: str, family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = random_models.tiny(f"tiny:{family}")
    injection, tied = inject(model, config(case)), model.config.tie_word_embeddings
    shake(injection)
    expected = logits(model, IDS)
    save_merged(injection, tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert not injection.adapters and all(p.requires_grad for p in model.parameters())
    assert all(p.equal(again.get_parameter(name)) for name, p in model.named_parameters())
    assert torch.equal(logits(model, IDS), logits(again, IDS)) and torch.allclose(
        logits(model, IDS), expected, atol=1e-5
    )
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_an_interrupted_save_keeps_the_earlier_adapter_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_models.tiny("tiny:llama")
    injection = inject(model, config("lora"))
    save_adapter(injection, tmp_path, "one")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shake(injection)
    for name in ("write_tensors", "fingerprint", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(
                f"llm_adapters_lab.core.saving.{name}", lambda *values: (_ for _ in ()).throw(KeyboardInterrupt)
            )
            with pytest.raises(KeyboardInterrupt):
                save_adapter(injection, tmp_path, "two")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_exported_and_merged_folders_work_in_a_process_without_the_lab(tmp_path: Path) -> None:
    base = loading.load_base("nano")
    injection = inject(base.model, config("lora"))
    shake(injection)
    save_adapter(injection, tmp_path / "adapter", "nano")
    ids = torch.tensor([base.tokenizer("Tom had 3 apples and")["input_ids"]])
    expected = logits(base.model, ids)

    def lab(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llm_adapters_lab", *args]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    for command in (["export", "adapter", "peft"], ["merge", "adapter", "merged"]):
        result = lab(*command)
        assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["base_model_name_or_path"] == "nano"
    back = lab("export", "peft", "back", "--format", "lab", "--base", "nano")
    assert back.returncode == 0, back.stderr
    again = loading.load_base("nano")
    load_adapter(again.model, tmp_path / "back")
    assert torch.allclose(logits(again.model, ids), expected, atol=1e-5)
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        "m, t = M.from_pretrained('merged').eval(), T.from_pretrained('merged')\n"
        "ids = torch.tensor([t('Tom had 3 apples and')['input_ids']])\n"
        "print(m(ids).logits[0, -1].argmax().item()); assert 'llm_adapters_lab' not in sys.modules\n"
    )
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert plain.returncode == 0, plain.stderr
    assert int(plain.stdout) == int(expected[0, -1].argmax())
    taken = lab("merge", "adapter", "merged")
    assert taken.returncode == 2 and "exists already" in taken.stderr
    nowhere = lab("export", "nothing", "out")
    assert nowhere.returncode == 2 and "no run 'nothing'" in nowhere.stderr
