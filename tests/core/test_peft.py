"""Comparison with peft 0.21: the same outputs and training, folders in both directions, and rejected features."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from contract import required
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from llm_adapters_lab.core.hooks import MARKS
from llm_adapters_lab.core.injection import Injection, inject, injections
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.registry import all_adapters, get_adapter
from llm_adapters_lab.core.saving import load_adapter
from llm_adapters_lab.errors import BadSpec, CannotConvert, StateMismatch
from llm_adapters_lab.events import Step
from llm_adapters_lab.models import random_models
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training.batches import collate, row_order
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.spec import TrainSpec

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft asks for it
    pytest.mark.filterwarnings("ignore:unclosed file .*adapter_config.json:ResourceWarning"),  # peft opens it
]
T = 5  # virtual tokens

# Names of queries and values, keys and values, and the down-projection in each family.
NAMES = {
    "llama": (["q_proj", "v_proj"], ["k_proj", "v_proj"], "down_proj"),
    "gpt2": (["c_attn"], ["c_attn"], "mlp.c_proj"),
    "opt": (["q_proj", "v_proj"], ["k_proj", "v_proj"], "fc2"),
    "bloom": (["query_key_value"], ["query_key_value"], "dense_4h_to_h"),
    "gptj": (["q_proj", "v_proj"], ["k_proj", "v_proj"], "fc_out"),
    "gpt_neox": (["query_key_value"], ["query_key_value"], "dense_4h_to_h"),
}
FAMILIES = pytest.mark.parametrize("family", NAMES)

_LORA = {"type": "lora", "rank": 4, "alpha": 6.0, "at": "q,v,down"}
_P = {"type": "p-tuning", "virtual_tokens": T, "hidden": 8}
_H, _LSTM = {"encoder_hidden_size": 8}, {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 1}
# The config of the lab, and the fields that differ from the defaults of peft.
BOTH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": (_LORA, {}),
    "rslora": (_LORA | {"scale": "rslora"}, {"use_rslora": True}),
    "pissa": (_LORA | {"init": "pissa"}, {"init_lora_weights": "pissa"}),
    "pissa-rs": (_LORA | {"init": "pissa", "scale": "rslora"}, {"init_lora_weights": "pissa", "use_rslora": True}),
    "dora": (_LORA | {"type": "dora"}, {"use_dora": True}),
    "dora-rs": (_LORA | {"type": "dora", "scale": "rslora"}, {"use_dora": True, "use_rslora": True}),
    "ia3": ({"type": "ia3"}, {}),
    "prefix": ({"type": "prefix", "virtual_tokens": T}, {}),
    "prefix-mlp": ({"type": "prefix", "virtual_tokens": T, "mlp": 8}, _H | {"prefix_projection": True}),
    "prompt": ({"type": "prompt-tuning", "virtual_tokens": T}, {}),
    "p-mlp": (_P, _H),
    "p-lstm": (_P | {"encoder": "lstm"}, _H | _LSTM),
}
# The lab can export these to peft, although peft cannot create them.
OWN = {
    "gaussian": _LORA | {"init": "gaussian"},
    "learned": _LORA | {"scale": "learned"},
    "pissa-learned": _LORA | {"scale": "learned", "init": "pissa"},
    "one-layer": _LORA | {"at": "q,k@1,down@0"},
    "ia3-everywhere": {"type": "ia3", "at": "q@0,o,up.in,down"},
    "p-none": _P | {"encoder": "none"},
}
LAB = {name: fields for name, (fields, _) in BOTH.items()} | OWN
METHODS = {"ia3": peft.IA3Config, "prefix": peft.PrefixTuningConfig, "prompt-tuning": peft.PromptTuningConfig}
METHODS |= {"p-tuning": peft.PromptEncoderConfig, "lora": peft.LoraConfig, "dora": peft.LoraConfig}
VIRTUAL = ("prefix", "prompt-tuning", "p-tuning")


@cache
def _base(family: str) -> Any:
    config = random_models.tiny_config(f"tiny:{family}")
    for name in vars(config):
        if "drop" in name:
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    shake(model.parameters())  # otherwise all biases would be zero, and the weights of norms one
    return model


def base(family: str = "llama") -> Any:
    """Return a new copy of the same model, without dropout."""
    return copy.deepcopy(_base(family))


def in_lab(family: str, case: str) -> Injection:
    torch.manual_seed(3)
    return inject(base(family), get_adapter(LAB[case]["type"]).config(**LAB[case]))


def in_peft(family: str, case: str) -> Any:
    lab, fields = BOTH[case]
    attention, keys_values, leaver = NAMES[family]
    turned = {"fan_in_fan_out": family == "gpt2"}
    if lab["type"] in VIRTUAL:
        fields = fields | {"num_virtual_tokens": T}
    elif lab["type"] == "ia3":
        fields = fields | turned | {"target_modules": [*keys_values, leaver], "feedforward_modules": [leaver]}
    else:
        fields = fields | turned | {"r": 4, "lora_alpha": 6, "target_modules": [*attention, leaver]}
    torch.manual_seed(4)
    return peft.get_peft_model(base(family), METHODS[lab["type"]](task_type="CAUSAL_LM", **fields))


def shake(parameters: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)


def trained(model: Any) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@torch.no_grad()
def copy_over(injection: Injection, other: Any) -> None:
    """Copy the tensors of a peft model to the lab, except A_0 and B_0 of PiSSA, which both compute."""
    for key, site in injection.sites.items():
        adapter, module = injection.adapters[key], other.get_submodule(f"base_model.model.{site.path}")
        if injection.config.type == "ia3":
            adapter.factors.copy_(module.ia3_l["default"].flatten())
            continue
        adapter.A.copy_(module.lora_A["default"].weight)
        adapter.B.copy_(module.lora_B["default"].weight)
        if injection.config.type == "dora":
            adapter.magnitude.copy_(module.lora_magnitude_vector["default"].weight)
    if injection.config.type not in VIRTUAL:
        return
    adapter, encoder = injection.adapters["model"], other.prompt_encoder["default"]
    table = encoder.embedding.weight
    if injection.config.type == "prompt-tuning":
        adapter.prompt.copy_(table)
    elif injection.config.type == "prefix" and not injection.config.mlp:
        heads, t, width = adapter.layers[0]["key"].shape
        split = table.view(t, len(adapter.layers), 2, heads, width)
        for index, layer in enumerate(adapter.layers):
            layer["key"].copy_(split[:, index, 0].transpose(0, 1))
            layer["value"].copy_(split[:, index, 1].transpose(0, 1))
    else:
        adapter.tokens.copy_(table)
        for mine, theirs in (("mlp", "transform"), ("encoder", "mlp_head"), ("lstm", "lstm_head")):
            if hasattr(encoder, theirs):
                getattr(adapter, mine).load_state_dict(getattr(encoder, theirs).state_dict())


def logits(model: Any, padded: bool = False, batch: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Return the logits of the real tokens; peft also returns those of virtual tokens."""
    if batch is None:
        ids = torch.randint(3, 128, (2, 7), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        if padded:
            ids[1, :3], mask[1, :3] = 0, 0
        with torch.no_grad():
            return logits(model, batch={"input_ids": ids, "attention_mask": mask})[mask.bool()]
    result: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return result[:, -batch["input_ids"].shape[1] :]


def same(one: Any, other: Any, padded: bool = False) -> None:
    torch.testing.assert_close(logits(one, padded), logits(other, padded), atol=1e-5, rtol=0.0)


# peft leaves positions to the model. OPT and BLOOM derive them from the mask, as the lab does for all models; others
# also count padding between virtual and real tokens, so outputs depend on the longest row of the batch.
def agrees_when_padded(family: str, kind: str) -> bool:
    return kind not in VIRTUAL or family in ("opt", "bloom")


@FAMILIES
@pytest.mark.parametrize("case", BOTH)
def test_equal_weights_give_equal_logits_and_five_equal_losses(case: str, family: str) -> None:
    other, injection = in_peft(family, case), in_lab(family, case)
    if injection.config.type not in VIRTUAL:
        same(base(family), injection.model)
        same(base(family), other)
    shake(trained(other))
    copy_over(injection, other)
    assert injection.count() == sum(p.numel() for p in trained(other))
    same(injection.model, other)
    assert (logits(other) - logits(base(family))).abs().max() > 1e-3
    if agrees_when_padded(family, injection.config.type):
        same(injection.model, other, padded=True)

    plan = TrainSpec(learning_rate=1e-3, batch=3, max_steps=5, schedule="constant", clip=0, precision="fp32")
    ids = torch.randint(3, 128, (6, 9), generator=torch.Generator().manual_seed(5)).tolist()
    samples = [Sample(str(i), tuple(row[: 9 - i]), (IGNORED, *row[1 : 9 - i])) for i, row in enumerate(ids)]
    events = train(injection.model, injection, samples, plan, seed=6)
    losses = [event.loss for event in events if isinstance(event, Step)]
    expected = []
    optimizer = torch.optim.AdamW(trained(other), lr=1e-3, weight_decay=0.0)
    for rows in row_order(6, 3, 5, 6):
        batch = collate([samples[i] for i in rows], 0)
        given = logits(other.train(), batch=batch)[:, :-1].flatten(0, 1)
        loss = cross_entropy(given, batch["labels"][:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-5, rel=0)
    same(injection.model, other.eval())


@FAMILIES
@pytest.mark.parametrize("case", LAB)
def test_peft_loads_what_the_lab_saves_and_the_lab_loads_it_again(case: str, family: str, tmp_path: Path) -> None:
    injection = in_lab(family, case)
    shake(injection.parameters())
    expected = logits(injection.model)
    to_peft(injection, tmp_path, base="some/base")
    other, fresh = peft.PeftModel.from_pretrained(base(family), tmp_path).eval(), base(family)
    same(injection.model, other)
    load_adapter(fresh, tmp_path)
    same(injection.model, fresh)
    assert torch.equal(logits(injection.model), expected)
    if agrees_when_padded(family, injection.config.type):
        same(injection.model, other, padded=True)
    same(injection.model, fresh, padded=True)


@FAMILIES
@pytest.mark.parametrize("case", BOTH)
def test_the_lab_loads_what_peft_saves(case: str, family: str, tmp_path: Path) -> None:
    other, fresh = in_peft(family, case), base(family)
    shake(trained(other))
    other.save_pretrained(tmp_path)
    loaded = load_adapter(fresh, tmp_path)
    assert loaded.config.type == BOTH[case][0]["type"]
    same(fresh, other)
    loaded.eject()
    assert torch.equal(logits(fresh), logits(base(family)))


def test_feedforward_modules_may_be_a_pattern(tmp_path: Path) -> None:
    pattern = r".*\.mlp\.up_proj|.*q_proj"  # q_proj is square: only the pattern distinguishes input and output
    config = peft.IA3Config(target_modules=r".*(q|v|up)_proj", feedforward_modules=pattern, task_type="CAUSAL_LM")
    other, fresh = peft.get_peft_model(base(), config), base()
    shake(trained(other))
    other.save_pretrained(tmp_path)
    assert load_adapter(fresh, tmp_path).config.at == "v+q.in,up.in"
    same(fresh, other)


Q = "base_model.model.model.layers.0.self_attn.q_proj"
# Fields of LoRA that must be named in the error, one folder each.
FOREIGN: dict[str, Any] = {
    "rank_pattern": ["q_proj"],
    "alpha_pattern": {"q_proj": float("inf")},
    "task_type": "SEQ_CLS",
}
FOREIGN |= {"bias": "all", "lora_bias": True, "layer_replication": [[0, 2], [1, 2]]}
FOREIGN |= {"target_parameters": ["weight"], "use_qalora": True, "alora_invocation_tokens": [1], "of_tomorrow": 1}
FOREIGN |= {"modules_to_save": ["lm_head"]}
STARTS = ("corda", "loftq", "lora_ga", "pissa_niter_4", "of_tomorrow")
REFUSED: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    **{name: ("lora", {name: value}, CannotConvert, f"{name} = ") for name, value in FOREIGN.items()},
    **{init: ("lora", {"init_lora_weights": init}, CannotConvert, f"init_lora_weights = '{init}'") for init in STARTS},
    "olora on Conv1D": (
        "lora",
        {"init_lora_weights": "olora", "fan_in_fan_out": True},
        CannotConvert,
        "init_lora_weights = 'olora'",
    ),
    "pissa with ranks": ("pissa", {"rank_pattern": {"q_proj": 2}}, CannotConvert, "rank_pattern = .*none with pissa"),
    "rank of one": ("lora", {"rank_pattern": {"q_proj": 2}}, StateMismatch, r"q_proj has rank 2 .* lora_A \(4, 32\)"),
    "no pattern": ("lora", {"rank_pattern": {"(": 4}}, CannotConvert, "rank_pattern .* invalid regular expression"),
    "no targets": ("lora", {"target_modules": None}, CannotConvert, "target_modules = None .* not say which modules"),
    "bad targets": (
        "lora",
        {"target_modules": "("},
        CannotConvert,
        r"target_modules = '\('.* not say which modules .*unterminated",
    ),
    "other targets": ("lora", {"target_modules": ["k_proj"]}, StateMismatch, "k_proj has no tensors"),
    "fewer targets": (
        "lora",
        {"target_modules": "all-linear"},
        StateMismatch,
        "names 14 modules, its tensors are of 6",
    ),
    "bad inputs": ("ia3", {"feedforward_modules": "("}, CannotConvert, r"not say which modules .*unterminated"),
    "numbers as modules": ("ia3", {"feedforward_modules": [1]}, CannotConvert, r"not say which modules .*int"),
    "rank in words, beside others": ("lora", {"r": "4", "rank_pattern": {"q": 2}}, CannotConvert, "r = '4'"),
    "excluded": ("lora", {"exclude_modules": ["v_proj"]}, StateMismatch, "v_proj has tensors and is not named"),
    "layers": ("lora", {"layers_to_transform": [1]}, StateMismatch, r"layers\.0\.\S* has tensors and is not named"),
    "no layers": ("lora", {"layers_to_transform": [0, 1], "layers_pattern": "h"}, StateMismatch, "names 0 modules"),
    "other heads": ("prefix", {"num_attention_heads": 4}, StateMismatch, "num_attention_heads is 4, but here 2"),
    "LOHA": ("lora", {"peft_type": "LOHA"}, CannotConvert, "LOHA.*It reads IA3, LORA"),
    "VERA": ("lora", {"peft_type": "VERA"}, CannotConvert, "VERA"),
    "rank 0": ("lora", {"r": 0}, CannotConvert, "rank = 0"),
    "rank in words": ("lora", {"r": "many"}, CannotConvert, "rank = 'many'"),
    "dora pissa": ("lora", {"use_dora": True, "init_lora_weights": "pissa"}, CannotConvert, "init = 'pissa'"),
    "dora without magnitudes": ("lora", {"use_dora": True}, StateMismatch, "missing .*lora_magnitude_vector"),
    "magnitudes without dora": ("dora", {"use_dora": False}, StateMismatch, "unexpected .*lora_magnitude_vector"),
    "other rank": ("lora", {"r": 3}, StateMismatch, r"q_proj: .*\[32, 4\].*\[32, 3\]"),
    "other length": ("prompt", {"num_virtual_tokens": 4}, StateMismatch, r"\[5, 32\].*\[4, 32\]"),
    "other prefix": ("prefix", {"num_virtual_tokens": 4}, StateMismatch, r"value: .*\[2, 5, 8\].*\[2, 4, 8\]"),
    "two transformers": ("prompt", {"num_transformer_submodules": 2}, CannotConvert, "num_transformer_submodules"),
    "input as output": ("ia3", {"feedforward_modules": []}, StateMismatch, r"down_proj: .*\[1, 64\].*\[32\]"),
    "missing": ("lora", {f"{Q}.lora_B.weight": None}, StateMismatch, "missing .*layers.0.self_attn.q_proj lora_B"),
    "unexpected": ("lora", {f"{Q}.lora_C.weight": (2, 2)}, StateMismatch, "unexpected .*q_proj lora_C.weight"),
    "stray": ("lora", {"prompt_embeddings": (2, 2)}, StateMismatch, "unexpected .*prompt_embeddings"),
    "stray module": ("prompt", {f"{Q}.lora_A.weight": (2, 2)}, StateMismatch, "unexpected .*q_proj.*lora_A"),
    "one dimension": ("prefix", {"prompt_embeddings": (64,)}, StateMismatch, "the adapter: Dimension"),
    "no module": ("lora", {"base_model.model.nowhere.lora_A.weight": (4, 32)}, StateMismatch, "nowhere.lora_A.weight"),
    "no projection": ("lora", {f"{Q}uery.lora_A.weight": (4, 32)}, CannotConvert, "self_attn.q_projuery.lora_A.weight"),
    "head": ("lora", {"base_model.model.lm_head.lora_A.weight": (4, 32)}, StateMismatch, "lm_head"),
    "shape": ("lora", {f"{Q}.lora_A.weight": (4, 31)}, StateMismatch, r"q_proj: .*\[4, 31\].*\[4, 32\]"),
    "no config": ("lora", {"adapter_config.json": None}, BadSpec, "holds no adapter"),
    "broken config": ("lora", {"adapter_config.json": "{"}, BadSpec, "cannot be read as JSON"),
    "config is a list": ("lora", {"adapter_config.json": "[]"}, BadSpec, "adapter_config.json"),
    "no rank": ("lora", {"r": None}, CannotConvert, "LORA has no 'r'"),
    "empty config": ("lora", {"adapter_config.json": "{}"}, CannotConvert, "no counterpart of peft's None"),
    "pickled": ("lora", {"adapter_model.safetensors": None, "adapter_model.bin": "x"}, CannotConvert, "Pickled"),
    "broken tensors": ("lora", {"adapter_model.safetensors": "x"}, BadSpec, "cannot be read as safetensors"),
}


def spoil(folder: Path, changes: dict[str, Any]) -> None:
    """Change files, tensors or config fields of a peft folder; None removes a file or a tensor."""
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    fields, tensors = json.loads(config.read_text()), load_file(weights)
    for name, value in changes.items():
        if "adapter_" in name:
            (folder / name).unlink(missing_ok=True) if value is None else (folder / name).write_text(value)
        elif name.startswith("base_model") or name == "prompt_embeddings":
            tensors.pop(name, None)
            tensors |= {} if value is None else {name: torch.ones(value)}
            save_file(tensors, weights)
        else:
            fields = {key: old for key, old in (fields | {name: value}).items() if key != name or value is not None}
            config.write_text(json.dumps(fields))


# Fields that say which modules have an adapter, in the ways that peft knows.
TARGETS: list[dict[str, Any]] = [{"target_modules": "all-linear"}, {"target_modules": r".*layers\.1.*(q|up)_proj"}]
TARGETS += [{"exclude_modules": ["layers.0.self_attn.q_proj"]}, {"exclude_modules": r".*0.*"}]
TARGETS += [{"layers_to_transform": 0}, {"layers_to_transform": [1], "layers_pattern": "layers"}]
TARGETS += [{"target_modules": ["model.layers.1.self_attn.q_proj"], "layers_to_transform": [0]}]
# Starts whose folders hold all that they need; mica has a start of its own, but leaves the base as it is.
STARTED = [{"init_lora_weights": init} for init in ("olora", "mica", "gaussian", "orthogonal", "pissa")]


@pytest.mark.parametrize("fields", [*TARGETS, *STARTED], ids=str)
def test_whatever_peft_selects_and_starts_from_is_read(fields: dict[str, Any], tmp_path: Path) -> None:
    usual = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    other, fresh = peft.get_peft_model(base(), peft.LoraConfig(**(usual | fields))).eval(), base()
    shake(trained(other))
    other.save_pretrained(tmp_path)
    load_adapter(fresh, tmp_path)
    same(fresh, other)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_folders_that_peft_converted_to_plain_lora_are_read(init: str, tmp_path: Path) -> None:
    fields = {"init_lora_weights": init, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 3}}
    other, fresh = peft.get_peft_model(base(), peft.LoraConfig(task_type="CAUSAL_LM", r=4, **fields)).eval(), base()
    other.peft_config["default"].init_lora_weights = True  # as peft requires for the conversion
    other.save_pretrained(tmp_path / "start")
    shake(trained(other))
    other.save_pretrained(tmp_path / "end", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    assert load_adapter(fresh, tmp_path / "end").config.rank == 8
    same(fresh, other)


@pytest.mark.parametrize("fault", REFUSED)
def test_features_without_counterpart_are_named_and_nothing_is_loaded(fault: str, tmp_path: Path) -> None:
    case, changes, error, match = REFUSED[fault]
    in_peft("llama", case).save_pretrained(tmp_path)
    load_adapter(base(), tmp_path)  # the original can be loaded
    spoil(tmp_path, changes)
    model, before = base(), base().state_dict()
    with pytest.raises(error, match=match) as caught:
        load_adapter(model, tmp_path)
    assert type(caught.value) is error
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not injections(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks or set(MARKS) & set(m.__dict__) for m in model.modules())


WITHOUT = [name for name, entry in all_adapters().items() if not entry.cls.peft_type]


@pytest.mark.parametrize(
    ("type_", "at", "match"),
    [
        *((name, "", f"no method like '{name}'.*--format lab") for name in WITHOUT),
        ("lora", "mlp.in", "'lora' at an input.*mlp"),
        ("lora", "q,down.in", "'lora' at an input.*down_proj"),
        ("ia3", "mlp.in", "'ia3'.*mlp"),
        ("ia3", "k,k.in", "k_proj"),
    ],
)
def test_adapters_that_peft_does_not_support_are_not_exported(type_: str, at: str, match: str, tmp_path: Path) -> None:
    injection = inject(base(), get_adapter(type_).config(type=type_, **required(type_)), at=at)
    with pytest.raises(CannotConvert, match=match):
        to_peft(injection, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_all_methods_of_peft_are_tested() -> None:
    tested = {fields["type"] for fields, _ in BOTH.values()} | {
        "trainable-tokens",
        "poly",
    }  # see test_new_tokens.py, test_peft_skills.py
    assert tested == set(all_adapters()) - set(WITHOUT)
    assert peft.__version__.startswith("0.21.")
