"""Views agree with results computed by hand, or by numpy and scipy, and change nothing in the model."""

import copy
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from contract import CASES, config, logits, shake, tokens

from llm_adapters_lab.core.adapter import ModelAdapter
from llm_adapters_lab.core.composition import mix
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.merging import changed_tensors, merge
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import NoView
from llm_adapters_lab.inspection import activation_metrics, weight_metrics
from llm_adapters_lab.inspection.ablations import ablation, interpolation, without
from llm_adapters_lab.inspection.probes import (
    both,
    bottleneck_units,
    layer_similarity,
    logit_lens,
    mean_loss,
    streams,
    token_loss,
)
from llm_adapters_lab.models import random_models

MERGES = [case for case in CASES if get_adapter(CASES[case]["type"]).cls.merged is not None]
CLASSES = {case: get_adapter(fields["type"]).cls for case, fields in CASES.items()}
AT_SITES = [
    case
    for case in CASES
    if all(
        (cls := get_adapter(p.type).cls).scope == "site" and not (cls.trains_base or cls.token_gate)
        for p in config(case).parts
    )
]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapted(case: str, family: str = "llama") -> Any:
    injection = inject(random_models.tiny(f"tiny:{family}"), config(case))
    shake(injection)
    return injection


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("case", [case for case in MERGES if case != "union-one-place"])  # each change by itself
def test_norms_equal_those_of_the_merged_change(case: str, family: str):
    if case in ("bitfit", "adapter-bias") and family == "llama":
        with pytest.raises(NoView, match="no bias"):  # the base has no biases to change
            weight_metrics.norms(adapted(case, family))
        return
    injection = adapted(case, family)
    plain = random_models.tiny(f"tiny:{family}").state_dict()
    sites, found = dict(injection.sites), weight_metrics.norms(injection)
    merged = merge(injection).state_dict()
    for key, site in sites.items():
        moved = [name for name in plain if name.rpartition(".")[0] == site.path and not plain[name].equal(merged[name])]
        size = sum(float((merged[name] - plain[name]).square().sum()) for name in moved) ** 0.5
        assert found[key].change == pytest.approx(size, rel=1e-3)
        assert size > 0
        base = sum(float(plain[name].square().sum()) for name in moved) ** 0.5
        assert not base or found[key].relative == pytest.approx(size / base, rel=1e-3)


def test_the_change_of_a_low_rank_adapter_is_its_matrix_product():
    injection = adapted("lora")
    for key, adapter in injection.adapters.items():
        product = (4.0 * adapter.B @ adapter.A).detach()  # alpha 16 over rank 4
        torch.testing.assert_close(weight_metrics.weight_change(injection, key), product, atol=1e-6, rtol=1e-5)
        values = weight_metrics.spectra(injection)[key].numpy()
        np.testing.assert_allclose(values, np.linalg.svd(product.numpy(), compute_uv=False), atol=1e-5)
        assert (values > 1e-4).sum() == 4


def test_a_change_of_a_bias_has_a_norm_but_no_spectrum():
    injection = adapted("bitfit", "gpt2")
    key = next(iter(injection.sites))
    assert weight_metrics.norms(injection)[key].change > 0
    with pytest.raises(NoView, match=r"changes bias .* which is no matrix"):
        weight_metrics.weight_change(injection, key)
    with pytest.raises(NoView, match="no matrix"):
        weight_metrics.spectra(injection)


@pytest.mark.parametrize("case", [case for case in CASES if case not in MERGES])
def test_methods_without_a_weight_change_are_refused_by_name(case: str):
    injection = adapted(case)
    for view in (weight_metrics.norms, weight_metrics.spectra):
        with pytest.raises(NoView, match=f"'{CASES[case]['type']}'.* has no ΔW|acts on the whole model"):
            view(injection)


def test_ranks_of_spectra_computed_by_hand():
    assert weight_metrics.stable_rank(torch.tensor([2.0, 1.0, 0.0])) == pytest.approx(5 / 4)
    assert weight_metrics.effective_rank(torch.ones(7)) == pytest.approx(7)
    assert weight_metrics.effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(
        np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    )
    assert weight_metrics.stable_rank(torch.zeros(3)) == weight_metrics.effective_rank(torch.zeros(3)) == 0


