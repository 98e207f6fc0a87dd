"""Presets: what they expand to, where they sit, and what the paper's specs ask for."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import all_adapters, get_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models import random_models
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.presets import adapter_presets, expand, get_spec_preset, read_spec, spec_presets
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.prompts import ORIGINAL_TRAINING
from llm_adapters_lab.training.spec import TrainSpec

PAPER = {
    f"paper/{base}-{kind}"
    for base in ("llama-7b", "llama-13b", "bloomz-7b1", "gpt-j-6b")
    for kind in ("lora", "series", "parallel", "prefix")
}
WITHOUT = {"data.task": "mini-math"}
EACH_ADAPTER = pytest.mark.parametrize("name", adapter_presets())
EACH_SPEC = pytest.mark.parametrize("name", sorted(PAPER))


def test_these_presets_there_are() -> None:
    assert set(adapter_presets()) == {
        *("adapterH", "adapterP", "houlsby", "pfeiffer", "parallel-sublayer", "parallel-linear", "parallel-qkv"),
        *("scaled-parallel", "scaled-parallel-learned", "rslora", "pissa", "houlsby-whole"),
        *("adapter-plus", "hydra-text", "sparse-series", "large-sparse", "mosa", "one-bit-parallel"),
        *("polytropon", "mhr", "hyperformer", "hyperformer-plus", "hyper-adapters"),
    }
    assert set(spec_presets()) == PAPER | {"bactrian-x", "hd-pissa", "lte", "quickstart", "mixture", "qlora"}
    assert not set(adapter_presets()) & set(all_adapters()), "an adapter's own name would hide the preset"


@pytest.mark.parametrize("preset", [*adapter_presets().values(), *spec_presets().values()], ids=lambda p: p.name)
def test_every_preset_says_what_it_is_and_fits_a_screen(preset: Any) -> None:
    assert preset.idea.endswith(".")
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", preset.source)
    assert yaml.safe_load(preset.text) == preset.fields
    assert max(map(len, preset.text.splitlines())) <= 120


@EACH_ADAPTER
def test_a_preset_is_the_same_run_as_its_fields_written_out(name: str) -> None:
    fields = adapter_presets()[name].fields
    ids = {RunSpec.parse({"adapter": form}).id for form in (name, {"type": name}, fields)}
    assert len(ids) == 1
    if not get_adapter(fields["type"]).placed:
        return
    moved = RunSpec.parse({"adapter": {"type": name, "at": "up@0"}})
    assert moved.id == RunSpec.parse({"adapter": {**fields, "at": "up@0"}}).id
    assert moved.id not in ids


def test_given_fields_win_over_those_of_a_preset() -> None:
    assert expand({"type": "houlsby", "bottleneck": 32, "bias": False}) == {
        "type": "series",
        "at": "attn+mlp",
        "bottleneck": 32,
        "nonlinearity": "gelu",
        "bias": False,
    }
    assert expand({"type": "lora", "rank": 3}) == {"type": "lora", "rank": 3}
    placed = RunSpec.parse({"adapter": {"type": "houlsby", "at": "mlp@0"}}).adapter
    assert placed is not None and placed.at == "mlp@0"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "housby"}, "no adapter 'housby'. Did you mean 'houlsby'"),
        ({"type": "serie"}, "no adapter 'serie'. Did you mean 'series'"),
        ({"type": "xyz"}, "no adapter 'xyz'. Choose one of: .*houlsby.*lora"),
        ({"type": "houlsby", "bottlenek": 3}, "'adapter.bottlenek' is not a known key. Did you mean 'bottleneck'"),
        (
            {"type": "houlsby", "bottleneck": 0},
            r"adapter\.bottleneck must be a whole number from 1 to 65536; given was 0",
        ),
        ({"type": None}, "adapter.type must be the name of an adapter or preset; given was null."),
    ],
)
def test_mistakes_offer_adapters_and_presets(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        RunSpec.parse({"adapter": fields})


@EACH_ADAPTER
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "phi3"])
def test_every_preset_fits_small_models_and_starts_at_the_base(name: str, family: str) -> None:
    if not get_adapter(adapter_presets()[name].fields["type"]).placed:
        pytest.skip("of several parts; see tests/core/test_union.py")
    small = {"rank": 4} if "rank" in get_adapter(adapter_presets()[name].fields["type"]).config.model_fields else {}
    spec = RunSpec.parse({"adapter": {"type": name, **(small or {"bottleneck": 4})}})
    model, ids = random_models.tiny(f"tiny:{family}"), torch.arange(3, 10)[None]
    assert spec.adapter is not None
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        inject(model, spec.adapter)
        assert torch.equal(model(input_ids=ids).logits, plain)


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("adapterH", {"mlp.gate_proj:in", "mlp.up_proj:in", "mlp.down_proj"}),
        ("adapterP", {"mlp.down_proj"}),
        ("houlsby", {"self_attn.o_proj:attn", "mlp.down_proj:mlp"}),
        ("pfeiffer", {"mlp.down_proj:mlp"}),
        ("parallel-sublayer", {"mlp.down_proj:mlp"}),
        ("parallel-linear", {"mlp.up_proj", "mlp.down_proj"}),
        ("parallel-qkv", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}),
        ("scaled-parallel", {"mlp.down_proj:mlp"}),
    ],
)
def test_where_presets_sit_in_llama(name: str, sites: set[str]) -> None:
    adapter = RunSpec.parse({"adapter": name}).adapter
    assert adapter is not None
    injection = inject(Blueprint("tiny:llama").skeleton, adapter)
    assert set(injection.sites) == {f"model.layers.{layer}.{site}" for layer in (0, 1) for site in sites}


@EACH_SPEC
def test_the_papers_recipe(name: str) -> None:
    """Epochs, batch, rates, sizes and validation as the paper, its command file and its code have them."""
    spec = RunSpec.load(name, WITHOUT)
    kind, llama = name.rpartition("-")[2], "llama" in name
    assert read_spec(name)["data"]["task"] == "math10k"
    assert spec.adapter is not None and spec.adapter.type == kind
    held, often = (120, 10) if kind == "prefix" else (120, 80) if kind == "series" and llama else (0, 0)
    # Everything else is as it is by default.
    assert spec.train == TrainSpec.model_validate(
        {
            **{"epochs": 3, "batch": 16, "micro_batch": 4, "learning_rate": 3e-4, "warmup": 100, "schedule": "linear"},
            **{"weight_decay": 0.0, "clip": 1.0, "precision": "fp16", "max_steps": None, "evaluate_every": often},
            **({"epochs": 5, "batch": 8, "learning_rate": 3e-2} if kind == "prefix" else {}),
            "gradient_checkpointing": "13b" in name and kind != "prefix",
        }
    )
    assert (spec.data.max_tokens, spec.data.loss_on, spec.data.validation) == (256, "all", held)
    assert spec.data.template == ORIGINAL_TRAINING
    assert set(spec.eval.tasks) == {"multiarith", "gsm8k", "addsub", "aqua", "singleeq", "svamp"}
    assert spec.eval.protocol == "paper"
    assert (spec.dtype, spec.seed) == ("fp16", 42)
    own: dict[str, dict[str, Any]] = {
        "lora": {"rank": 32, "alpha": 64, "dropout": 0.05, "at": "q,k,v,up,down", "init": "kaiming"},
        "series": {"bottleneck": 256, "nonlinearity": "tanh", "bias": False, "at": "down", "init": "normal"},
        "parallel": {"bottleneck": 256, "nonlinearity": "tanh", "bias": False, "at": "up,down", "init": "normal"},
        "prefix": {"virtual_tokens": 10, "init_std": 1.0, "mlp": 0},
    }
    assert spec.adapter.model_dump().items() >= own[kind].items()


@EACH_SPEC
def test_a_spec_preset_as_it_stands(name: str) -> None:
    spec = RunSpec.load(name)
    assert spec.data.task == "math10k"
    assert RunSpec.parse(spec.model_dump(mode="json")).id == spec.id


def test_changing_a_spec_preset_leaves_the_preset_alone() -> None:
    name = "paper/llama-7b-lora"
    before = yaml.safe_dump(get_spec_preset(name).fields)
    spec = RunSpec.load(name, {**WITHOUT, "adapter.rank": 4})
    assert spec.adapter is not None and spec.adapter.model_dump()["rank"] == 4
    assert yaml.safe_dump(get_spec_preset(name).fields) == before


def test_a_file_on_disk_goes_before_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("paper/llama-7b-lora")
    assert read_spec(name)["base"] == "huggyllama/llama-7b"
    name.parent.mkdir()
    name.write_text("base: nano\n")
    assert read_spec(name) == {"base": "nano"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("paper/llama-7b-loar", "no spec file paper/llama-7b-loar.*Did you mean 'paper/llama-7b-lora'"),
        ("llama-13b-prefix", "Did you mean 'paper/llama-13b-prefix'"),
        ("zzz", "Choose one of: bactrian-x, hd-pissa, lte, "),
    ],
)
def test_an_unknown_name_offers_the_nearest(name: str, message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        RunSpec.load(name)
    with pytest.raises(BadSpec, match="no spec preset"):
        get_spec_preset(name)
