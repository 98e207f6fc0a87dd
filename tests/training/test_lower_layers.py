"""What the layers below an adapter make of the rows is computed once, kept on disk, and changes nothing."""

from __future__ import annotations

import errno
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_path_cases import adapted, samples
from transformers import AutoModelForCausalLM

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.events import FellBack, Step
from llm_adapters_lab.models import random_models
from llm_adapters_lab.training import lower_layers
from llm_adapters_lab.training.checkpoints import Checkpoint, TrainingState
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.spec import TrainSpec

PLANS: list[dict[str, Any]] = [{}, {"packing": False}, {"gradient_checkpointing": True}]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "llm_adapters_lab" / "lower_layers"


def trained(
    family: str = "llama", gib: float = 1, at: str = "attn@1", rows: Any = None, **plan: Any
) -> tuple[list[float], torch.Tensor, list[str], int]:
    """Return losses, the adapter at the end, what fell back, and how often the first layer ran."""
    model, injection = adapted(family, at=at, rank=4)
    calls: list[int] = []
    model.get_submodule(injection.anatomy.layers[0]).register_forward_hook(lambda *call: calls.append(1))
    spec = TrainSpec(learning_rate=1e-2, batch=6, max_steps=6, epochs=99, cache_below=gib, **plan)
    events = list(train(model, injection, rows or samples(), spec))
    losses = [event.loss for event in events if isinstance(event, Step)]
    ends = torch.cat([tensor.flatten() for tensor in injection.state_dict().values()])
    warned = [f"{event.setting}: {event.reason}" for event in events if isinstance(event, FellBack)]
    return losses, ends, [line for line in warned if "cache_below" in line], len(calls)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("family", [*random_models.TINY, "mixtral", "qwen3_moe"])
def test_losses_and_adapter_are_those_without_the_cache(family: str, plan: dict[str, Any], home: Path) -> None:
    plain, ends, none, often = trained(family, 0, **plan)
    assert none == [] and not home.exists()
    losses, others, warned, seldom = trained(family, **plan)
    assert losses == pytest.approx(plain, rel=1e-6)
    assert torch.allclose(others, ends, atol=1e-5)
    assert warned == []
    assert seldom < often
    assert len(list(home.iterdir())) == 1  # twelve rows, one block
    again = trained(family, **plan)
    assert again[0] == losses and torch.equal(again[1], others)  # read from disk: the same bits
    assert again[3] == seldom - 1


@pytest.mark.parametrize("base", ["jamba", "falcon_h1"])
def test_hybrids_keep_their_states(base: str) -> None:
    plain, _, _, _ = trained(base, 0)
    losses, _, warned, _ = trained(base)
    assert losses == pytest.approx(plain, rel=1e-6)
    assert warned == []


def test_changed_rows_and_a_changed_base_are_computed_anew(home: Path) -> None:
    trained()
    trained(rows=samples(seed=4))
    assert len(list(home.iterdir())) == 2
    model, injection = adapted("llama", at="attn@1", rank=4)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[3, 5] += 1e-3  # a single number
    spec = TrainSpec(batch=6, max_steps=2, cache_below=1)
    list(train(model, injection, samples(), spec))
    assert len(list(home.iterdir())) == 3


def test_a_damaged_file_is_written_again(home: Path) -> None:
    losses = trained()[0]
    (path,) = home.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:50])
    again, _, warned, _ = trained()
    assert (again, warned) == (losses, [])
    assert path.read_bytes() == content


@pytest.mark.parametrize("family", ["bloom", "codegen", "falcon", "gpt2", "gptj", "mpt", "opt", "llama"])
def test_several_layers_are_skipped_with_states_from_disk(family: str) -> None:
    config = random_models.tiny_config(f"tiny:{family}")
    config.num_hidden_layers = 4

    def losses(gib: float) -> list[float]:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        injection = inject(model, LoRAConfig(at="attn@3", rank=4))
        find = dict.fromkeys(("p", "dropout", "hidden_dropout", "attention_dropout"), 0.0)
        for module in model.modules():
            vars(module).update({name: off for name, off in find.items() if isinstance(vars(module).get(name), float)})
        events = list(train(model, injection, samples(4), TrainSpec(batch=1, max_steps=4, epochs=9, cache_below=gib)))
        assert not [event for event in events if isinstance(event, FellBack) and "cache_below" in event.setting]
        return [event.loss for event in events if isinstance(event, Step)]

    plain, computed, read = losses(0), losses(1), losses(1)
    assert computed == pytest.approx(plain, rel=1e-6)
    assert read == computed


def test_a_full_disk_ends_the_cache_and_not_the_training(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    plain = trained(gib=0)[0]
    left, write = 2, lower_layers.save_file  # the first write belongs to the trial

    def full(*given: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*given)

    monkeypatch.setattr(lower_layers, "BLOCK", 5)
    monkeypatch.setattr(lower_layers, "save_file", full)
    losses, _, warned, _ = trained()
    assert losses == pytest.approx(plain, rel=1e-6)
    assert len(warned) == 1 and "cannot be written (No space left on device); the other rows" in warned[0]
    assert len(list(home.iterdir())) == 1


def test_the_oldest_files_go_first_and_never_its_own(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(lower_layers, "BLOCK", 3)
    trained(rows=samples(seed=4))
    size = max(path.stat().st_size for path in home.iterdir())
    old = {path.name for path in home.iterdir()}
    losses, _, warned, _ = trained(gib=5.5 * size / 2**30)
    assert warned == [] and losses
    names = {path.name for path in home.iterdir()}
    assert len(names) <= 5 and len(names - old) == 4
    _, _, warned, _ = trained(rows=samples(seed=5), gib=2.5 * size / 2**30)
    assert "the rows need more than" in warned[0]


def test_a_resumed_training_has_the_same_bits_with_and_without_the_files(home: Path) -> None:
    def run(saved: Checkpoint | None = None, stop: int = 0) -> tuple[Any, dict[str, torch.Tensor]]:
        model, injection = adapted("llama", at="attn@1", rank=4)
        spec = TrainSpec(learning_rate=1e-2, batch=5, max_steps=6, epochs=99, cache_below=1)
        kept: list[Checkpoint] = []

        def keep(state: TrainingState) -> None:
            if state.step == stop:
                kept.append(deepcopy(state.checkpoint()))

        list(train(model, injection, samples(), spec, saved=saved, after_step=keep))
        return kept, injection.state_dict()

    (saved,), whole = run(stop=3)
    for _ in range(2):
        _, resumed = run(saved)
        assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
        for path in home.iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("at", "plan", "reason"),
    [("q@0", {}, "the first layer has an adapter"), ("q@1", {"drop": 0.1}, "draws its dropout in every step")],
)
def test_where_nothing_can_be_kept_the_reason_is_told(at: str, plan: dict[str, Any], reason: str, home: Path) -> None:
    model, injection = adapted("gpt2", at="attn@0" if at == "q@0" else "attn@1", rank=4)
    model.transformer.h[0].mlp.dropout.p = plan.get("drop", 0.0)
    events = list(train(model, injection, samples(), TrainSpec(batch=6, max_steps=2, cache_below=1)))
    assert any(isinstance(event, FellBack) and reason in event.reason for event in events)
    assert not home.exists()
