"""Comparison with peft 0.21 at parameters: adapters of experts and routers, in both directions, and what is refused."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from contract import shake, tokens
from odd_models import family
from safetensors.torch import load_file, save_file

from llm_adapters_lab.core.injection import Injection, inject, injections
from llm_adapters_lab.core.matrix_hosts import HOSTS
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.saving import load_adapter
from llm_adapters_lab.errors import CannotConvert, LabError, StateMismatch
from llm_adapters_lab.files import read_json, write_json

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft asks for it
    pytest.mark.filterwarnings("ignore:unclosed file .*adapter_config.json:ResourceWarning"),  # peft opens it
]
IDS = tokens(2, 7)
BLOCKS = {"mixtral": "mlp", "gpt_oss": "mlp", "llama4_text": "feed_forward", "jamba": "feed_forward"}
KINDS = pytest.mark.parametrize("kind", BLOCKS)


def run(made: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = made(input_ids=IDS).logits
        return found


def same(one: Any, other: Any) -> None:
    assert torch.allclose(run(one), run(other), atol=1e-5)


def in_peft(kind: str, parameters: tuple[str, ...] = ("gate_up_proj", "down_proj"), **fields: Any) -> Any:
    """Return a model with LoRA of peft at parameters of its experts, moved off its start."""
    fields = {"target_modules": ["q_proj"], "r": 2, "lora_alpha": 3, "task_type": "CAUSAL_LM"} | fields
    config = peft.LoraConfig(target_parameters=[f"experts.{name}" for name in parameters], **fields)
    made = peft.get_peft_model(family(kind), config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in (p for p in made.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return made


def put(made: Any, at: str, method: str = "lora", **fields: Any) -> Injection:
    fields = {"type": method, "at": at} | ({} if method == "ia3" else {"rank": 2, "alpha": 3.0}) | fields
    injection = inject(made, get_adapter(method).config(**fields))
    shake(injection)
    return injection


@pytest.mark.parametrize("parameters", [("down_proj", "gate_up_proj"), ("down_proj",)], ids=len)
@KINDS
def test_the_lab_loads_what_peft_saves(kind: str, parameters: tuple[str, ...], tmp_path: Path) -> None:
    other, fresh = in_peft(kind, parameters), family(kind)
    plain = run(fresh)
    other.save_pretrained(tmp_path)
    loaded = load_adapter(fresh, tmp_path)
    same(fresh, other)
    assert {s.role for s in loaded.sites.values()} == {"q"} | {f"experts.{p.removesuffix('_proj')}" for p in parameters}
    merge(loaded)
    same(fresh, other)
    assert not torch.allclose(run(fresh), plain, atol=1e-4)


@pytest.mark.parametrize(
    ("at", "fields"),
    [
        ("experts?", {}),
        ("experts@1", {"scale": "rslora"}),
        ("q?,experts.down?", {"scale": "learned"}),
        ("o?+router?+experts?", {"experts": "shared"}),
    ],
)
@KINDS
def test_peft_loads_what_the_lab_saves(kind: str, at: str, fields: dict[str, Any], tmp_path: Path) -> None:
    injection = put(family(kind), at, **fields)
    to_peft(injection, tmp_path, base="some/base")
    other = peft.PeftModel.from_pretrained(family(kind), tmp_path).eval()
    same(injection.model, other)
    fresh = family(kind)
    load_adapter(fresh, tmp_path)
    same(fresh, other)


@pytest.mark.parametrize(
    ("at", "method", "fields", "match"),
    [
        ("experts", "dora", {}, "peft has plain LoRA without dropout"),
        ("experts", "lora", {"dropout": 0.1}, "peft has plain LoRA without dropout"),
        ("experts.down", "ia3", {}, "peft has plain LoRA without dropout"),
        ("experts.down.in", "ia3", {}, "peft has plain LoRA without dropout"),
        ("experts.down.in", "lora", {}, "peft has plain LoRA without dropout"),
    ],
)
def test_what_peft_does_not_have_at_parameters_is_not_exported(
    at: str, method: str, fields: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(CannotConvert, match=match):
        to_peft(put(family("mixtral"), at, method, **fields), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_some_of_the_experts_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(CannotConvert, match=r"all 5 experts of \S+gate_up_proj or none; here 4 are"):
        to_peft(put(family("longcat_flash"), "experts"), tmp_path)


A, B = "lora_A.weight", "lora_B.weight"
EXPERTS = "base_model.model.model.layers.0.mlp.experts"


@pytest.mark.parametrize(
    ("fields", "tensors", "error", "match"),
    [
        ({}, {f"{EXPERTS}.{A}": torch.ones(7, 16)}, StateMismatch, r"down_proj has 4 experts, but A \(7, 16\)"),
        ({}, {f"{EXPERTS}.{B}": torch.ones(32, 6)}, StateMismatch, r"B \(32, 6\)"),
        ({}, {f"{EXPERTS}.{A}": None}, StateMismatch, "experts"),
        ({}, {f"{EXPERTS}.base_layer.{A}": None}, StateMismatch, "experts"),
        ({"target_parameters": ["experts.down_proj"]}, {}, CannotConvert, r"experts.base_layer.lora_A"),
        ({"target_parameters": ["experts.nothing"]}, {}, LabError, "experts"),
        ({"target_parameters": "experts.down_proj"}, {}, CannotConvert, "target_parameters = 'experts.down_proj'"),
        ({"target_parameters": [1]}, {}, CannotConvert, r"target_parameters = \[1\]"),
        ({"target_parameters": ["embed_tokens.weight"]}, {}, CannotConvert, r"no adapter at \S+embed_tokens.weight"),
        ({"lora_dropout": 0.5}, {}, None, ""),
    ],
)
def test_folders_that_are_not_whole_are_refused(
    fields: dict[str, Any], tensors: dict[str, Any], error: Any, match: str, tmp_path: Path
) -> None:
    in_peft("mixtral").save_pretrained(tmp_path)
    write_json(tmp_path / "adapter_config.json", read_json(tmp_path / "adapter_config.json") | fields)
    kept = load_file(tmp_path / "adapter_model.safetensors") | tensors
    save_file({name: t for name, t in kept.items() if t is not None}, tmp_path / "adapter_model.safetensors")
    made = family("mixtral")
    if error is None:
        load_adapter(made, tmp_path)
        return
    with pytest.raises(error, match=match):
        load_adapter(made, tmp_path)
    assert not injections(made) and not any(HOSTS in m._modules for m in made.modules())
