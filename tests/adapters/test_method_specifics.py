"""AdapterBias, Hydra and the convolutional adapter: what each promises beyond the contract."""

import copy

import pytest
import torch
from contract import logits, shake, tokens
from transformers import DynamicCache

from llm_adapters_lab.adapters.adapter_bias import AdapterBiasConfig
from llm_adapters_lab.adapters.conv import ConvConfig
from llm_adapters_lab.adapters.hydra import HydraConfig
from llm_adapters_lab.adapters.prompt_tuning import PromptTuningConfig
from llm_adapters_lab.adapters.shared.low_rank import product
from llm_adapters_lab.core import weights
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotInject
from llm_adapters_lab.evaluation.decoding import greedy, likelihoods
from llm_adapters_lab.models import random_models
from llm_adapters_lab.runs.presets import expand

SITE = Site("x", "down", 0, 12, 8, "out", "x")


def test_the_shifts_of_any_two_tokens_are_parallel() -> None:
    adapter = get_adapter("adapter-bias").cls(AdapterBiasConfig(), SITE, torch.nn.Linear(12, 8))
    torch.nn.init.normal_(adapter.v)
    x, y = torch.randn(1, 5, 12), torch.randn(1, 5, 8)
    shifts = (adapter(x, y) - y)[0]
    assert torch.linalg.matrix_rank(shifts, rtol=1e-5) == 1
    assert torch.allclose(
        torch.nn.functional.normalize(shifts, dim=-1).abs(), (adapter.v / adapter.v.norm()).abs(), atol=1e-5
    )


def test_hydra_without_its_sequential_branch_is_lora_and_its_change_has_the_rank_of_both() -> None:
    site = Site("x", "down", 0, 32, 24, "out", "x")
    base = torch.nn.Linear(32, 24)
    hydra = get_adapter("hydra").cls(HydraConfig(rank=3, sequential_rank=2), site, base)
    lora = get_adapter("lora").cls(get_adapter("lora").config(type="lora", rank=3, alpha=3), site, base)
    for p in hydra.parameters():
        torch.nn.init.normal_(p)
    own = weights.own_tensors(base)
    assert hydra.merged is not None
    change = hydra.merged(own)["weight"] - own["weight"]
    assert torch.linalg.matrix_rank(change, rtol=1e-5) == 5
    with torch.no_grad():
        hydra.B_sequential.zero_()
        lora.A.copy_(hydra.A_parallel)
        lora.B.copy_(hydra.B_parallel)
    x, y = torch.randn(4, 32), torch.randn(4, 24)
    assert torch.allclose(hydra(x, y), lora(x, y), atol=1e-6)


@pytest.mark.parametrize("form", ["parallel", "series"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gptj", "opt"])
def test_the_convolution_never_looks_ahead_and_looks_back_as_far_as_its_kernel(family: str, form: str) -> None:
    model = random_models.tiny(f"tiny:{family}")
    injection = inject(model, ConvConfig(bottleneck=8, kernel=3, form=form))
    shake(injection)
    ids = tokens(1, 9)
    other = ids.clone()
    other[0, 5] = (other[0, 5] + 1) % 120 + 3
    assert torch.allclose(logits(model, ids)[:, :5], logits(model, other)[:, :5], atol=1e-6)

    seen: list[torch.Tensor] = []
    adapter = injection.adapters[next(iter(injection.adapters))]
    width = injection.anatomy.hidden
    x = torch.randn(1, 9, width)
    moved = x.clone()
    moved[0, 4] = torch.randn(width)
    for given in (x, moved):
        zero = torch.zeros_like(given)
        seen.append(adapter(given, given) - given if form == "series" else adapter(given, zero))
    changed = (seen[0] - seen[1]).abs().sum(-1)[0].detach() > 1e-7
    assert changed.nonzero().flatten().tolist() == [4, 5, 6]


def test_one_token_at_a_time_equals_all_at_once_in_beams_and_batches() -> None:
    model = random_models.tiny("tiny:llama")
    shake(inject(model, ConvConfig(bottleneck=8, kernel=4, at="attn+mlp")))
    ids, mask = tokens(3, 8), torch.ones(3, 8, dtype=torch.long)
    ids[1, :5], mask[1, :5] = 0, 0
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3, "eos_token_id": None, "pad_token_id": 0}
    cached, plain = (
        model.generate(input_ids=ids, attention_mask=mask, use_cache=use, **options) for use in (True, False)
    )
    assert torch.equal(cached, plain)

    rows = [ids[0].tolist(), ids[1, 5:].tolist(), ids[2].tolist(), ids[0].tolist()[:4]]
    answers = greedy(model, rows, 0, 6, lambda answer: len(answer) >= 6)
    for row, answer in zip(rows, answers, strict=True):
        assert greedy(model, [row], 0, 6, lambda answer: len(answer) >= 6) == [answer]
        alone = model.generate(input_ids=torch.tensor([row]), max_new_tokens=6, do_sample=False, eos_token_id=None)
        assert alone[0, len(row) :].tolist() == answer
    choices = [[[5, 6], [7]], [[8], [9, 10, 11]], [[5], [6]], [[12, 13], [14]]]
    together = likelihoods(model, rows, choices, 0)
    for row, group, values in zip(rows, choices, together, strict=True):
        assert likelihoods(model, [row], [group], 0)[0] == pytest.approx(values, abs=1e-5)


def test_what_would_go_wrong_in_silence_is_refused_by_name() -> None:
    model, ids = random_models.tiny("tiny:llama"), tokens()
    inject(model, ConvConfig(bottleneck=8))
    cache = DynamicCache()
    model(input_ids=ids, past_key_values=cache)
    with pytest.raises(CannotInject, match="cannot be rolled back"):
        cache.crop(-2)
    with pytest.raises(CannotInject, match="needs a mask"):
        model(input_ids=ids, attention_mask=torch.ones(2, 1, 7, 7))
    inject(model, PromptTuningConfig(virtual_tokens=3), name="prompt")
    with pytest.raises(CannotInject, match="Inject that one first"):
        model(input_ids=ids, attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1] * 7]))


def test_two_of_them_come_and_go_and_a_copy_has_its_own() -> None:
    model, ids = random_models.tiny("tiny:llama"), tokens()
    plain = logits(model, ids)
    first = inject(model, ConvConfig(bottleneck=8, at="mlp@0"), name="first")
    shake(first)
    one = logits(model, ids)
    second = inject(model, ConvConfig(bottleneck=8, at="mlp@1"), name="second")
    shake(second)
    both = logits(model, ids)
    assert torch.equal(logits(copy.deepcopy(model), ids), both)
    first.eject()
    assert not torch.equal(logits(model, ids), both)
    second.eject()
    assert torch.equal(logits(model, ids), plain)
    assert not torch.equal(one, plain)


def test_adapter_plus_has_a_factor_for_each_feature() -> None:
    fields = expand({"type": "adapter-plus"})
    injection = inject(random_models.tiny("tiny:llama"), get_adapter("series").config(**fields))
    assert all(a.bottleneck.scale.shape == (32,) for a in injection.adapters.values())


@pytest.mark.parametrize("scale", [0.25, 1.0, 2.0, 64.0])
def test_a_power_of_two_before_b_changes_no_bit_of_lora(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(*shape, generator=generator).requires_grad_() for shape in ((9, 24), (3, 24), (40, 3)))
    early, late = product(x, a, b, scale), product(x, a, b, torch.tensor(scale))
    assert torch.equal(early, late)
    seed = torch.randn(early.shape, generator=generator)
    pairs = zip(*(torch.autograd.grad(y, (x, a, b), seed) for y in (early, late)), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
