"""Every adapter keeps the same promises on every decoder: one matrix, no copy per adapter."""

import copy
from typing import Any

import pytest
import torch
from contract import ALL, CASES, FAMILIES, MERGES, config, logits, shake, tokens
from torch.nn.utils import parametrize

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.adapter import World
from llm_adapters_lab.core.hooks import MARKS
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec, CannotInject, CannotMerge, StateMismatch
from llm_adapters_lab.models import random_models
from llm_adapters_lab.training.step import set_gradient_checkpointing


@FAMILIES
@ALL
def test_start_gradients_state_and_eject(case: str, family: str) -> None:
    model, ids = random_models.tiny(f"tiny:{family}"), tokens()
    names, before = set(model.state_dict()), copy.deepcopy(model.state_dict())
    plain = logits(model, ids)
    injection = inject(model, config(case))

    started = logits(model, ids)
    if get_adapter(CASES[case]["type"]).cls.identity:
        assert torch.equal(started, plain)
    else:
        assert not torch.equal(started, plain)

    shake(injection)
    changed = logits(model, ids)
    assert not torch.allclose(changed, plain, atol=1e-6)
    with injection.disabled():
        assert torch.equal(logits(model, ids), plain)
    assert torch.equal(logits(model, ids), changed)

    model(input_ids=ids).logits.square().mean().backward()
    own = {id(p) for p in injection.parameters()}
    for name, p in model.named_parameters():
        if id(p) in own:
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name
        else:
            assert p.grad is None, name

    state = injection.state_dict()
    injection.eject()
    assert torch.equal(logits(model, ids), plain)
    assert set(model.state_dict()) == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(set(MARKS) & set(m.__dict__) for m in model.modules())

    again = inject(model, config(case))
    again.load_state_dict(state)
    assert torch.equal(logits(model, ids), changed)


@FAMILIES
@ALL
def test_generation_with_and_without_cache_agrees_under_left_padding(case: str, family: str) -> None:
    model = random_models.tiny(f"tiny:{family}")
    shake(inject(model, config(case)))
    ids, mask = tokens(), torch.ones(2, 7, dtype=torch.long)
    ids[1, :3], mask[1, :3] = 0, 0
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    if case.startswith(("prefix", "parscale")) and family == "mpt":
        with pytest.raises(CannotInject, match="counts padding"):
            model.generate(input_ids=ids, attention_mask=mask, **options)
        return
    cached, plain = (
        model.generate(input_ids=ids, attention_mask=mask, use_cache=use, **options) for use in (True, False)
    )
    assert torch.equal(cached, plain)
    alone = model.generate(input_ids=ids[1:, 3:], attention_mask=mask[1:, 3:], **options)
    assert torch.equal(alone[0, 4:], cached[1, 7:])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "bloom", "phi3", "opt"])
def test_merge_equals_hook_equals_parametrize(family: str) -> None:
    class Update(torch.nn.Module):
        def __init__(self, delta: torch.Tensor) -> None:
            super().__init__()
            self.delta = delta

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + self.delta

    model, ids = random_models.tiny(f"tiny:{family}"), tokens()
    oracle = copy.deepcopy(model)
    injection = inject(model, config("lora"))
    shake(injection)
    hooked = logits(model, ids)
    for key, adapter in injection.adapters.items():
        module = oracle.get_submodule(key)
        delta = (adapter.scale * adapter.B @ adapter.A).detach()
        transposed = weights.read(module).shape != module.weight.shape or family == "gpt2"
        parametrize.register_parametrization(module, "weight", Update(delta.T if transposed else delta))
    assert torch.allclose(logits(oracle, ids), hooked, atol=1e-5)
    merged = merge(injection)
    assert torch.allclose(logits(merged, ids), hooked, atol=1e-5)
    assert set(merged.state_dict()) == set(random_models.tiny(f"tiny:{family}").state_dict())


@FAMILIES
@pytest.mark.parametrize("case", MERGES)
def test_merged_weights_act_like_the_adapter(case: str, family: str) -> None:
    model, ids = random_models.tiny(f"tiny:{family}"), tokens()
    injection = inject(model, config(case))
    shake(injection)
    hooked = logits(model, ids)
    hosts = [injection.host(key) for key in injection.adapters]
    if case in ("bitfit", "adapter-bias") and any(getattr(host, "bias", None) is None for host in hosts):
        with pytest.raises(CannotMerge, match=f"has no bias that could hold what '{case}' learnt"):
            merge(injection)
        assert torch.equal(logits(model, ids), hooked)
        return
    merged = merge(injection)
    assert torch.allclose(logits(merged, ids), hooked, atol=1e-5)
    assert set(merged.state_dict()) == set(random_models.tiny(f"tiny:{family}").state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in merged.modules())


@pytest.mark.parametrize("case", [case for case in CASES if case not in MERGES])
def test_unmergeable_methods_say_so_and_change_nothing(case: str) -> None:
    model, ids = random_models.tiny("tiny:llama"), tokens()
    injection = inject(model, config(case))
    shake(injection)
    before = logits(model, ids)
    with pytest.raises(CannotMerge, match=f"'{CASES[case]['type']}' does more .* one that merges: .*lora"):
        merge(injection)
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gptj", "opt", "gemma3"])
@ALL
def test_gradient_checkpointing_works_or_is_refused_by_name(case: str, family: str) -> None:
    model, ids = random_models.tiny(f"tiny:{family}"), tokens()
    injection = inject(model, config(case))
    shake(injection)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model.train()
        torch.manual_seed(0)  # split adapters draw their part
        model(input_ids=ids, use_cache=False).logits.square().mean().backward()
        return [p.grad.clone() for p in injection.parameters() if p.grad is not None]

    for module in model.modules():  # dropout would differ between the two passes
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    plain = gradients()
    set_gradient_checkpointing(model, True)
    if case.startswith(("prefix", "parscale")):
        with pytest.raises(CannotInject, match="gradient_checkpointing"):
            gradients()
        return
    recomputed = gradients()
    assert len(recomputed) == len(plain) > 0
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, recomputed, strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gptj", "opt", "gemma2"])
@ALL
def test_fp32_adapter_on_bf16_base(case: str, family: str) -> None:
    model, ids = random_models.tiny(f"tiny:{family}").to(torch.bfloat16), tokens()
    plain = logits(model, ids)
    injection = inject(model, config(case))
    assert all(p.dtype == torch.float32 for p in injection.parameters())
    if get_adapter(CASES[case]["type"]).cls.identity:
        assert torch.equal(logits(model, ids), plain)
    model(input_ids=ids).logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in injection.parameters())
    assert logits(model, ids).dtype == torch.bfloat16


