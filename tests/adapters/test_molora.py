"""MoLoRA: exact where its weights are known, a penalty that counts tokens, and what it refuses."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import logits, shake, tokens
from fast_path_cases import adapted, samples
from torch import nn
from torch.nn.functional import one_hot

from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.registry import adapter_config, get_adapter
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import BadSpec, CannotConvert, CannotInject, CannotMerge
from llm_adapters_lab.events import FellBack, Step
from llm_adapters_lab.models import random_models
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import FastPaths, Objective
from llm_adapters_lab.training.packing import pack
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import set_gradient_checkpointing

FOUR = pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3"])
TOPS = pytest.mark.parametrize("top", [0, 2])
IDS = tokens()
PATHS = [FastPaths(), FastPaths(True), FastPaths(packing=True), FastPaths(True, True, True)]


def mixed(family: str = "llama", **fields: Any) -> tuple[Any, Injection]:
    """Return a model with a mixture that is no longer at its start, with routers that have a preference."""
    model, injection = adapted(family, "molora", **{"rank": 2, "members": 3, **fields})
    with torch.no_grad():
        for adapter in injection.adapters.values():
            adapter.R.mul_(20)
    return model, injection


def penalty(of: Any) -> float:
    """Return the penalty of an adapter, or of all of an injection."""
    return float(of.penalty().detach())


def alone(**fields: Any) -> Any:
    """Return the adapter of a site of its own, away from its start."""
    torch.manual_seed(0)
    config = adapter_config({"type": "molora", "rank": 2, "members": 3, **fields})
    adapter = get_adapter("molora").cls(config, Site("x", "down", 0, 12, 8, "out", "x"), nn.Linear(12, 8))
    for p in adapter.parameters():
        nn.init.normal_(p)
    return adapter


@FOUR
def test_one_member_is_lora(family: str) -> None:
    model, injection = mixed(family, members=1)
    one = logits(model.train(), IDS)
    assert penalty(injection) == 0.0
    own = {name: t[0] for name, t in injection.state_dict().items() if not name.endswith("/R")}
    injection.eject()
    lora = inject(model, adapter_config({"type": "lora", "rank": 2}))
    lora.load_state_dict(own)
    assert torch.equal(logits(model, IDS), one)


@FOUR
def test_a_router_of_zeros_gives_the_mean_of_the_products(family: str) -> None:
    model, injection = mixed(family)
    for adapter in injection.adapters.values():
        nn.init.zeros_(adapter.R)
    equal, own = logits(model, IDS), dict(injection.adapters)
    injection.eject()
    # The mean of three products of rank 2 is one product of rank 6, with a third of the scale.
    lora = inject(model, adapter_config({"type": "lora", "rank": 6, "alpha": 16}))
    with torch.no_grad():
        for key, adapter in lora.adapters.items():
            adapter.A.copy_(own[key].A.flatten(0, 1))
            adapter.B.copy_(own[key].B.transpose(0, 1).flatten(1))
    torch.testing.assert_close(logits(model, IDS), equal, atol=1e-5, rtol=1e-5)


@TOPS
def test_the_output_is_the_weighted_sum_of_what_the_members_add(top: int) -> None:
    adapter, x, y = alone(top=top), torch.randn(2, 5, 12), torch.randn(2, 5, 8)
    found = adapter.token_weights(x)
    p = (x @ adapter.R.T).softmax(-1)
    if top:
        assert torch.equal((found > 0).sum(-1), torch.full((2, 5), top))
        largest = p.sort(-1, descending=True).values[..., :top]
        assert torch.allclose(found.sort(-1, descending=True).values[..., :top], largest / largest.sum(-1, True))
    else:
        assert torch.allclose(found, p)
    assert torch.allclose(found.sum(-1), torch.ones(2, 5))
    expected = y + sum(found[..., k, None] * (8.0 * x @ adapter.A[k].T @ adapter.B[k].T) for k in range(3))
    assert torch.allclose(adapter(x, y), expected, atol=1e-4)
    assert torch.allclose(adapter(x.flatten(0, 1), y.flatten(0, 1)), expected.flatten(0, 1), atol=1e-4)


def by_hand(injection: Injection, rows: list[Sample], top: int) -> float:
    """Return the sum of the penalties over the sites, from the weights of each row alone."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        adapter.register_forward_hook(lambda a, args, _, key=key: seen.setdefault(key, []).append(args[0] @ a.R.T))
        for key, adapter in injection.adapters.items()
    ]
    for row in rows:
        logits(injection.model, torch.tensor([row.ids]))
    for handle in handles:
        handle.remove()
    total = 0.0
    for each in seen.values():
        p = torch.cat([part[0] for part in each]).softmax(-1)
        assert len(p) == sum(len(row.ids) for row in rows)
        chosen = one_hot(p.topk(top or 1).indices, 3).sum(1).float()
        total += 0.25 * float(3 * (chosen.mean(0) / (top or 1) * p.mean(0)).sum() - 1)
    return total


@FOUR
@TOPS
def test_the_penalty_is_that_of_all_tokens_of_the_rows_however_they_are_laid_out(family: str, top: int) -> None:
    model, injection = mixed(family, balance=0.25, top=top)
    rows, gradients = samples(6), []
    expected = by_hand(injection, rows, top)
    assert abs(expected) > 1e-3
    counted = sum(row.counted for row in rows)
    for paths in PATHS if family == "llama" else PATHS[:2]:  # lengths differ, so that the first two are padded
        model.eval()
        with torch.no_grad(), Objective(model, paths, 0, injection).loss(model, rows) as plain:
            assert penalty(injection) == 0.0
        model.train().zero_grad()
        with Objective(model, paths, 0, injection).loss(model, rows) as loss:
            assert float(loss.detach() - plain) / counted == pytest.approx(expected, abs=1e-4)
            (loss / counted).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in injection.parameters()]))
    assert all(torch.allclose(one, gradients[0], atol=1e-5) for one in gradients)


