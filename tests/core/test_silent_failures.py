"""Silent failures of adapters, some of which have occurred."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from composition_cases import put
from contract import CASES, FAMILIES, config, logits, shake, tokens
from transformers import DynamicCache, StaticCache

from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.composition import mix, stack
from llm_adapters_lab.core.fingerprint import fingerprint
from llm_adapters_lab.core.injection import inject, injections
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.registry import get_adapter, register_adapter
from llm_adapters_lab.core.saving import load_adapter, save_adapter, save_merged
from llm_adapters_lab.errors import BadSpec, CannotInject, CannotMerge, CannotWrite, EmptyPlacement, StateMismatch
from llm_adapters_lab.models import loading, random_models

IDS = tokens()
WHOLE = [case for case in CASES if (cls := get_adapter(CASES[case]["type"]).cls).scope == "model" and not cls.identity]


def model(family: str = "llama") -> Any:
    return random_models.tiny(f"tiny:{family}")


@pytest.mark.parametrize("case", ["full-fine-tuning", "norm-tuning"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_interrupted_forward_restores_the_parameters_of_the_base(
    case: str, error: type[BaseException], dtype: torch.dtype
) -> None:
    adapted = model().to(dtype)
    plain, before = logits(adapted, IDS), {k: v.clone() for k, v in adapted.state_dict().items()}
    injection = inject(adapted, config(case))
    shake(injection)
    changed = logits(adapted, IDS)

    def interrupt(*args: Any) -> None:
        raise error

    handle = adapted.model.layers[1].input_layernorm.register_forward_pre_hook(interrupt)
    for _ in range(2):
        with pytest.raises(error):
            adapted(IDS)
    handle.remove()
    assert torch.equal(logits(adapted, IDS), changed)
    handle = adapted.model.layers[1].input_layernorm.register_forward_pre_hook(interrupt)
    with pytest.raises(error):
        adapted(IDS)
    handle.remove()
    with injection.disabled():
        assert torch.equal(logits(adapted, IDS), plain)
    injection.eject()
    assert all(torch.equal(v, before[k]) for k, v in adapted.state_dict().items())
    own = [p for module in adapted.modules() for p in module._parameters.values() if p is not None]
    assert all(isinstance(p, torch.nn.Parameter) for p in own)


@FAMILIES
@pytest.mark.parametrize("case", [*WHOLE, "lora"])
def test_generated_logits_do_not_depend_on_cache_or_padding(case: str, family: str) -> None:
    adapted = model(family)
    shake(inject(adapted, config(case)))
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_logits": True}

    def step_logits(ids: torch.Tensor, **more: Any) -> torch.Tensor:
        return torch.stack(adapted.generate(input_ids=ids, **options, **more).logits)

    alone = step_logits(IDS[1:, 3:], use_cache=True)
    assert torch.allclose(step_logits(IDS[1:, 3:], use_cache=False), alone, atol=1e-5)
    padded, mask = IDS.clone(), torch.ones_like(IDS)
    padded[1, :3], mask[1, :3] = 0, 0
    if family == "mpt" and case.startswith(("prefix", "parscale")):
        with pytest.raises(CannotInject, match="counts padding"):
            step_logits(padded, attention_mask=mask)
        return
    for use_cache in (True, False):
        assert torch.allclose(step_logits(padded, attention_mask=mask, use_cache=use_cache)[:, 1:], alone, atol=1e-5)


@pytest.mark.parametrize("case", ["prompt-tuning", "p-tuning"])
@pytest.mark.parametrize(("family", "window"), [("mistral", "sliding_window"), ("gpt_neo", "window_size")])
def test_sliding_windows_contain_no_padding_between_virtual_and_real_tokens(
    case: str, family: str, window: str
) -> None:
    shape = random_models.tiny_config(f"tiny:{family}")
    setattr(shape, window, 8)
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    adapted = AutoModelForCausalLM.from_config(shape).eval()
    injection = inject(adapted, config(case))
    shake(injection)
    ids, mask = tokens(1, 12), torch.ones(1, 12, dtype=torch.long)
    mask[:, :6] = 0
    assert torch.allclose(logits(adapted, ids, attention_mask=mask)[:, 6:], logits(adapted, ids[:, 6:]), atol=1e-5)
    injection.eject()
    inject(adapted, config("prefix"))
    with pytest.raises(CannotInject, match="counts padding"):
        logits(adapted, ids, attention_mask=mask)


@pytest.mark.parametrize("case", WHOLE)
def test_calls_that_virtual_tokens_do_not_support_are_rejected(case: str) -> None:
    adapted = model()
    inject(adapted, config(case))
    with torch.no_grad():
        cache = adapted(IDS, use_cache=True).past_key_values
    with pytest.raises(CannotInject, match="the mask covers 0 before the 7 given"):
        adapted(IDS, attention_mask=torch.ones_like(IDS), past_key_values=cache)
    with pytest.raises(CannotInject, match="4 dimensions"):
        adapted(IDS, attention_mask=torch.ones(2, 1, 7, 7))
    with pytest.raises(CannotInject, match="not a StaticCache"):
        adapted(IDS, past_key_values=StaticCache(adapted.config, max_cache_len=20))
    assert isinstance(adapted(IDS, past_key_values=DynamicCache()).past_key_values, DynamicCache)


@pytest.mark.parametrize("case", WHOLE)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_positional_arguments_and_every_output_have_the_size_of_the_input(case: str, family: str) -> None:
    adapted = model(family)
    plain = adapted.model if family == "llama" else adapted.transformer
    mask = torch.ones_like(IDS)
    bare = plain(input_ids=IDS, attention_mask=mask).last_hidden_state
    injection = inject(adapted, config(case))
    names = list(inspect.signature(plain.forward).parameters)[:3]
    args = [{"input_ids": IDS, "attention_mask": mask}.get(name) for name in names]
    with injection.disabled():
        assert torch.equal(plain(*args).last_hidden_state, bare)
    adapted.set_attn_implementation("eager")
    out = adapted(IDS, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    assert {tuple(h.shape[:2]) for h in out.hidden_states} == {(2, 7)}
    assert {tuple(a.shape) for a in out.attentions} == {(2, 4, 7, 12)}
    given = plain(*args).last_hidden_state
    assert torch.allclose(given, out.hidden_states[-1], atol=1e-5)
    assert torch.equal(plain(input_ids=IDS, attention_mask=mask, return_dict=False)[0], given)


def test_a_merge_that_would_change_the_outputs_is_rejected() -> None:
    pairs: list[tuple[str, str, str, str]] = [
        ("series", "mlp", "lora", "down"),
        ("full-fine-tuning", "", "lora", "q"),
        ("lora", "down", "ia3", "k,v,down.in"),
        ("lora", "up.in", "dora", "up"),
        ("parallel", "mlp", "ia3", "gate.in"),
    ]
    for present, where, merging, at in pairs:
        adapted = model()
        put(adapted, "present", present, at=where)
        ours = put(adapted, "ours", merging, at=at)
        before = logits(adapted, IDS)
        with pytest.raises(CannotMerge, match="also carries the adapter 'present'"):
            merge(ours)
        assert torch.equal(logits(adapted, IDS), before)
    adapted = model()
    ours = put(adapted, "ours")
    mix(adapted, {"ours": 0.5})
    with pytest.raises(CannotMerge, match="mix is set"):
        merge(ours)
    stack(adapted)
    with pytest.raises(CannotMerge, match="is off"):
        merge(ours)


@pytest.mark.parametrize("at", ["down.in,down", "down,down.in", "q.in+q@0"])
@pytest.mark.parametrize("kind", ["lora", "krona"])
def test_changes_of_input_and_weight_of_one_module_merge_together(kind: str, at: str) -> None:
    adapted = model()
    injection = put(adapted, "ours", kind, at=at)
    hooked = logits(adapted, IDS)
    merge(injection)
    assert torch.allclose(logits(adapted, IDS), hooked, atol=1e-5)


def test_a_merged_folder_contains_no_other_adapters(tmp_path: Path) -> None:
    adapted = model()
    ours = put(adapted, "ours", at="q")
    put(adapted, "theirs", "series", at="mlp")
    with pytest.raises(CannotMerge, match="also carries theirs"):
        save_merged(ours, tmp_path / "merged")
    with pytest.raises(BadSpec, match="shard size 'bogus'"):
        save_merged(ours, tmp_path / "merged", max_shard_size="bogus")
    assert set(injections(adapted)) == {"ours", "theirs"} and not (tmp_path / "merged").exists()


def test_a_mix_excludes_later_adapters_and_adapters_in_sequence() -> None:
    adapted = model()
    put(adapted, "a", "lora", at="down")
    put(adapted, "s", "series", at="mlp")
    with pytest.raises(BadSpec, match="'a' and 's' follow one another at model.layers.0.mlp.down_proj"):
        mix(adapted, {"a": 1.0, "s": 1.0})
    with pytest.raises(BadSpec, match="finite in fp32; that of a is not"):
        mix(adapted, {"a": float("nan")})
    mix(adapted, {"a": 1.0})
    mixed = logits(adapted, IDS)
    put(adapted, "late", "lora", at="q,down")
    assert torch.equal(logits(adapted, IDS), mixed)
    with injections(adapted)["a"].disabled(), injections(adapted)["a"].disabled():
        stack(adapted, "late")
        late = logits(adapted, IDS)
    assert torch.equal(logits(adapted, IDS), late)


def test_saving_an_ejected_adapter_keeps_the_saved_one(tmp_path: Path) -> None:
    injection = put(model(), "ours")
    save_adapter(injection, tmp_path)
    before = (tmp_path / "adapter.safetensors").read_bytes()
    injection.eject()
    with pytest.raises(BadSpec, match="has been ejected"):
        save_adapter(injection, tmp_path)
    with pytest.raises(CannotMerge, match="has been ejected"):
        merge(injection)
    assert (tmp_path / "adapter.safetensors").read_bytes() == before


def test_dora_does_not_change_features_with_zero_weights() -> None:
    adapted = model()
    with torch.no_grad():
        adapted.model.layers[0].self_attn.v_proj.weight[3] = 0
    plain = logits(adapted, IDS)
    injection = inject(adapted, config("dora"))
    assert torch.equal(logits(adapted, IDS), plain)
    shake(injection)
    hooked = logits(adapted, IDS)
    assert hooked.isfinite().all()
    assert torch.allclose(logits(merge(injection), IDS), hooked, atol=1e-5)


def test_each_adapter_computes_in_its_own_dtype() -> None:
    class Odd(AdapterConfig):
        """Config."""

    class Negate(Adapter):
        """Half of the output, without a parameter."""

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return y / 2

    register_adapter("negate", config=Odd, at="q", source="")(Negate)
    try:
        adapted = model().to(torch.bfloat16)
        plain = logits(adapted, IDS)
        inject(adapted, Odd(type="negate"), at="o", name="n")
        assert not torch.equal(logits(adapted, IDS), plain)
    finally:
        from llm_adapters_lab.core.registry import REGISTRY

        REGISTRY.pop("negate")
    adapted = model()
    put(adapted, "a")
    adapted.to(torch.bfloat16)
    put(adapted, "b")
    assert logits(adapted, IDS).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["mix", "off", "x", "keys", "forward", "not a word", "1st"])
def test_invalid_names_leave_no_trace(name: str) -> None:
    adapted = model()
    with pytest.raises(BadSpec, match="must be a plain word"):
        inject(adapted, config("lora"), name=name)
    assert all(p.requires_grad for p in adapted.parameters()) and not injections(adapted)


def test_invalid_files_are_named(tmp_path: Path) -> None:
    injection = put(model(), "ours")
    save_adapter(injection, tmp_path)
    whole = json.loads((tmp_path / "adapter.json").read_text())
    for content, match in (
        ({}, "names no adapter"),
        ([], "not names with values"),
        ({"config": {"rank": 3}}, "names no adapter"),
        ({"config": {"type": "lora", "rank": 0}}, "adapter.json: rank must be a whole number from 1"),
        ({"config": {"type": "lora", "wide": 0}}, "adapter.json: wide' is not a known key"),
        ({"config": {"type": "laura"}}, "no adapter 'laura'"),
    ):
        (tmp_path / "adapter.json").write_text(json.dumps(content))
        with pytest.raises(BadSpec, match=match):
            load_adapter(model(), tmp_path)
    (tmp_path / "adapter.json").write_text(json.dumps(whole))
    state = injection.state_dict()
    first = next(iter(state))
    with pytest.raises(StateMismatch, match="holds torch.int64"):
        injection.load_state_dict({**state, first: state[first].long()})
    with pytest.raises(StateMismatch, match="holds inf or nan"):
        injection.load_state_dict({**state, first: state[first] * float("nan")})


def test_the_fingerprint_covers_the_whole_matrix() -> None:
    one, two = model(), model()
    with torch.no_grad():
        two.lm_head.weight[-1, -1] += 1  # 4,096 elements, all of which are sampled
    assert fingerprint(one) != fingerprint(two)
    wide = torch.nn.Linear(90, 90)
    before = fingerprint(wide)
    with torch.no_grad():
        wide.weight[60:] += 1
    assert fingerprint(wide) != before


def test_adapters_without_sites_or_initialisation_are_rejected() -> None:
    from transformers import OlmoConfig, OlmoForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with pytest.raises(EmptyPlacement, match="nothing that 'norm-tuning' could change"):
        inject(OlmoForCausalLM(OlmoConfig(vocab_size=128, pad_token_id=0, **shape)), config("norm-tuning"))
    base = loading.load_base("nano")
    text = get_adapter("prompt-tuning").config(type="prompt-tuning", init="text", init_text="   ", virtual_tokens=3)
    with pytest.raises(BadSpec, match="holds no token"):
        inject(base.model, text, tokenizer=base.tokenizer)
    with pytest.raises(BadSpec, match="needs a tokenizer"):
        inject(base.model, text)
    good = text.model_copy(update={"init_text": "Tom had three apples"})
    (prompt,) = inject(base.model, good, tokenizer=base.tokenizer).parameters()
    ids = base.tokenizer("Tom had three apples", add_special_tokens=False)["input_ids"][:3]
    assert torch.equal(prompt, base.model.get_input_embeddings().weight[ids])
    for kind, field in (("lora", "alpha"), ("krona", "scaling")):
        with pytest.raises(ValueError, match=field):
            get_adapter(kind).config(**{"type": kind, field: float("inf")})


def test_a_copied_config_is_checked_as_any_other() -> None:
    for changes in ({"rank": 0}, {"alpha": float("nan")}, {"at": "nowhere@@"}):
        with pytest.raises(BadSpec, match=next(iter(changes))):
            inject(model(), config("lora").model_copy(update=changes))


def test_a_folder_that_no_system_can_name_is_refused() -> None:
    with pytest.raises(CannotWrite, match="null character"):
        save_adapter(put(model(), "a"), "x\0y")


def test_tensors_of_any_layout_are_saved(tmp_path: Path) -> None:
    injection = inject(model(), config("pissa", split={"parts": 2}))
    for adapter in injection.adapters.values():
        matrix: Any = adapter.get_submodule("parametrizations.B")
        matrix.original = torch.nn.Parameter(matrix.original.detach().T.contiguous().T)
    save_adapter(injection, tmp_path)
    assert load_adapter(model(), tmp_path).count() == injection.count()