@pytest.mark.parametrize("side", ["in", "out"])
def test_overlap_agrees_with_the_angles_between_subspaces(side: str):
    a, b = (random(12, 3, seed=s) @ random(3, 9, seed=s + 10) for s in (1, 2))
    grid = weight_metrics.overlap(a, b, side=side)
    assert grid.shape == (3, 3)
    for i, j in ((1, 1), (3, 1), (2, 3), (3, 3)):
        bases = [np.linalg.svd(m.numpy())[0 if side == "out" else 2] for m in (a, b)]
        one, two = (base[:, :n] if side == "out" else base[:n].T for base, n in zip(bases, (i, j), strict=True))
        cosines = np.cos(scipy.linalg.subspace_angles(one, two))
        assert grid[i - 1, j - 1] == pytest.approx((cosines**2).sum() / min(i, j), abs=1e-4)


def test_overlap_at_its_extremes_and_where_it_is_undefined():
    a, eye = random(6, 2) @ random(2, 5, seed=1), torch.eye(4)
    assert weight_metrics.overlap(a, -3 * a)[-1, -1] == pytest.approx(1)
    assert weight_metrics.overlap(eye[:, :2] @ eye[:2], eye[:, 2:] @ eye[2:]).abs().max() < 1e-6
    for other, rank in ((torch.zeros(6, 5), None), (a, 3), (random(5, 6), None)):
        with pytest.raises(NoView):
            weight_metrics.overlap(a, other, rank)


def test_contributions_are_measured_relative_to_the_stream_and_its_end():
    stream = torch.tensor([[[3.0, 4.0]], [[0.0, 10.0]]])
    written = torch.tensor([[[1.0, 0.0]], [[0.0, -5.0]]])
    found = activation_metrics.contribution(written, stream)
    torch.testing.assert_close(found.ratio, torch.tensor([[0.2], [0.5]]))
    torch.testing.assert_close(found.along, torch.tensor([[0.0], [-0.5]]))
    with pytest.raises(NoView, match="width of the residual stream"):
        activation_metrics.contribution(random(2, 1, 3), stream)


def test_inactive_and_saturated_units():
    hidden = torch.tensor([[0.0, 0.5], [0.005, -1.0], [-0.02, 0.995], [0.0, 0.2]])
    found = activation_metrics.activity(hidden)
    torch.testing.assert_close(found.near_zero, torch.tensor([0.75, 0.0]))
    torch.testing.assert_close(found.saturated, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(found.norm[1], torch.tensor((0.25 + 1 + 0.990025 + 0.04) / 4).sqrt())
    assert activation_metrics.activity(hidden, "relu").saturated is None


def test_cka_is_invariant_to_rotation_and_scale_and_agrees_with_the_formula():
    x, y = random(20, 6), random(20, 4, seed=1)
    turned = x @ torch.linalg.qr(random(6, 6, seed=2))[0] * 3 + 5
    assert activation_metrics.cka(x, turned) == pytest.approx(1, abs=1e-6)
    a, b = (z.numpy().astype(float) - z.numpy().mean(0) for z in (x, y))
    expected = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert activation_metrics.cka(x, y) == pytest.approx(expected, rel=1e-4)
    assert activation_metrics.cosine(x[None], -x[None])[0].tolist() == pytest.approx([-1] * 20, abs=1e-5)


def test_attention_on_virtual_tokens_is_the_share_of_the_first_keys():
    pattern = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]])
    torch.testing.assert_close(activation_metrics.virtual_attention(pattern, 2), torch.tensor([[0.75, 0.3]]))
    for t in (0, 3):
        with pytest.raises(NoView, match="no virtual tokens"):
            activation_metrics.virtual_attention(pattern, t)


