"""The output head in chunks: the losses and gradients of the head at once, and memory that does not grow with rows."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_path_cases import adapted, allocated, gradients, samples
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, Gemma2Config

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.models import random_models
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.forecast.memory import Peak, estimate
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training import fast_paths
from llm_adapters_lab.training.fast_paths import choose_fast_paths, eligible
from llm_adapters_lab.training.loss import FastPaths, Objective
from llm_adapters_lab.training.spec import TrainSpec

HEAD = FastPaths(label_head=True)
WORDS = 262144


def check(model: Any, injection: Any, paths: FastPaths = HEAD, count: int = 6) -> None:
    """Compare chunks of seven labels with all at once."""
    rows = samples(count, "all")
    loss, slopes = gradients(model, injection, paths, rows)
    found, others = gradients(model, injection, replace(paths, head_chunk=7), rows)
    assert found == pytest.approx(loss, rel=1e-6)
    assert torch.allclose(others, slopes, atol=1e-5)


# Dense ones (soft-capped, scaled, tied, with a bias, ...), a mixture, a state-space model and a hybrid.
@pytest.mark.parametrize("family", [*random_models.TINY, "mixtral", "mamba", "bamba"])
def test_chunks_are_exact_whatever_follows_the_head(family: str) -> None:
    at = {"mixtral": "attn", "mamba": "in_proj", "bamba": "mlp"}.get(family, "attn+mlp")
    check(*adapted(family, at=at, rank=4))


@pytest.mark.parametrize(("family", "at"), [("phi", "head,q"), ("llama", "head"), ("gemma2", "embed,head")])
def test_adapters_at_the_head_learn_the_same(family: str, at: str) -> None:
    check(*adapted(family, at=at, rank=4))


def test_a_trained_head_learns_the_same() -> None:
    check(*adapted("llama", "full-fine-tuning"))


def test_half_precision() -> None:
    model, injection = adapted("llama", at="q,v", rank=4)
    with torch.autocast("cpu", torch.bfloat16):
        rows = samples(6, "all")
        loss, slopes = gradients(model, injection, HEAD, rows)
        found, others = gradients(model, injection, replace(HEAD, head_chunk=7), rows)
    assert found == pytest.approx(loss, rel=1e-3)
    assert torch.allclose(others, slopes, atol=1e-2)


def test_slices_keep_to_themselves() -> None:
    model, _ = adapted("llama", at="q,v", rank=4)
    rows = samples(4, "all")
    found = []
    for size in (0, 6):
        with Objective(model, FastPaths(True, True, head_chunk=size)).losses(model, rows, 2, 0.5) as losses:
            found.append(losses.detach())
    assert found[0].allclose(found[1], rtol=1e-6)


def config(words: int = WORDS) -> Gemma2Config:
    """Return the shape of a soft-capped model of 262,144 words, two layers of width 32."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 8}
    return Gemma2Config(vocab_size=words, **sizes, **heads, architectures=["Gemma2ForCausalLM"])


def long(count: int) -> list[Sample]:
    """Return rows of 49 tokens, 48 of which count."""
    draw = random.Random(0)
    rows = [tuple(draw.choices(range(4, WORDS), k=49)) for _ in range(count)]
    return [Sample(str(i), row, row) for i, row in enumerate(rows)]


@pytest.mark.parametrize("at", ["q,v", "embed,head"])
def test_the_peak_does_not_grow_with_rows_beyond_the_layers_own(at: str) -> None:
    def peaks(words: int, size: int) -> tuple[int, int]:
        """Return the bytes beside the weights at 2 and at 32 rows."""
        model = AutoModelForCausalLM.from_config(config(words)).train()
        injection = inject(model, LoRAConfig(rank=4, at=at))
        assert eligible(model, injection, long(32), TrainSpec(batch=32))[0].head_chunk == (64 if words == WORDS else 0)
        found = []
        for count in (2, 32):
            model.zero_grad()
            objective = Objective(model, FastPaths(label_head=True, head_chunk=size))
            with Peak([*model.parameters(), *model.buffers()]) as peak, objective.loss(model, long(count)) as loss:
                loss.backward()
            found.append(peak.most)
        return found[0], found[1]

    with FakeTensorMode(allow_non_fake_inputs=True):
        few, many = peaks(WORDS, 64)
        layers = peaks(8, 64)
        _, whole = peaks(WORDS, 0)
    assert many - few < layers[1] - layers[0] + 0.05 * few
    assert many < whole / 15


def test_the_estimate_follows(tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    spec = RunSpec.parse({"base": str(tmp_path), "adapter": "lora", "train": {"batch": 3, "max_steps": 1}})
    rows = long(3)
    found = estimate(spec, rows, Blueprint(str(tmp_path)))
    model = AutoModelForCausalLM.from_config(config()).train()
    paths, warned = choose_fast_paths(model, inject(model, spec.adapter), rows, spec.train)
    assert paths == FastPaths(label_head=True, head_chunk=64, label_layer=True, recompute=True)
    assert [event.setting for event in warned] == ["train.packing"]
    assert found is not None
    assert found.step == pytest.approx(allocated(model, paths, rows), rel=0.1)


def test_a_model_that_fails_with_chunks_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_paths, "HEAD_BYTES", {"cpu": 4 * 128 * 5})
    model, injection = adapted("llama")
    plain = type(model).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        out.logits = out.logits * (1 + 0.1 * kwargs["input_ids"].shape[1])
        return out

    assert choose_fast_paths(model, injection, samples(4, "all"), TrainSpec())[0].head_chunk == 5
    monkeypatch.setattr(type(model), "forward", forward)
    paths, warned = choose_fast_paths(model, injection, samples(4, "all"), TrainSpec(packing=False))
    assert paths == FastPaths(label_head=True, label_layer=True, recompute=True)
    assert [event.setting for event in warned] == ["train.head_chunk"]
    assert "nats off with its head in chunks" in warned[0].reason
