"""The training loop: losses, row order, schedules, diagnostics, reproducibility."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters_lab.adapters.bitfit import BitFitConfig
from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.adapters.prefix import PrefixConfig
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.errors import CannotInject, TrainingFailed
from llm_adapters_lab.events import Norms, Probed, Step, Validated
from llm_adapters_lab.models import random_models
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training.batches import collate, row_order, step_count
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import token_loss
from llm_adapters_lab.training.optimizer import learning_rate
from llm_adapters_lab.training.spec import TrainSpec

GOLDEN = [4.915895, 4.862844, 4.911875, 4.850648, 4.886246, 4.810813]


def samples(count: int = 12) -> list[Sample]:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for i in range(count):
        length = 6 + i % 5
        ids = tuple(torch.randint(3, 128, (length,), generator=generator).tolist())
        rows.append(Sample(f"row/{i}", ids, (IGNORED,) * 4 + ids[4:]))
    return rows


def prepared(config: Any = None) -> tuple[Any, Injection]:
    model = random_models.tiny("tiny:llama")
    torch.manual_seed(0)
    return model, inject(model, config or LoRAConfig(rank=4, at="q,v,down"))


def losses(plan: TrainSpec, config: Any = None, **kwargs: Any) -> tuple[list[float], Injection]:
    model, injection = prepared(config)
    events = list(train(model, injection, samples(), plan, **kwargs))
    return [e.loss for e in events if isinstance(e, Step)], injection


PLAN = TrainSpec(learning_rate=1e-2, batch=4, epochs=2)


def test_the_golden_losses() -> None:
    assert losses(PLAN)[0] == pytest.approx(GOLDEN, abs=2e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_order() -> None:
    first, a = losses(PLAN)
    second, b = losses(PLAN)
    assert first == second
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert losses(PLAN, seed=1)[0] != first


@pytest.mark.parametrize("on", [False, True])
def test_deterministic_kernels_are_requested_during_training_only(on: bool) -> None:
    model, injection = prepared()
    plan = PLAN.model_copy(update={"deterministic": on})
    seen = {torch.are_deterministic_algorithms_enabled() for _ in train(model, injection, samples(), plan)}
    assert seen == {on}
    assert not torch.are_deterministic_algorithms_enabled()


def test_accumulation_changes_nothing_but_rounding() -> None:
    whole, a = losses(PLAN)
    parts, b = losses(PLAN.model_copy(update={"micro_batch": 1}))
    assert parts == pytest.approx(whole, abs=1e-5)
    assert all(torch.allclose(v, b.state_dict()[k], atol=1e-4) for k, v in a.state_dict().items())


def test_gradient_checkpointing_changes_nothing_but_rounding_or_is_refused() -> None:
    plan = PLAN.model_copy(update={"gradient_checkpointing": True})
    assert losses(plan)[0] == pytest.approx(losses(PLAN)[0], abs=1e-5)
    with pytest.raises(CannotInject, match=r"train\.gradient_checkpointing"):
        losses(plan, PrefixConfig())


def test_only_the_adapter_learns() -> None:
    model, injection = prepared()
    before = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad is False}
    for event in train(model, injection, samples(), PLAN.model_copy(update={"epochs": 20.0})):
        last = event
    assert isinstance(last, Norms)
    assert all(value > 0 for value in last.norms.values())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    assert not model.training


def test_norms_are_reported_by_site_or_by_tensor() -> None:
    def last_norms(config: Any) -> dict[str, float]:
        model, injection = prepared(config)
        return [e for e in train(model, injection, samples(), PLAN) if isinstance(e, Norms)][-1].norms

    assert set(last_norms(LoRAConfig(at="q@0"))) == {"model.layers.0.self_attn.q_proj"}
    assert set(last_norms(PrefixConfig())) == {f"model/layers.{i}.{k}" for i in range(2) for k in ("key", "value")}


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e3])
def test_probes_equal_a_computation_by_hand(clip: float) -> None:
    model, injection = prepared(LoRAConfig(rank=4, at="q,down"))
    plan = TrainSpec(learning_rate=1e-2, batch=4, max_steps=2, probe_every=1, clip=clip, schedule="constant")
    start = injection.state_dict()
    rows = [samples()[i] for i in next(iter(row_order(12, 4, 2, 0)))]
    model.train()
    (token_loss(model, collate(rows, 0)) / sum(r.counted for r in rows)).backward()
    slopes = {f"{k}/{n}": p.grad.clone() for k, a in injection.adapters.items() for n, p in a.named_parameters()}
    model.zero_grad()
    events = train(model, injection, samples(), plan)
    step, probed = next(events), next(events)
    now = injection.state_dict()
    events.close()
    assert isinstance(step, Step) and isinstance(probed, Probed) and probed.step == 1

    def norm(key: str, tensors: dict[str, torch.Tensor]) -> float:
        return math.sqrt(sum(float(t.double().square().sum()) for n, t in tensors.items() if n.startswith(f"{key}/")))

    assert set(probed.norm) == set(probed.gradient_norm) == set(probed.update_ratio) == set(injection.sites)
    change = {name: now[name] - start[name] for name in now}
    for key in probed.norm:
        assert probed.norm[key] == pytest.approx(norm(key, now), rel=1e-5)
        assert probed.gradient_norm[key] == pytest.approx(norm(key, slopes), rel=1e-4)
        assert probed.update_ratio[key] == pytest.approx(norm(key, change) / norm(key, now), rel=1e-4)
    assert math.hypot(*probed.gradient_norm.values()) == pytest.approx(step.gradient_norm, rel=1e-4)


@pytest.mark.parametrize("given", [LoRAConfig(rank=4), PrefixConfig(), BitFitConfig()])
def test_probing_changes_no_bit_of_the_training(given: Any) -> None:
    plan = PLAN.model_copy(update={"probe_every": 2})
    first, a = losses(PLAN, given)
    second, b = losses(plan, given)
    assert first == second
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    model, injection = prepared(given)
    events = list(train(model, injection, samples(), plan))
    probes = [e for e in events if isinstance(e, Probed)]
    assert [e.step for e in probes] == [2, 4, 6]
    assert all(set(e.norm) == set(next(n for n in events if isinstance(n, Norms)).norms) for e in probes)
    assert not [e for e in train(model, injection, samples(), PLAN) if isinstance(e, Probed)]


def test_the_update_ratio_of_a_first_step_from_zero_is_one() -> None:
    model, injection = prepared(BitFitConfig())
    events = train(model, injection, samples(), PLAN.model_copy(update={"probe_every": 1}))
    probed = next(e for e in events if isinstance(e, Probed))
    events.close()
    assert all(value == pytest.approx(1) for value in probed.update_ratio.values())


def test_the_loss_is_the_mean_over_counted_labels() -> None:
    model, _ = prepared()
    rows = samples(3)
    batch = collate(rows, pad_id=0)
    with torch.no_grad():
        together = float(token_loss(model, batch))
        alone = 0.0
        for row in rows:
            log = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
            alone -= sum(float(log[i - 1, label]) for i, label in enumerate(row.labels) if label != IGNORED)
    assert together == pytest.approx(alone, rel=1e-5)
    assert sum(r.counted for r in rows) == sum(len(r.ids) - 4 for r in rows)


def test_the_best_step_is_kept() -> None:
    model, injection = prepared()
    plan = TrainSpec(learning_rate=0.5, batch=4, epochs=4, evaluate_every=2, schedule="constant")
    held_out = samples(16)[12:]
    events = list(train(model, injection, samples(), plan, validation=held_out))
    checks = [e for e in events if isinstance(e, Validated)]
    assert [e.step for e in checks] == [2, 4, 6, 8, 10, 12]
    best = min(checks, key=lambda e: e.loss)
    assert [e for e in checks if e.best][-1] == best
    with torch.no_grad():
        now = float(token_loss(model, collate(held_out, 0))) / sum(s.counted for s in held_out)
    assert now == pytest.approx(best.loss, rel=1e-5)


def test_closing_the_iterator_stops_and_leaves_a_usable_model() -> None:
    model, injection = prepared()
    iterator = train(model, injection, samples(), PLAN)
    assert isinstance(next(iterator), Step)
    iterator.close()
    assert not model.training
    model(torch.tensor([[5, 6]]))


@pytest.mark.filterwarnings("ignore:.*invalid value.*:RuntimeWarning")
def test_a_loss_that_is_not_finite_names_step_and_rows() -> None:
    model, injection = prepared()
    with torch.no_grad():
        injection.parameters()[0].fill_(math.inf)
    with pytest.raises(TrainingFailed, match=r"loss of step 1 is nan.*row/"):
        list(train(model, injection, samples(), PLAN))


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 30), st.integers(0, 9))
def test_every_row_is_used_once_per_epoch(count: int, batch: int, steps: int, seed: int) -> None:
    batches = list(row_order(count, batch, steps, seed))
    assert [len(b) for b in batches] == [batch] * steps
    flat = [i for b in batches for i in b]
    for start in range(0, len(flat) - count + 1, count):
        assert sorted(flat[start : start + count]) == list(range(count))
    assert batches == list(row_order(count, batch, steps, seed))


def test_steps_and_schedules() -> None:
    plan = TrainSpec(batch=16, epochs=3, learning_rate=1.0, warmup=2)
    assert step_count(plan, 100) == 19
    assert step_count(plan.model_copy(update={"max_steps": 5}), 100) == 5
    rates = [learning_rate(plan, s, 10) for s in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == pytest.approx([1 - i / 8 for i in range(8)])
    cosine = plan.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 6, 10) == pytest.approx(0.5)
    assert learning_rate(plan.model_copy(update={"schedule": "constant"}), 9, 10) == 1.0