@FAMILIES
@pytest.mark.parametrize("case", [case for case in CASES if not {"sparse", "quantize", "split"} & set(CASES[case])])
def test_the_number_of_parameters_is_that_of_the_formula(case: str, family: str) -> None:
    model, entry = random_models.tiny(f"tiny:{family}"), get_adapter(CASES[case]["type"])
    injection = inject(model, config(case))
    world = World(model, injection.anatomy)
    assert injection.count() == entry.cls.parameter_count(config(case), list(injection.sites.values()), world) > 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "lora", "rank": 32, "at": "q,k,v,up,down"}, 56_098_816),
        ({"type": "series", "bottleneck": 256, "at": "mlp"}, 67_108_864),
        ({"type": "parallel", "bottleneck": 256, "at": "mlp"}, 67_108_864),
        ({"type": "prefix", "virtual_tokens": 10}, 2_621_440),
    ],
)
def test_counts_on_llama_7b_without_its_weights(fields: dict[str, Any], expected: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())
    injection = inject(model, get_adapter(fields["type"]).config(**fields))
    assert injection.count() == expected
    assert all(p.device.type == "meta" for p in injection.parameters())


def test_original_initialisation_is_not_the_identity() -> None:
    for fields in ({"type": "series", "init": "normal"}, {"type": "parallel", "init": "normal"}):
        model, ids = random_models.tiny("tiny:llama"), tokens()
        plain = logits(model, ids)
        torch.manual_seed(0)
        injection = inject(model, get_adapter(fields["type"]).config(**fields))
        assert not torch.equal(logits(model, ids), plain)
        assert all(0.017 < float(p.detach().std()) < 0.023 for p in injection.parameters())


def test_two_named_adapters_apply_in_order_and_leave_one_by_one() -> None:
    model, ids = random_models.tiny("tiny:llama"), tokens()
    plain = logits(model, ids)
    first = inject(model, config("lora"), name="first")
    shake(first)
    one = logits(model, ids)
    second = inject(model, config("lora", at="q"), name="second")
    shake(second)
    both = logits(model, ids)
    assert not torch.equal(one, both)
    with pytest.raises(BadSpec, match="already carries"):
        inject(model, config("lora"), name="second")
    with pytest.raises(CannotMerge, match="also carries the adapter 'second'"):
        merge(first)
    with second.disabled():
        assert torch.equal(logits(model, ids), one)
    second.eject()
    assert torch.equal(logits(model, ids), one)
    first.eject()
    assert torch.equal(logits(model, ids), plain)


def test_series_and_parallel_follow_the_formula() -> None:
    model, ids = random_models.tiny("tiny:llama"), tokens()
    seen: dict[str, torch.Tensor] = {}
    mlp = model.model.layers[0].mlp
    handle = mlp.register_forward_hook(lambda m, args, out: seen.update(x=args[0], y=out))
    logits(model, ids)
    x, y = seen["x"], seen["y"]
    for case, source in (("series", y), ("parallel", x)):
        injection = inject(model, config(case, nonlinearity="tanh", at="mlp@0"))
        shake(injection)
        logits(model, ids)
        (adapter,) = injection.adapters.values()
        expected = y + torch.tanh(source @ adapter.bottleneck.down.weight.T) @ adapter.bottleneck.up.weight.T
        assert torch.allclose(seen["y"], expected, atol=1e-6)
        injection.eject()
    handle.remove()


def test_an_adapter_of_the_whole_model_takes_no_placement() -> None:
    with pytest.raises(BadSpec, match="takes no placement of its own; given was 'q'"):
        inject(random_models.tiny("tiny:llama"), config("prefix"), at="q")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiled_models_are_refused() -> None:
    with pytest.raises(CannotInject, match="Inject first, compile last"):
        inject(torch.compile(random_models.tiny("tiny:llama")), config("lora"))


def test_wrong_state_lists_what_differs_and_loads_nothing() -> None:
    model = random_models.tiny("tiny:llama")
    injection = inject(model, config("lora"))
    before = injection.state_dict()
    state = {f"x{key}" if i == 0 else key: torch.ones_like(v) for i, (key, v) in enumerate(before.items())}
    state[list(state)[1]] = torch.ones(3)
    with pytest.raises(StateMismatch, match=r"missing .*unexpected .*\(3,\)"):
        injection.load_state_dict(state)
    assert all(torch.equal(v, before[k]) for k, v in injection.state_dict().items())


def test_a_copied_model_runs_its_own_adapters() -> None:
    model, ids = random_models.tiny("tiny:llama"), tokens()
    injection = inject(model, config("parallel-both"))
    twin = copy.deepcopy(model)
    shake(injection)
    assert not torch.allclose(logits(model, ids), logits(twin, ids), atol=1e-6)
    again = copy.deepcopy(model)
    assert torch.equal(logits(model, ids), logits(again, ids))