def test_the_penalty_is_zero_for_an_equal_use_and_largest_for_one_member() -> None:
    adapter, x, y = alone(balance=0.5, rank=1), torch.eye(12)[None], torch.zeros(1, 12, 8)
    with torch.no_grad():
        adapter.R.zero_()
        for k in range(3):
            adapter.R[k, 4 * k : 4 * k + 4] = 50
    adapter.train()(x, y)
    assert penalty(adapter) == pytest.approx(0.0, abs=1e-6)
    assert penalty(adapter) == 0.0  # a pass has it once
    adapter(x[:, :4], y[:, :4])
    assert penalty(adapter) == pytest.approx(0.5 * (3 - 1), abs=1e-5)
    adapter.eval()(x[:, :4], y[:, :4])
    assert penalty(adapter) == 0.0


def test_packed_tokens_stand_for_all_rows_that_they_are_part_of() -> None:
    rows = samples(6)
    for packed in (pack(rows, share=True), pack(rows, share=True).repeat(2)):
        counts = torch.zeros(packed.ids.shape[1], dtype=torch.long)
        for number, own in enumerate(packed.rows):
            counts[own[: len(rows[number % 6].ids)]] += 1
        assert torch.equal(packed.counts, counts) and int(counts.max()) == 6
    assert torch.equal(pack(rows, share=False).counts, torch.ones(sum(len(row.ids) for row in rows), dtype=torch.long))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_recomputed_activations_give_the_same_gradients(family: str) -> None:
    rows, found = samples(4), []
    model, injection = mixed(family, balance=1.0)
    for on in (False, True):
        set_gradient_checkpointing(model, on)
        model.train().zero_grad()
        with Objective(model, FastPaths(), 0, injection).loss(model, rows) as loss:
            loss.backward()
        found.append([p.grad.clone() for p in injection.parameters()])
        assert all(adapter.unequal is None for adapter in injection.adapters.values())
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*found, strict=True))


@FOUR
def test_a_training_reaches_all_tensors_balances_and_is_saved(family: str, tmp_path: Path) -> None:
    model, injection = mixed(family, balance=1.0, top=2)
    before, rows = injection.state_dict(), samples(8)
    uneven = by_hand(injection, rows, 2)
    events = list(train(model, injection, rows, TrainSpec(batch=8, max_steps=20, epochs=20, learning_rate=3e-3)))
    assert len([event for event in events if isinstance(event, Step)]) == 20
    assert not [event for event in events if isinstance(event, FellBack) and event.setting == "train.share_prefix"]
    assert all(not torch.equal(tensor, before[name]) for name, tensor in injection.state_dict().items())
    assert by_hand(injection, rows, 2) < 0.7 * uneven
    save_adapter(injection, tmp_path / "adapter")
    fresh = random_models.tiny(f"tiny:{family}")
    again = load_adapter(fresh, tmp_path / "adapter")
    assert (again.config.top, again.config.members) == (2, 3)
    assert torch.equal(logits(fresh, IDS), logits(model, IDS))


def test_a_model_can_be_copied_between_the_forward_pass_and_its_penalty() -> None:
    model, injection = mixed()
    loss = model.train()(input_ids=IDS).logits.square().mean()
    twin = copy.deepcopy(model)
    assert penalty(injection) > 0
    loss.backward()
    assert torch.equal(logits(twin.eval(), IDS), logits(model.eval(), IDS))


def test_the_router_has_its_own_learning_rate() -> None:
    _, injection = mixed(router_rate=7.0)
    assert set(injection.rates().values()) == {7.0}
    assert {*injection.rates()} == {adapter.R for adapter in injection.adapters.values()}


@pytest.mark.parametrize("more", [{"sparse": {"score": "snip"}}, {"split": {"parts": 2}}, {"quantize": {"bits": 4}}])
def test_modifiers_act_on_all_matrices(more: dict[str, Any]) -> None:
    model, injection = mixed(balance=1.0, router_rate=5.0, **more)
    assert set(injection.rates()) == {p for p in injection.parameters() if p.shape[:1] == (3,) and p.ndim == 2}
    plan = TrainSpec(batch=8, max_steps=4, epochs=4, learning_rate=3e-3)
    assert len([e for e in train(model, injection, samples(8), plan) if isinstance(e, Step)]) == 4


def test_what_is_refused(tmp_path: Path) -> None:
    model, injection = mixed()
    shake(injection)
    with pytest.raises(CannotMerge, match="'molora' does more than a linear change of a weight"):
        merge(injection)
    with pytest.raises(CannotConvert, match="peft has no method like 'molora'"):
        to_peft(injection, tmp_path / "peft")
    for fields, match in (
        ({"top": 5}, "adapter.top = 5 must be 0 .* to adapter.members = 4"),
        ({"top": 1}, "A single member always has the weight 1"),
        ({"members": 0}, "members must be"),
        ({"balance": -1}, "balance must be"),
    ):
        with pytest.raises(BadSpec, match=match):
            RunSpec.parse({"adapter": {"type": "molora", **fields}})
    with pytest.raises(CannotInject, match="is a routed expert, where 'molora' cannot be"):
        inject(random_models.tiny("tiny:mixtral"), adapter_config("molora"), at="mlp")
    with pytest.raises(CannotInject, match="cannot be at `embed`"):
        inject(model, adapter_config("molora"), at="embed,head", name="outer")
