"""What adapters add to a loss and read from a call in training: penalties, the row of a token, inputs of the rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from fast_path_cases import gradients, samples
from teams import free_port

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.adapter import Adapter
from llm_adapters_lab.core.adapter_config import AdapterConfig
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import REGISTRY, register_adapter
from llm_adapters_lab.errors import BadSpec, CannotInject
from llm_adapters_lab.events import FellBack, Step, Validated
from llm_adapters_lab.models.random_models import tiny
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.batches import collate
from llm_adapters_lab.training.device import make_accelerator
from llm_adapters_lab.training.distributed import ProcessGroup
from llm_adapters_lab.training.fast_paths import choose_fast_paths
from llm_adapters_lab.training.joint import JointTrainer, Member
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import FastPaths, token_loss
from llm_adapters_lab.training.packing import pack
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import GradientComputer

WIDTH = 3
PADDED, PACKED = {"packing": False}, {"packing": True}
PLAIN = {"packing": False, "label_head": False}
PLANS: list[dict[str, Any]] = [
    PLAIN,
    PADDED,
    PACKED,
    {**PACKED, "micro_batch": 2},
    {**PADDED, "micro_tokens": 20},
    {**PACKED, "micro_batch": 3, "gradient_checkpointing": True},
]


class ShrunkConfig(AdapterConfig):
    type: Literal["shrunk"] = "shrunk"


class GatedConfig(AdapterConfig):
    type: Literal["gated"] = "gated"


class Shrunk(Adapter):
    """A factor for every output, which a loss of its own pulls towards zero."""

    def __init__(self, config: Any, site: Any, base: Any) -> None:
        super().__init__(config, site, base)
        self.w = torch.nn.Parameter(torch.zeros(site.d_out))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.w * y

    def penalty(self) -> torch.Tensor:
        return 0.5 * self.w.square().sum()


class Gated(Adapter):
    """Adds to every token a projection of the memory of its row."""

    needs_context = True

    def __init__(self, config: Any, site: Any, base: Any) -> None:
        super().__init__(config, site, base)
        self.w = torch.nn.Parameter(torch.zeros(WIDTH, site.d_out))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.context.spread("memory") @ self.w


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    register()
    yield
    for name in ("shrunk", "gated"):
        REGISTRY.pop(name)


def register() -> None:
    register_adapter("shrunk", config=ShrunkConfig, at="v,down", source="")(Shrunk)
    register_adapter("gated", config=GatedConfig, at="attn", source="")(Gated)


def adapted(config: AdapterConfig, name: str = "default", model: Any = None) -> tuple[Any, Injection]:
    model = model or tiny("tiny:llama")
    injection = inject(model, config, name=name)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in injection.parameters():
            p.copy_(0.1 * torch.randn_like(p))
    return model, injection


def with_memory(rows: list[Sample]) -> list[Sample]:
    generator = torch.Generator().manual_seed(1)
    return [replace(row, extras={"memory": torch.randn(WIDTH, generator=generator)}) for row in rows]


def one_step(model: Any, injection: Injection, rows: list[Sample], plan: TrainSpec) -> tuple[float, torch.Tensor]:
    """Return the loss of a step on all rows, and its gradients."""
    accelerator = make_accelerator("fp32")
    computer = GradientComputer(model, injection, rows, plan, 0)
    with computer.ready(accelerator) as prepared:
        loss = computer.step(accelerator, prepared, rows)
    return loss, torch.cat([p.grad.flatten() for p in injection.parameters()])


# Penalties


def penalised_by_hand(rows: list[Sample]) -> tuple[float, torch.Tensor]:
    """Return mean loss + penalty and its gradients, with neither the adapter's `penalty` nor the training code."""
    model, injection = adapted(ShrunkConfig())
    mean = token_loss(model, collate(rows, 0)) / sum(row.counted for row in rows)
    own = injection.parameters()
    slopes = torch.autograd.grad(mean, own)
    loss = mean.item() + sum(0.5 * p.square().sum().item() for p in own)
    return loss, torch.cat([(slope + p).flatten() for slope, p in zip(slopes, own, strict=True)]).detach()


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_the_mean_loss_has_a_penalty_once_however_rows_are_split(plan: dict[str, Any]) -> None:
    rows = samples(6)
    loss, slopes = one_step(*adapted(ShrunkConfig()), rows, TrainSpec(batch=6, **plan))
    expected, theirs = penalised_by_hand(rows)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(slopes, theirs, atol=1e-5)


