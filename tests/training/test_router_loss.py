"""The loss of a mixture's routers is trained on as the base defines it, and asked for nowhere else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fast_path_cases import adapted, gradients, samples
from torch import nn

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.evaluation.decoding import StopRule
from llm_adapters_lab.evaluation.predictions import answer
from llm_adapters_lab.events import FellBack, Step
from llm_adapters_lab.models import loading
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.batches import collate
from llm_adapters_lab.training.fast_paths import choose_fast_paths
from llm_adapters_lab.training.joint import _obstacle
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import FastPaths, Objective, _router_losses
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import set_gradient_checkpointing

MIXTURES = ["mixtral", "gpt_oss", "qwen3_moe", "olmoe", "granitemoe", "jetmoe"]
PATHS = [FastPaths(), FastPaths(label_head=True), FastPaths(True, packing=True)]
WEIGHT = 0.3


def mixture(family: str = "mixtral", adapter: str = "lora", **given: Any) -> tuple[Any, Injection]:
    """Return a tiny mixture in training mode that asks for its router loss, and its adapter."""
    model, injection = adapted(family, adapter, **given)
    model.config.output_router_logits = True
    name = "aux_loss_coef" if hasattr(model, "aux_loss_coef") else "router_aux_loss_coef"
    setattr(model, name, WEIGHT)
    return model.train(), injection


def own(model: Any, injection: Injection, rows: list[Sample]) -> tuple[float, float, torch.Tensor]:
    """Return the loss that the model computes itself, the router loss in it, and the gradients."""
    model.zero_grad()
    output = model(**collate(rows, 0), use_cache=False)
    output.loss.backward()
    return output.loss.item(), output.aux_loss.item(), torch.cat([p.grad.flatten() for p in injection.parameters()])


@pytest.mark.parametrize("family", MIXTURES)
def test_the_loss_is_that_of_the_model_itself(family: str) -> None:
    model, injection = mixture(family, at="attn")
    rows = samples(6)
    loss, router, slopes = own(model, injection, rows)
    assert WEIGHT * router > 0.1
    for path in PATHS:
        if path.packing and not choose_fast_paths(model, injection, rows, TrainSpec())[0].packing:
            continue
        found, others = gradients(model, injection, path, rows)
        assert found == pytest.approx(loss, abs=1e-5), path
        assert torch.allclose(others, slopes, atol=1e-5), path


def test_it_counts_once_with_recomputation_and_with_two_passes() -> None:
    model, injection = mixture(at="attn", rank=2)
    rows = samples(6)
    loss, router, slopes = own(model, injection, rows)
    set_gradient_checkpointing(model, True)
    found, others = gradients(model, injection, FastPaths(label_head=True), rows)
    assert found == pytest.approx(loss, abs=1e-5) and torch.allclose(others, slopes, atol=1e-5)
    model, injection = mixture(at="q", rank=2, split={"parts": 2})
    totals = []
    for asked in (True, False):
        model.config.output_router_logits = asked
        torch.manual_seed(0)  # which parts are used
        with Objective(model, FastPaths(), 0, injection).loss(model, rows) as total:
            totals.append(total.item() / sum(row.counted for row in rows))
    assert totals[0] - totals[1] == pytest.approx(WEIGHT * router, rel=0.05)


@pytest.mark.parametrize("adapter", ["prompt-tuning", "prefix"])
def test_virtual_tokens_are_not_among_those_that_the_router_loss_counts(adapter: str) -> None:
    model, injection = mixture("mixtral", adapter)
    rows = samples(6)
    loss, _, slopes = own(model, injection, rows)
    found, others = gradients(model, injection, FastPaths(label_head=True), rows)
    assert found == pytest.approx(loss, abs=1e-5) and torch.allclose(others, slopes, atol=1e-5)


def test_what_does_not_ask_for_it_or_is_not_in_training_has_none() -> None:
    model, injection = mixture()
    rows = samples(6)
    loss, router, _ = own(model, injection, rows)
    model.eval()
    assert gradients(model, injection, FastPaths(), rows)[0] == pytest.approx(loss - WEIGHT * router, abs=1e-5)
    model.train().config.output_router_logits = False
    assert gradients(model, injection, FastPaths(), rows)[0] == pytest.approx(loss - WEIGHT * router, abs=1e-5)


def test_a_router_loss_without_a_weight_is_refused() -> None:
    model = nn.Identity()
    model.config = SimpleNamespace(output_router_logits=True)
    refused = pytest.raises(BadSpec, match="Identity asks for a router loss .* without router_aux_loss_coef")
    with _router_losses(model), refused:
        model(SimpleNamespace(aux_loss=torch.ones(())))


def test_training_says_what_it_computes_plainly() -> None:
    model, injection = mixture()
    events = list(train(model, injection, samples(), TrainSpec(batch=6, max_steps=2, learning_rate=1e-3)))
    reasons = {event.setting: event.reason for event in events if isinstance(event, FellBack)}
    assert list(reasons) == ["train.share_prefix", "train.label_layer"]
    assert all("router loss" in reason for reason in reasons.values())
    assert next(event.loss for event in events if isinstance(event, Step)) > WEIGHT * 2
    members = [inject(model, LoRAConfig(rank=2), name=name) for name in ("a", "b")]
    assert all("router loss" in _obstacle(model, member, TrainSpec()) for member in members)


def test_answers_need_no_router_loss() -> None:
    tokenizer = loading.load_base("nano").tokenizer
    model, _ = mixture()
    model.eval()
    rows = [[5, 6, 7, 8, 9], [5, 6, 8], [5, 9, 9, 9]]
    rule = StopRule(model, tokenizer, None)
    by_beams = answer(model, 0, rows, 4, rule, 2)
    found = answer(model, 0, rows, 4, rule)
    model.config.output_router_logits = False
    assert found == answer(model, 0, rows, 4, rule) and by_beams == answer(model, 0, rows, 4, rule, 2)
