"""ParScale: exact where its streams or weights are known, the same rows outside, and what it refuses."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import logits, shake, tokens
from fast_path_cases import adapted, samples
from torch import nn

from llm_adapters_lab.core.call_context import context_of, grouped
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.registry import adapter_config
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import BadSpec, CannotConvert, CannotInject, CannotMerge, NoView, UnknownAnatomy
from llm_adapters_lab.evaluation.decoding import context_length, greedy, likelihoods
from llm_adapters_lab.events import FellBack, Step
from llm_adapters_lab.inspection import Recorder, member_weights, virtual_shares
from llm_adapters_lab.models import random_models
from llm_adapters_lab.models.blueprint import blueprint
from llm_adapters_lab.runs.forecast import rough
from llm_adapters_lab.runs.forecast.memory import estimate
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import FastPaths, Objective
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import set_gradient_checkpointing

FIVE = pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3", "opt"])
IDS = tokens()
PADDED = torch.ones_like(IDS)
PADDED[1, :3] = 0
ASKED: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def streams(family: str = "llama", **fields: Any) -> tuple[Any, Injection]:
    """Return a model with streams that differ, and weights that prefer some of them."""
    model, injection = adapted(family, "parscale", **{"streams": 3, "virtual_tokens": 4, "init_std": 1.0, **fields})
    with torch.no_grad():
        if injection.adapters["model"].streams > 1:
            injection.adapters["model"].W2.weight.mul_(10)
    return model, injection


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def alone(injection: Injection, stream: int) -> Injection:
    """Replace streams by one of them, as a prefix, and return it."""
    state, model = injection.state_dict(), injection.eject()
    prefix = inject(model, adapter_config({"type": "prefix", "virtual_tokens": 4}))
    prefix.load_state_dict({name: state[name][stream] for name in prefix.state_dict()})
    return prefix


@FIVE
def test_one_stream_is_a_prefix_bit_for_bit(family: str) -> None:
    model, injection = streams(family, streams=1)
    one = logits(model, IDS, attention_mask=PADDED)
    alone(injection, 0)
    assert torch.equal(logits(model, IDS, attention_mask=PADDED), one)


@FIVE
def test_equal_streams_are_one_whatever_their_weights(family: str) -> None:
    model, injection = streams(family)
    with torch.no_grad():
        for key, value in injection.adapters["model"].keys_and_values():
            key.copy_(key[:1].expand_as(key))
            value.copy_(value[:1].expand_as(value))
    equal = logits(model, IDS, attention_mask=PADDED)
    alone(injection, 0)
    close(logits(model, IDS, attention_mask=PADDED), equal)


@FIVE
def test_the_output_is_the_weighted_sum_of_each_stream_alone(family: str) -> None:
    model, injection = streams(family)
    adapter: Any = injection.adapters["model"]
    decoder, twin = model.get_submodule(injection.anatomy.decoder), copy.deepcopy(injection.model)
    with torch.no_grad():
        found = decoder(input_ids=IDS, attention_mask=PADDED).last_hidden_state
        each = []
        for p in range(3):
            other = copy.deepcopy(twin)
            alone(next(iter(other.__dict__["injections"].values())), p)
            each.append(other.get_submodule(injection.anatomy.decoder)(input_ids=IDS, attention_mask=PADDED)[0])
        weights = adapter.token_weights(torch.cat(each, -1))
    real = PADDED.bool()
    close(found[real], sum(weights[..., p, None] * each[p] for p in range(3))[real])  # type: ignore[index]
    assert torch.allclose(weights.sum(-1), torch.ones(2, 7))
    assert float(weights.min()) >= 0.01 / 3 and float(weights.std(-1).max()) > 0.05


def test_no_weight_is_below_its_share_of_the_smoothing() -> None:
    _, injection = streams(smoothing=0.3)
    adapter: Any = injection.adapters["model"]
    with torch.no_grad():
        adapter.W2.bias.copy_(torch.tensor([99.0, 0.0, -99.0]))
    weights = adapter.token_weights(torch.randn(2, 5, 96))
    assert torch.allclose(weights.sum(-1), torch.ones(2, 5))
    close(weights, torch.tensor([0.8, 0.1, 0.1]).expand(2, 5, 3))


@FIVE
def test_the_order_of_the_streams_does_not_matter(family: str) -> None:
    model, injection = streams(family)
    before, order = logits(model, IDS, attention_mask=PADDED), [2, 0, 1]
    adapter: Any = injection.adapters["model"]
    with torch.no_grad():
        for part in (*adapter.layers.parameters(), adapter.W2.weight, adapter.W2.bias):
            part.copy_(part[order])
        adapter.W1.weight.copy_(adapter.W1.weight.unflatten(1, (3, -1))[:, order].flatten(1))
    close(logits(model, IDS, attention_mask=PADDED), before)


@FIVE
@pytest.mark.parametrize("beams", [1, 3])
def test_cached_answers_are_those_of_full_passes_padded_and_with_beams(family: str, beams: int) -> None:
    model, _ = streams(family)
    ids = IDS.masked_fill(PADDED == 0, 0)
    options = {**ASKED, "num_beams": beams, "num_return_sequences": beams}
    found = [model.generate(input_ids=ids, attention_mask=PADDED, use_cache=use, **options) for use in (True, False)]
    assert torch.equal(*found)
    one = model.generate(input_ids=ids[1:, 3:], **options)
    assert torch.equal(one[:, 4:], found[0][beams:, 7:])


@FIVE
def test_rows_of_the_cache_are_selected_repeated_and_reordered_as_given(family: str) -> None:
    model, injection = streams(family)
    ids = tokens(3, 9)
    whole = logits(model, ids)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :6], use_cache=True).past_key_values
    (_, heads, d_k), shapes = (None, *injection.anatomy.cache_shapes(model)[0][:2]), cache.layers[0].keys.shape
    assert shapes == (3, 3 * heads, 6 + 4, d_k)  # outside of a call, a row of the cache is a row of the caller
    order = torch.tensor([2, 0])
    cache.batch_select_indices(order)
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 1, 0, 2]))
    rows = order.repeat_interleave(2)[torch.tensor([3, 1, 0, 2])]
    for column in range(6, 9):
        step = model(input_ids=ids[rows, column : column + 1], past_key_values=cache, use_cache=True)
        close(step.logits[:, 0].detach(), whole[rows, column])


def test_a_failed_call_leaves_the_cache_as_it_was() -> None:
    model, injection = streams()
    with torch.no_grad():
        cache = model(input_ids=IDS, use_cache=True).past_key_values
        before = [layer.keys.clone() for layer in cache.layers]
        handle = model.model.layers[0].register_forward_pre_hook(lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=IDS[:, :1], past_key_values=cache, use_cache=True)
    handle.remove()
    assert all(torch.equal(a, layer.keys) for a, layer in zip(before, cache.layers, strict=True))
    assert injection.adapters


@FIVE
def test_answers_and_likelihoods_are_those_of_each_row_alone(family: str) -> None:
    model, _ = streams(family)
    rows = [row.tolist()[n:] for n, row in enumerate(tokens(3, 9))]
    rows = [rows[0][:3] + row for row in rows]  # a common beginning, which runs once
    answers = [[[5, 6], [7]], [[8, 9, 10], [5, 11]], [[3], [4]]]
    together, found = greedy(model, rows, 0, 5, lambda answer: False), likelihoods(model, rows, answers, 0)
    for row, own, answer, values in zip(rows, together, answers, found, strict=True):
        assert greedy(model, [row], 0, 5, lambda answer: False) == [own]
        assert likelihoods(model, [row], [answer], 0)[0] == pytest.approx(values, abs=1e-4)
    if (limit := getattr(model.config.get_text_config(), "max_position_embeddings", None)) is not None:
        assert context_length(model) == limit - 4


@FIVE
def test_every_output_has_the_rows_of_the_input(family: str) -> None:
    model, injection = streams(family)
    model.set_attn_implementation("eager")
    out = model(input_ids=IDS, attention_mask=PADDED, output_hidden_states=True, output_attentions=True)
    assert {tuple(h.shape) for h in out.hidden_states} == {(2, 7, 32)}
    assert {tuple(a.shape[::2]) for a in out.attentions} == {(2, 7)} and out.attentions[0].shape[-1] == 11
    close(out.attentions[0][0].sum(-1), torch.ones(out.attentions[0].shape[1], 7))
    decoder = model.get_submodule(injection.anatomy.decoder)
    whole = decoder(input_ids=IDS, attention_mask=PADDED)
    close(whole.last_hidden_state, out.hidden_states[-1])
    assert torch.equal(decoder(input_ids=IDS, attention_mask=PADDED, return_dict=False)[0], whole.last_hidden_state)


def test_routers_of_the_base_see_each_stream() -> None:
    model, _ = streams("mixtral")
    model.config.output_router_logits = True
    out = model(input_ids=IDS, attention_mask=PADDED, labels=IDS)
    layers = model.config.num_hidden_layers
    assert {tuple(z.shape) for z in out.router_logits} == {(14, model.config.num_local_experts)}
    assert len(out.router_logits) == 3 * layers and float(out.aux_loss.detach()) > 0


@pytest.mark.parametrize("order", [("parscale", "lora"), ("lora", "parscale")])
def test_with_lora_in_a_union(order: tuple[str, str], tmp_path: Path) -> None:
    each = {"parscale": {"type": "parscale", "streams": 2, "virtual_tokens": 3}, "lora": {"type": "lora", "rank": 2}}
    model, injection = adapted("llama", "union", of=[each[name] for name in order])
    events = list(train(model, injection, samples(8), TrainSpec(batch=8, max_steps=3, epochs=3, learning_rate=3e-3)))
    assert len([event for event in events if isinstance(event, Step)]) == 3
    found = [model.generate(input_ids=IDS, attention_mask=PADDED, use_cache=use, **ASKED) for use in (True, False)]
    assert torch.equal(*found)
    save_adapter(injection, tmp_path / "adapter")
    fresh = random_models.tiny("tiny:llama")
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(logits(fresh, IDS), logits(model, IDS))


@pytest.mark.parametrize("beams", [1, 3])
def test_adapters_that_read_the_call_see_the_streams_as_rows(beams: int) -> None:
    grouping = {"type": "poly", "rank": 2, "skills": 2, "groups": ["a", "b"], "at": "q,v"}
    parts = [{"type": "conv", "bottleneck": 4, "kernel": 3}, grouping, {"type": "parscale", "streams": 2}]
    model, injection = adapted("llama", "union", of=[*parts[:2], parts[2] | {"virtual_tokens": 3}])
    shake(injection)
    found, options = [], {**ASKED, "num_beams": beams}
    for use in (True, False):
        with grouped(model, [name for name in "ab" for _ in range(beams)]):
            found.append(model.generate(input_ids=IDS, attention_mask=PADDED, use_cache=use, **options))
    assert torch.equal(*found)
    for row, name in enumerate("ab"):
        start = 3 * row
        with grouped(model, [name] * beams):
            one = model.generate(input_ids=IDS[row : row + 1, start:], **options)
        assert torch.equal(one[0, 7 - start :], found[0][row, 7:])
    assert context_of(model).rows is None


def test_an_adapter_that_reads_the_call_comes_after_it() -> None:
    model = random_models.tiny("tiny:llama")
    inject(model, adapter_config("conv"), name="first")
    inject(model, adapter_config({"type": "parscale", "virtual_tokens": 3}), name="second")
    with pytest.raises(CannotInject, match="Inject the one with 4 streams first, or both as one union"):
        logits(model, IDS)


@FIVE
def test_a_training_reaches_all_tensors_and_is_saved(family: str, tmp_path: Path) -> None:
    model, injection = streams(family)
    before, plan = injection.state_dict(), TrainSpec(batch=8, max_steps=6, epochs=6, learning_rate=3e-3)
    base = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    events = list(train(model, injection, samples(8), plan))
    fallen = {event.setting: event.reason for event in events if isinstance(event, FellBack)}
    assert "puts virtual tokens before every row" in fallen.pop("train.packing")
    assert [*fallen] == (["train.label_layer"] if family == "opt" else [])
    assert all(not torch.equal(tensor, before[name]) for name, tensor in injection.state_dict().items())
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    save_adapter(injection, tmp_path / "adapter")
    fresh = random_models.tiny(f"tiny:{family}")
    again = load_adapter(fresh, tmp_path / "adapter")
    assert (again.config.streams, again.config.virtual_tokens) == (3, 4)
    assert torch.equal(logits(fresh, IDS), logits(model.eval(), IDS))


def test_the_weights_have_their_own_learning_rate() -> None:
    _, injection = streams(weights_rate=7.0)
    adapter: Any = injection.adapters["model"]
    assert injection.rates() == dict.fromkeys([*adapter.W1.parameters(), *adapter.W2.parameters()], 7.0)
    assert streams(streams=1)[1].rates() == {}


@pytest.mark.parametrize("more", [{"sparse": {"score": "snip"}}, {"split": {"parts": 2}}, {"quantize": {"bits": 4}}])
def test_modifiers_act_on_all_matrices(more: dict[str, Any]) -> None:
    model, injection = streams(**more)
    assert set(injection.rates().values()) == {0.02} and len(injection.rates()) == 4
    plan = TrainSpec(batch=8, max_steps=4, epochs=4, learning_rate=3e-3)
    assert len([e for e in train(model, injection, samples(8), plan) if isinstance(e, Step)]) == 4


def test_the_loss_at_labels_only_is_the_whole_loss() -> None:
    model, _ = streams()
    found = []
    for paths in (FastPaths(), FastPaths(label_head=True)):
        with torch.no_grad(), Objective(model, paths).losses(model, samples(6)) as losses:
            found.append(losses)
    close(*found)


def test_a_second_one_is_built_for_the_shapes_of_the_base_and_takes_turns() -> None:
    model, injection = streams()
    shapes = injection.anatomy.cache_shapes(model)
    before = logits(model, IDS)
    second = inject(model, adapter_config({"type": "parscale", "streams": 2, "virtual_tokens": 3}), name="second")
    assert set(second.anatomy.cache_shapes(model).values()) == {(2, 8, 8)} == set(shapes.values())
    with second.disabled():
        assert torch.equal(logits(model, IDS), before)
    with pytest.raises(CannotInject, match="act on the whole model, and only one"):
        logits(model, IDS)


def test_weights_of_the_streams_are_shown_for_each_token() -> None:
    model, injection = streams()
    found = member_weights(injection, IDS[:1])
    assert list(found) == ["model"] and found["model"].shape == (7, 3)
    assert torch.allclose(found["model"].sum(-1), torch.ones(7))
    for look in (lambda: Recorder(model, "layers"), lambda: virtual_shares(model, IDS[:1], injection)):
        with pytest.raises(NoView, match="'default' runs every row in 3 streams"):
            look()
    with injection.disabled():
        Recorder(model, "layers")


def test_memory_and_time_grow_with_the_streams() -> None:
    def spec(count: int) -> RunSpec:
        adapter = {"type": "parscale", "streams": count, "virtual_tokens": 4}
        return RunSpec.parse({"base": "nano", "adapter": adapter, "data": {"task": "mini-math"}, "eval": {"tasks": []}})

    rows, base = samples(16, least=40), blueprint("nano")
    steps, times = [], []
    for count in (1, 4):
        memory = estimate(spec(count), rows, base)
        assert memory is not None
        steps.append(memory.step)
        times.append(rough.seconds(spec(count), base, 1e6, 0, 40, {}))
    assert 3 < steps[1] / steps[0] < 4.5
    assert times[1] > 3.5 * times[0]


def test_what_is_refused(tmp_path: Path) -> None:
    model, injection = streams()
    with pytest.raises(CannotMerge, match="'parscale' does more than a linear change of a weight"):
        merge(injection)
    with pytest.raises(CannotConvert, match="peft has no method like 'parscale'"):
        to_peft(injection, tmp_path / "peft")
    for fields, match in (({"streams": 0}, "streams must be"), ({"smoothing": 1.0}, "smoothing must be")):
        with pytest.raises(BadSpec, match=match):
            RunSpec.parse({"adapter": {"type": "parscale", **fields}})
    with pytest.raises(UnknownAnatomy, match="keeps no plain key/value cache"):
        inject(random_models.tiny("tiny:mamba"), adapter_config("parscale"))
    union = {"type": "union", "of": [{"type": "parscale"}, {"type": "prompt-tuning"}]}
    with pytest.raises(CannotInject, match="Two parts act on the whole model"):
        inject(random_models.tiny("tiny:llama"), adapter_config(union))
    set_gradient_checkpointing(model.train(), True)
    with pytest.raises(CannotInject, match="gradient_checkpointing"):
        model(input_ids=IDS)


@FIVE
def test_nothing_is_left_of_it(family: str) -> None:
    model = random_models.tiny(f"tiny:{family}")
    bare, names = logits(model, IDS), set(model.state_dict())
    injection = inject(model, adapter_config({"type": "parscale", "streams": 3, "virtual_tokens": 4}))
    layers = injection.anatomy.cache_shapes(model).values()
    count = 3 * 4 * sum(heads * (d_k + d_v) for heads, d_k, d_v in layers) + 3 * 32 * 32 + 32 + 3 * 32 + 3
    assert injection.count() == count
    shake(injection)
    logits(model, IDS)
    assert injection.eject() is model
    assert torch.equal(logits(model, IDS), bare) and set(model.state_dict()) == names
    assert not any(isinstance(m, nn.ParameterDict) or m._forward_hooks for m in model.modules())
