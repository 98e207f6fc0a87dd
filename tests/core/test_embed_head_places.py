"""Token embedding and output head as places: one more matrix each, or one change for both where they are tied."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from contract import config, logits, shake, tokens
from peft_folders import PEFT_WARNINGS, move
from torch import nn
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from llm_adapters_lab.core.adapter import World
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.merging import merge, temporarily_merged
from llm_adapters_lab.core.peft_format import from_peft, to_peft
from llm_adapters_lab.core.placement import describe, parse, sites
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.saving import load_adapter, save_adapter, save_merged
from llm_adapters_lab.errors import BadSpec, CannotConvert, CannotInject, EmptyPlacement
from llm_adapters_lab.inspection.recorder import Recorder
from llm_adapters_lab.inspection.weight_metrics import norms, weight_change
from llm_adapters_lab.models import random_models
from llm_adapters_lab.results import plots
from llm_adapters_lab.runs.forecast.size import size
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.loss import FastPaths, Objective

pytestmark = [*PEFT_WARNINGS, pytest.mark.filterwarnings("ignore::UserWarning:peft")]
IDS = tokens()


def base(family: str) -> Any:
    return random_models.tiny(f"tiny:{family}")


def trained(family: str, case: str, at: str, **fields: Any) -> tuple[Any, Injection]:
    model = base(family)
    injection = inject(model, config(case, at=at, **fields))
    shake(injection)
    return model, injection


def test_the_language_knows_both_places() -> None:
    anatomy = Anatomy.of(base("llama"))
    assert parse("embed,head,q@1")[:2] == [("embed", False, False, None), ("head", False, False, None)]
    found = sites(anatomy, "q@1,embed+head")
    assert [(site.role, site.layer, site.d_in, site.d_out) for site in found] == [
        ("embed", -1, 32, 128),
        ("head", -1, 32, 128),
        ("q", 1, 32, 32),
    ]
    assert describe(anatomy, [site.path for site in found]) == "embed,head+q@1"
    for at in ("embed@0", "head.in", "embed.in"):
        with pytest.raises(BadSpec, match="is in no layer and has no `.in`"):
            parse(at)
    with pytest.raises(EmptyPlacement, match="encoder.embed"):
        sites(anatomy, "q,encoder.embed")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 128}
    shared = Anatomy.of(T5ForConditionalGeneration(T5Config(**sizes)))  # the embedding serves encoder and decoder
    with pytest.raises(EmptyPlacement, match="embed, which it has nowhere"):
        sites(shared, "q,embed")


CASES = [
    ("llama", "lora", "embed", 1),
    ("llama", "lora", "head", 1),
    ("llama", "lora-learned", "embed,head,q", 4),
    ("llama", "pissa", "embed,head", 2),
    ("gemma3", "lora", "embed,head", 1),  # tied, and scaled
    ("gemma2", "pissa", "head,embed,q@0", 2),  # tied
    ("bloom", "lora-bit", "embed,head", 1),  # tied
    ("llama", "dora", "head", 1),
    ("phi", "ia3", "head,q@0", 2),  # with a bias
    ("llama", "series-linear", "head", 1),
]


@pytest.mark.parametrize(("family", "case", "at", "count"), CASES)
def test_merged_saved_and_loaded(family: str, case: str, at: str, count: int, tmp_path: Path) -> None:
    model = base(family)
    plain = logits(model, IDS)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    injection = inject(model, config(case, at=at))
    assert torch.equal(logits(model, IDS), plain)
    shake(injection)
    wanted = logits(model, IDS)
    assert (wanted - plain).abs().max() > 1e-3
    assert len({next(adapter.parameters()) for adapter in injection.adapters.values()}) == count
    entry = get_adapter(injection.config.type)
    if "bit" not in case:
        world = World(model, injection.anatomy)
        counted = entry.cls.parameter_count(injection.config, list(injection.sites.values()), world)
        assert counted == injection.count()
    with injection.disabled():
        assert torch.equal(logits(model, IDS), plain)
    save_adapter(injection, tmp_path / "lab")
    other = base(family)
    load_adapter(other, tmp_path / "lab")
    assert logits(other, IDS).allclose(wanted, atol=1e-6)
    if entry.cls.merged is None:
        return
    with temporarily_merged(injection) as merged:
        assert merged
        assert logits(model, IDS).allclose(wanted, atol=1e-5)
    assert torch.equal(logits(model, IDS), wanted)
    save_merged(injection, tmp_path / "merged")
    assert logits(model, IDS).allclose(wanted, atol=1e-5)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert logits(again, IDS).allclose(wanted, atol=1e-5)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied


def test_what_cannot_sit_there_is_refused_by_name() -> None:
    for at in ("embed", "head", "q,head"):
        with pytest.raises(CannotInject, match=r"embed and head share one weight; 'lora' at '(embed|head)' would part"):
            inject(base("gemma2"), config("lora", at=at))
    with pytest.raises(CannotInject, match="'dora' at 'embed' would part them.*with lora; or elsewhere"):
        inject(base("gemma2"), config("dora", at="embed,head"))
    with pytest.raises(
        CannotInject, match="'dora' cannot be at `embed`, whose input are token ids. There can be: lora"
    ):
        inject(base("llama"), config("dora", at="embed"))
    model = base("llama")
    assert not any(hasattr(module, "adapters") for module in model.modules())


def test_the_size_is_known_beforehand() -> None:
    assert size("tiny:llama", config("lora", at="embed,head")).trainable == 2 * 4 * (32 + 128)
    assert size("tiny:gemma2", config("lora", at="embed,head")).trainable == 4 * (32 + 128)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_folders_of_peft(family: str, tmp_path: Path) -> None:
    model, injection = trained(family, "lora", "embed,head,q", dropout=0.1)
    wanted = logits(model, IDS)
    to_peft(injection, tmp_path / "out")
    assert logits(peft.PeftModel.from_pretrained(base(family), tmp_path / "out").eval(), IDS).allclose(
        wanted, atol=1e-5
    )
    other = base(family)
    assert from_peft(other, tmp_path / "out").config.at == "embed,head,q"
    assert logits(other, IDS).allclose(wanted, atol=1e-5)

    targets = ["embed_tokens", "lm_head", "q_proj"]
    settings = peft.LoraConfig(r=2, target_modules=targets, ensure_weight_tying=family == "gemma3")
    theirs = peft.get_peft_model(base(family), settings).eval()
    move(theirs)
    wanted = logits(theirs, IDS)
    theirs.save_pretrained(tmp_path / "in")  # with embedding and head as a whole
    other = base(family)
    load_adapter(other, tmp_path / "in")
    assert logits(other, IDS).allclose(wanted, atol=1e-5)
    if family == "gemma3":
        theirs = peft.get_peft_model(base(family), peft.LoraConfig(r=2, target_modules=targets)).eval()
        move(theirs)
        theirs.save_pretrained(tmp_path / "apart")
        with pytest.raises(CannotConvert, match="share their weight, but are adapted apart"):
            load_adapter(base(family), tmp_path / "apart")
    other = base(family)
    with torch.no_grad():
        other.get_input_embeddings().weight += 1
    with pytest.raises(CannotConvert, match="another (model.embed_tokens|lm_head).*rows differ"):
        load_adapter(other, tmp_path / "in")


def test_one_change_of_a_tied_weight_gets_both_gradients() -> None:
    model, injection = trained("gemma3", "lora", "embed,head")
    adapter = injection.adapters["lm_head"]
    assert adapter.B is injection.adapters["model.embed_tokens"].B
    samples = [Sample("a", (3, 9, 17, 5, 3), (-100, -100, 17, 5, 3)), Sample("b", (8, 4, 17), (-100, 4, 17))]
    found = []
    for paths in (FastPaths(), FastPaths(label_head=True, packing=True)):
        model.zero_grad()
        with Objective(model, paths, injection=injection).loss(model, samples) as loss:
            loss.backward()
        found.append([p.grad.clone() for p in injection.parameters() if p.grad is not None])
    assert all(mine.allclose(other, atol=1e-4) for mine, other in zip(*found, strict=True))
    # The gradient of the merged weight, carried over to its factors.
    weight, merged = model.lm_head.weight, base("gemma3")
    change = adapter.B @ adapter.A * adapter.scale  # type: ignore[operator]
    merged.lm_head.weight = merged.model.embed_tokens.weight = nn.Parameter((weight + change).detach())
    with Objective(merged, FastPaths()).loss(merged, samples) as loss:
        loss.backward()
    wanted = merged.lm_head.weight.grad @ adapter.A.T * adapter.scale  # type: ignore[operator]
    assert adapter.B.grad.allclose(wanted, atol=1e-3)  # type: ignore[union-attr]


def test_changes_of_weights_are_measured_there() -> None:
    _, injection = trained("gemma2", "lora", "embed,head,q")
    assert weight_change(injection, "lm_head").equal(weight_change(injection, "model.embed_tokens"))
    assert norms(injection)["lm_head"].change > 0
    with Recorder(injection.model, what=("x", "y", "base")) as seen:
        wanted = logits(injection.model, IDS)
    assert seen["lm_head"].y.shape == (*IDS.shape, 128)
    assert "model.embed_tokens" not in seen  # it reads ids
    figures = [
        plots.placement(injection.anatomy, injection.sites.values(), "lora"),
        plots.site_norms(norms(injection), "lora"),
    ]
    assert all("head" in figure.to_json() for figure in figures)
    assert logits(merge(injection), IDS).allclose(wanted, atol=1e-5)