@pytest.mark.parametrize("family", random_models.TINY)
def test_the_last_row_of_the_lens_is_the_models_prediction(family: str):
    model, ids = random_models.tiny(f"tiny:{family}"), tokens(rows=1)
    names, hooks = set(model.state_dict()), sum(len(m._forward_hooks) for m in model.modules())
    lens, said = logit_lens(model, ids, k=3), logits(model, ids)[0].float()
    chance = said.softmax(-1)
    layers = model.config.num_hidden_layers
    assert lens.top.shape == lens.probability.shape == (layers + 1, 7, 3)
    torch.testing.assert_close(lens.probability[-1], chance.topk(3).values, atol=1e-5, rtol=1e-4)
    assert lens.target.tolist() == [*ids[0, 1:].tolist(), said[-1].argmax().item()]
    torch.testing.assert_close(lens.target_probability[-1], chance[range(7), lens.target], atol=1e-5, rtol=1e-4)
    assert lens.target_rank[-1, -1] == 1
    place = (said[2] > said[2, lens.target[2]]).sum() + 1
    assert lens.target_rank[-1, 2] == place
    assert (set(model.state_dict()), sum(len(m._forward_hooks) for m in model.modules())) == (names, hooks)


def test_the_lens_reads_every_layer_through_norm_and_head(monkeypatch: pytest.MonkeyPatch):
    model, ids = random_models.tiny("tiny:llama"), tokens(rows=1)
    monkeypatch.setattr("llm_adapters_lab.inspection.probes.LAYERS_AT_ONCE", 2)
    stream, lens = streams(model, ids), logit_lens(model, ids, k=1)
    with torch.no_grad():
        by_hand = model.lm_head(model.model.norm(stream)).softmax(-1)
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(lens.probability[..., 0], by_hand.max(-1).values)
    torch.testing.assert_close(stream[:-1], torch.cat(states[:-1]))
    torch.testing.assert_close(model.model.norm(stream[-1]), states[-1][0])


@pytest.mark.parametrize("case", CASES)
def test_lens_loss_and_similarity_work_for_every_method(case: str):
    injection, ids = adapted(case), tokens(rows=1)
    before, after = both(injection, lambda: token_loss(injection.model, ids))
    assert before.shape == after.shape == (6,)
    assert not torch.equal(before, after)
    if case == "parscale":
        with pytest.raises(NoView, match="runs every row in 3 streams"):
            logit_lens(injection.model, ids)
        return
    plain, changed = both(injection, lambda: logit_lens(injection.model, ids))
    assert plain.top.shape == changed.top.shape[:1] + plain.top.shape[1:]
    torch.testing.assert_close(plain.probability, logit_lens(random_models.tiny("tiny:llama"), ids).probability)
    towards, alike = layer_similarity(injection.model, ids, injection)
    assert towards.shape == (3, 7)
    assert alike.shape == (3,)
    assert float(towards.max()) <= 1 + 1e-5


def test_token_loss_is_the_loss_of_the_model():
    model, ids = random_models.tiny("tiny:llama"), tokens(rows=1)
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss
    assert mean_loss(model, ids[0]) == pytest.approx(float(expected), rel=1e-5)
    for bad in (tokens(rows=2), ids[:, :1]):
        with pytest.raises(NoView, match="one text"):
            token_loss(model, bad)


@pytest.mark.parametrize("case", [c for c in CASES if not issubclass(get_adapter(CASES[c]["type"]).cls, ModelAdapter)])
def test_without_all_sites_the_base_is_left(case: str):
    injection, ids = adapted(case), tokens(rows=1)
    adapted_logits = logits(injection.model, ids)
    with without(injection, injection.sites):
        assert torch.equal(logits(injection.model, ids), logits(random_models.tiny("tiny:llama"), ids))
    assert torch.equal(logits(injection.model, ids), adapted_logits)