def test_a_validation_has_no_penalty() -> None:
    rows, (model, injection) = samples(6), adapted(ShrunkConfig())
    events = train(model, injection, rows, TrainSpec(batch=6, max_steps=1, learning_rate=1e-9), validation=rows)
    found = [event for event in events if isinstance(event, Step | Validated)]
    penalty = sum(0.5 * p.square().sum().item() for p in injection.parameters())
    assert found[0].loss - found[1].loss == pytest.approx(penalty, abs=1e-5)


def one_of_two(file: str) -> None:
    """What each of two processes does: a step on its share of the rows."""
    register()
    with ProcessGroup() as group:
        loss, slopes = one_step(*adapted(ShrunkConfig()), samples(6), TrainSpec(batch=6, micro_batch=2))
        if group.is_main:
            Path(file).write_text(json.dumps([loss, slopes.tolist()]), encoding="utf-8")


def test_two_processes_have_the_penalty_once(tmp_path: Path) -> None:
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here, here.parent / "helpers", here.parents[1])))
    code = f"import {Path(__file__).stem} as test; test.one_of_two({str(tmp_path / 'found.json')!r})"
    common = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    children = [
        subprocess.Popen([sys.executable, "-c", code], env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    assert [child.wait(120) for child in children] == [0, 0]
    loss, slopes = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    expected, theirs = penalised_by_hand(samples(6))
    assert loss == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(torch.tensor(slopes), theirs, atol=1e-5)


# Inputs of the rows


@pytest.mark.parametrize("share", [False, True])
def test_packed_tokens_know_their_row(share: bool) -> None:
    rows = samples(5)
    packed = pack(rows, share=share)
    for number, row in enumerate(rows):
        own = packed.token_rows[packed.rows[number, : len(row.ids)]].tolist()
        assert own == [number] * len(own) if not share else all(first <= number for first in own)
    twice = packed.repeat(2)
    assert twice.token_rows.tolist() == [row + i * 5 for i in range(2) for row in packed.token_rows.tolist()]


@pytest.mark.parametrize("paths", [FastPaths(), FastPaths(True), FastPaths(packing=True), FastPaths(True, True)])
def test_packed_padded_and_single_rows_read_the_same_inputs(paths: FastPaths) -> None:
    model, injection = adapted(GatedConfig())
    rows = with_memory(samples(6))
    counted = sum(row.counted for row in rows)
    alone = [gradients(model, injection, FastPaths(), [row]) for row in rows]
    loss, slopes = gradients(model, injection, paths, rows)
    assert loss == pytest.approx(
        sum(one * row.counted for (one, _), row in zip(alone, rows, strict=True)) / counted, abs=1e-6
    )
    own = sum(slope * row.counted for (_, slope), row in zip(alone, rows, strict=True)) / counted
    assert torch.allclose(slopes, own, atol=1e-5)
    other, _ = gradients(model, injection, paths, with_memory(rows[::-1])[::-1])
    assert other != pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_trainings_on_rows_with_inputs_agree(plan: dict[str, Any]) -> None:
    def trained(chosen: dict[str, Any]) -> tuple[list[float], dict[str, torch.Tensor], list[FellBack]]:
        model, injection = adapted(GatedConfig())
        rows, spec = with_memory(samples(12)), TrainSpec(learning_rate=1e-2, batch=6, max_steps=3, **chosen)
        events = list(train(model, injection, rows, spec, validation=rows[:4]))
        losses = [event.loss for event in events if isinstance(event, Step | Validated)]
        return losses, injection.state_dict(), [event for event in events if isinstance(event, FellBack)]

    losses, end, warned = trained(plan)
    expected, theirs, _ = trained(PLAIN)
    assert losses == pytest.approx(expected, abs=1e-6)
    assert all(torch.allclose(tensor, theirs[name], atol=1e-3) for name, tensor in end.items())
    assert [event.setting for event in warned] == (["train.share_prefix"] if plan.get("packing") else [])
    assert all("inputs of their own (memory)" in event.reason for event in warned)


def test_rows_laid_out_ahead_bring_their_inputs() -> None:
    rows, plan = with_memory(samples(12)), TrainSpec(learning_rate=1e-2, batch=4, micro_batch=2, max_steps=3)

    def losses(ahead: bool) -> list[float]:
        model, injection = adapted(GatedConfig())
        computer = GradientComputer(model, injection, rows, plan, 0)
        computer.prefetches = ahead
        events = train(model, injection, rows, plan, gradients=computer)
        return [event.loss for event in events if isinstance(event, Step)]

    assert losses(True) == losses(False)


def test_half_precision_is_compared_with_its_own_rounding() -> None:
    model, injection = adapted(GatedConfig(), model=tiny("tiny:llama").to(torch.bfloat16))
    paths, _ = choose_fast_paths(model, injection, with_memory(samples()), TrainSpec())
    assert paths == FastPaths(True, True, recompute=True)


def test_adapters_that_do_not_read_the_call_ignore_inputs_and_share_beginnings() -> None:
    rows, plan = samples(), TrainSpec(batch=6, max_steps=2)
    model, injection = adapted(LoRAConfig())
    every = FastPaths(True, True, True, label_layer=True, recompute=True)
    assert choose_fast_paths(model, injection, with_memory(rows), plan) == (every, [])
    with_inputs = [e.loss for e in train(model, injection, with_memory(rows), plan) if isinstance(e, Step)]
    assert with_inputs == [e.loss for e in train(*adapted(LoRAConfig()), rows, plan) if isinstance(e, Step)]


def test_missing_inputs_are_named() -> None:
    model, injection = adapted(GatedConfig())
    with pytest.raises(CannotInject, match="reads the input 'memory'"):
        list(train(model, injection, samples(), TrainSpec(batch=6, max_steps=1)))
    rows = [*with_memory(samples(5)), *samples(12)[5:]]
    with pytest.raises(BadSpec, match="must have the same extra inputs, but .*row/5 lacks memory"):
        list(train(model, injection, rows, TrainSpec(batch=12, max_steps=1, packing=False, label_head=False)))


def test_adapters_that_read_the_call_or_have_a_penalty_are_trained_separately_in_a_study() -> None:
    rows, plan = with_memory(samples()), TrainSpec(learning_rate=1e-2, batch=6, max_steps=3)
    configs = [GatedConfig(), LoRAConfig(rank=2), ShrunkConfig(), LoRAConfig(rank=4)]
    model = tiny("tiny:llama")
    trainer, running = JointTrainer(model), []
    for number, config in enumerate(configs):
        trainer.activate()
        _, injection = adapted(config, f"study{number}", model)
        member = Member(trainer, model, injection, rows, plan, 0)
        running.append(train(model, injection, rows, plan, gradients=member))
    trainer.start()
    assert [bool(member.obstacle) for member in trainer.members] == [True, False, True, False]
    losses: list[list[float]] = [[] for _ in configs]
    for step in range(3):
        trainer.begin_step([member.injection.name for member in trainer.members], step)
        for number, events in enumerate(running):
            losses[number].append(next(event.loss for event in events if isinstance(event, Step)))
    for number, config in enumerate(configs):
        alone = [event.loss for event in train(*adapted(config), rows, plan) if isinstance(event, Step)]
        assert losses[number] == pytest.approx(alone, abs=1e-5)