def test_ablation_switches_off_one_layer_at_a_time():
    injection, ids = adapted("lora"), tokens(rows=1)
    found = ablation(injection.model, ids, injection)
    assert found.base == mean_loss(random_models.tiny("tiny:llama"), ids)
    assert found.full == mean_loss(injection.model, ids)
    assert list(found.without) == [0, 1]
    with torch.no_grad():
        for key, adapter in injection.adapters.items():
            if ".1." in key:
                adapter.B.zero_()
    assert found.without[1] == pytest.approx(mean_loss(injection.model, ids), abs=1e-6)
    for case in ("prefix", "prompt-tuning"):
        whole = adapted(case)
        with pytest.raises(NoView, match="one adapter for all layers"):
            ablation(whole.model, ids, whole)


@pytest.mark.parametrize("case", AT_SITES)
def test_interpolation_goes_from_the_base_to_the_adapter(case: str):
    injection, ids = adapted(case), tokens(rows=1)
    before = copy.deepcopy(injection.state_dict())
    curve = dict(interpolation(injection.model, ids, injection, (0.0, 0.5, 1.0)))
    assert curve[0.0] == mean_loss(random_models.tiny("tiny:llama"), ids)
    assert curve[1.0] == pytest.approx(mean_loss(injection.model, ids), abs=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in injection.state_dict().items())


def test_half_the_scale_is_half_the_weight_change():
    injection, ids = adapted("lora"), tokens(rows=1)
    curve = dict(interpolation(injection.model, ids, injection, (0.5,)))
    other = random_models.tiny("tiny:llama")
    with torch.no_grad():
        for key, site in injection.sites.items():
            other.get_submodule(site.path).weight += weight_metrics.weight_change(injection, key) / 2
    assert curve[0.5] == pytest.approx(mean_loss(other, ids), abs=1e-5)


def test_interpolation_restores_a_mix():
    injection, ids = adapted("lora"), tokens(rows=1)
    second = inject(injection.model, config("lora", at="q"), name="second")
    shake(second)
    mix(injection.model, {"default": 0.3, "second": 0.7})
    before = mean_loss(injection.model, ids)
    interpolation(injection.model, ids, second, (0.0, 1.5))
    assert mean_loss(injection.model, ids) == before


@pytest.mark.parametrize("case", ["prefix", "prompt-tuning", "full-fine-tuning", "norm-tuning"])
def test_methods_without_contributions_cannot_be_interpolated(case: str):
    injection = adapted(case)
    with pytest.raises(NoView, match="no contribution to scale"):
        interpolation(injection.model, tokens(rows=1), injection)


def test_bottleneck_units_have_one_row_per_token():
    injection, ids = adapted("parallel-both"), tokens(rows=1)
    found = bottleneck_units(injection.model, ids, injection)
    assert {key: tuple(h.shape) for key, h in found.items()} == dict.fromkeys(injection.sites, (7, 8))
    assert all(float(h.abs().max()) <= 1 for h in found.values())
    with pytest.raises(NoView, match="no bottleneck"):
        bottleneck_units(injection.model, ids, adapted("lora"))


@pytest.mark.parametrize("matrix", [torch.ones(32), torch.ones(2, 4, 4), torch.full((4, 4), torch.nan)])
def test_what_has_no_spectrum_is_named(matrix: torch.Tensor):
    with pytest.raises(NoView, match="finite matrix"):
        weight_metrics.spectrum(matrix)
    with pytest.raises(NoView, match="finite matrix"):
        weight_metrics.overlap(matrix, torch.ones_like(matrix))
    for rank in (weight_metrics.stable_rank, weight_metrics.effective_rank):
        with pytest.raises(NoView, match="singular values"):
            rank(torch.eye(3))


def test_ids_of_any_whole_type_are_taken_and_no_others():
    model = random_models.tiny("tiny:llama")
    losses = [token_loss(model, tokens(rows=1).to(dtype)) for dtype in (torch.int64, torch.int32, torch.uint8)]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(NoView, match="whole numbers"):
            token_loss(model, tokens(rows=1).to(dtype))


def test_sites_are_grouped_by_layer():
    injection = adapted("full-fine-tuning")
    assert [layer for layer, _ in weight_metrics.by_layer(injection)] == [0, 1]
    assert weight_metrics.layer_of(injection, next(k for k in injection.sites if "embed" in k)) is None
    assert changed_tensors(injection, next(iter(injection.sites)))
