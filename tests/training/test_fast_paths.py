"""Shortcuts give the losses and gradients of the plain loop, or are given up with a word; memory is as estimated."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

import pytest
import torch
from fast_path_cases import Small, adapted, allocated, gradients, samples
from torch._subclasses.fake_tensor import FakeTensorMode

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.errors import BadSpec, TrainingFailed
from llm_adapters_lab.events import FellBack, Step
from llm_adapters_lab.models import loading
from llm_adapters_lab.runs.forecast.memory import Memory, Peak, estimate, largest
from llm_adapters_lab.runs.preflight import check_spec
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training import compilation
from llm_adapters_lab.training.compilation import Layers
from llm_adapters_lab.training.fast_paths import choose
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import Objective, Shortcuts, token_loss
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import Gradients, set_checkpointing

PLAIN = {"label_head": False, "packing": False, "share_prefix": False}
ALL = Shortcuts(True, True, True)
# Llama is grouped-query here, as are the other gated families; Phi is not, and has biases everywhere.
PACKS = {*("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3", "phi", "phi3", "olmo2", "stablelm", "granite")}
PACKS |= {"cohere", "starcoder2", "glm", "glm4", "gpt2", "gpt_neox", "opt"}


def trained(plan: dict[str, Any], family: str, adapter: str, **kwargs: Any) -> tuple[list[float], Any, list[str]]:
    """Return losses, final tensors and what fell back."""
    model, injection = adapted(family, adapter)
    spec = TrainSpec(learning_rate=1e-2, batch=6, max_steps=3, **plan)
    events = list(train(model, injection, samples(), spec, **kwargs))
    told = [f"{e.setting}: {e.reason}" for e in events if isinstance(e, FellBack)]
    return [e.loss for e in events if isinstance(e, Step)], injection.state_dict(), told


@pytest.mark.parametrize("loss_on", ["answer", "all"])
@pytest.mark.parametrize("family", sorted(PACKS))
def test_every_shortcut_is_exact_in_every_family_that_packs(family: str, loss_on: str) -> None:
    model, injection = adapted(family, at="attn+mlp", rank=4)
    rows = samples(6, loss_on)
    loss, slopes = gradients(model, injection, Shortcuts(), rows)
    cuts = [Shortcuts(label_head=True), Shortcuts(packing=True), Shortcuts(packing=True, share_prefix=True), ALL]
    for cut in cuts:
        found, others = gradients(model, injection, cut, rows)
        assert found == pytest.approx(loss, abs=1e-5), cut
        assert torch.allclose(others, slopes, atol=1e-5), cut
    assert choose(model, injection, rows, TrainSpec()) == (ALL, [])


@pytest.mark.parametrize("family", sorted(set(loading.TINY) - PACKS))
def test_other_families_run_the_head_only_and_say_so(family: str) -> None:
    model, injection = adapted(family, at="attn+mlp", rank=4)
    cuts, told = choose(model, injection, samples(), TrainSpec())
    assert cuts == Shortcuts(label_head=True)
    assert [e.setting for e in told] == ["train.packing"]
    assert type(model).__name__ in told[0].reason
    loss, slopes = gradients(model, injection, Shortcuts(), samples(6))
    found, others = gradients(model, injection, cuts, samples(6))
    assert found == pytest.approx(loss, abs=1e-5)
    assert torch.allclose(others, slopes, atol=1e-5)


@pytest.mark.parametrize("adapter", ["lora", "series", "parallel", "prefix"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gptj", "phi"])
def test_whole_trainings_agree(family: str, adapter: str) -> None:
    plain, start, none = trained(PLAIN, family, adapter)
    assert none == []
    for name in ("label_head", "packing", "share_prefix"):
        plan = {**PLAIN, name: True, **({"packing": True} if name == "share_prefix" else {})}
        assert trained(plan, family, adapter)[0] == pytest.approx(plain, abs=1e-5), name
    losses, end, told = trained({}, family, adapter)
    assert losses == pytest.approx(plain, abs=1e-5)
    assert all(torch.allclose(tensor, start[key], atol=1e-3) for key, tensor in end.items())
    packs = family in PACKS and adapter != "prefix"
    assert [line.partition(":")[0] for line in told] == ([] if packs else ["train.packing"])
    if adapter == "prefix":
        assert "prefix puts virtual tokens before every row" in told[0]
    for more in ({"micro_tokens": 24}, {"micro_batch": 2}, {"gradient_checkpointing": adapter != "prefix"}):
        assert trained(more, family, adapter)[0] == pytest.approx(plain, abs=1e-5), more


@pytest.mark.parametrize("cuts", [{}, {"share_prefix": False, "packing": False}, PLAIN], ids=["all", "head", "plain"])
def test_rows_laid_out_ahead_change_nothing(cuts: dict[str, Any]) -> None:
    def losses(ahead: bool) -> tuple[list[float], list[int]]:
        model, injection = adapted("llama")
        rows, plan = samples(), TrainSpec(learning_rate=1e-2, batch=6, micro_batch=3, max_steps=4, **cuts)
        made, coming = Gradients(model, injection, rows, plan, 0), []
        assert not made.ahead  # on a CPU
        made.ahead = ahead
        look = {"after_step": lambda state: coming.append(len(made.objective._coming))}
        events = list(train(model, injection, rows, plan, gradients=made, **look))
        return [e.loss for e in events if isinstance(e, Step)], coming

    assert losses(True) == (losses(False)[0], [2, 2, 2, 0])


@pytest.mark.parametrize("adapter", ["dora", "ia3", "krona", "bitfit", "norm-tuning", "full-fine-tuning"])
def test_the_other_token_wise_adapters(adapter: str) -> None:
    model, injection = adapted("llama", adapter)
    loss, slopes = gradients(model, injection, Shortcuts(), samples(6))
    found, others = gradients(model, injection, ALL, samples(6))
    assert found == pytest.approx(loss, abs=1e-5)
    assert torch.allclose(others, slopes, atol=1e-5)
    before = injection.state_dict()
    assert choose(model, injection, samples(), TrainSpec()) == (ALL, [])
    assert all(torch.equal(tensor, before[key]) for key, tensor in injection.state_dict().items())


def test_dropout_is_drawn_for_every_row() -> None:
    model, injection = adapted("llama", dropout=0.1)
    cuts, told = choose(model, injection, samples(), TrainSpec())
    assert cuts == Shortcuts(label_head=True, packing=True)
    assert told[0].setting == "train.share_prefix" and "q_proj" in told[0].reason
    model = loading.tiny("tiny:gpt2")  # drops out by itself
    assert choose(model, inject(model, LoRAConfig()), samples(), TrainSpec())[0] == cuts


def test_rows_longer_than_a_window_and_eager_attention_are_not_packed() -> None:
    model, injection = adapted("mistral")
    model.config.sliding_window = 9
    told = choose(model, injection, samples(), TrainSpec())[1]
    assert "a row of 14 tokens is longer than the window of 9" in told[0].reason
    model, injection = adapted("llama")
    model.set_attn_implementation("eager")
    assert "is eager, not sdpa" in choose(model, injection, samples(), TrainSpec())[1][0].reason


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


class Mixer(torch.nn.Module):
    """Adds to every token what the one before it in memory was, as a state-space layer would."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.5 * torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]


@DTYPES
def test_what_mixes_tokens_outside_attention_is_found_by_trying(dtype: torch.dtype) -> None:
    model = loading.tiny("tiny:llama").to(dtype)
    model.model.layers[0].input_layernorm = torch.nn.Sequential(model.model.layers[0].input_layernorm, Mixer())
    injection = inject(model, LoRAConfig())
    cuts, told = choose(model, injection, samples(), TrainSpec())
    assert cuts == Shortcuts(label_head=True)
    assert "nats off" in told[0].reason


class Rough(torch.nn.Module):
    """Rounds by the number of tokens, as the kernels of a GPU do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(x.shape[:-1].numel()), dtype=x.dtype)
        return x * (1 + 2**-6 * noise)


def test_rounding_in_half_precision_is_no_reason_to_compute_the_plain_way() -> None:
    model = loading.tiny("tiny:llama").to(torch.bfloat16)
    layer = model.model.layers[0]
    layer.input_layernorm = torch.nn.Sequential(layer.input_layernorm, Rough())
    injection = inject(model, LoRAConfig())
    assert choose(model, injection, samples(), TrainSpec()) == (ALL, [])
    model.float()
    assert choose(model, injection, samples(), TrainSpec())[0] != ALL


class OwnHead(torch.nn.Module):
    """Looks at the whole row, as a head that is more than a projection may."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x - x.mean(1, keepdim=True))


@DTYPES
def test_a_head_that_looks_at_the_row_gets_all_of_it(dtype: torch.dtype) -> None:
    model = loading.tiny("tiny:llama").to(dtype)
    model.lm_head = OwnHead(model.lm_head)
    cuts, told = choose(model, inject(model, LoRAConfig()), samples(), TrainSpec())
    assert cuts == Shortcuts()
    assert {e.setting for e in told} == {"train.label_head", "train.packing", "train.share_prefix"}


@pytest.mark.parametrize("backward", [False, True])
def test_out_of_memory_halves_the_micro_batch_and_changes_no_loss(backward: bool) -> None:
    def losses(tokens: int) -> tuple[list[float], list[FellBack]]:
        model, injection = adapted("llama")
        layer = model.model.layers[0]
        layer.post_attention_layernorm = Small(layer.post_attention_layernorm, tokens, backward)
        spec = TrainSpec(learning_rate=1e-2, batch=8, max_steps=3)
        events = list(train(model, injection, samples(), spec))
        return [e.loss for e in events if isinstance(e, Step)], [e for e in events if isinstance(e, FellBack)]

    whole, none = losses(10**6)
    parts, told = losses(30)
    assert none == []
    assert parts == pytest.approx(whole, abs=1e-5)
    assert told[0] == FellBack("train.micro_batch", "out of memory with 8 rows at a time; now 4.")
    assert len(told) <= 3
    with pytest.raises(TrainingFailed, match=r"One row of \d+ tokens needs more memory"):
        losses(2)


def saved(model: Any, cuts: Shortcuts, rows: list[Sample]) -> dict[int, int]:
    """Return the storages that a forward pass keeps for backward, beside those of parameters, with their bytes."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), Objective(model, cuts).loss(model, rows):
        pass
    return kept


def test_nothing_below_the_lowest_site_is_kept() -> None:
    rows = samples(6)
    low, high, none = (
        sum(saved(adapted("llama", at=at, rank=4)[0], ALL, rows).values()) for at in ("q@0", "q@1", "down@1")
    )
    assert none < high < 0.7 * low
    model, injection = adapted("llama", at="q@1", rank=4)
    set_checkpointing(model, True)
    model.train()
    with Objective(model, ALL).loss(model, rows) as loss:
        loss.backward()
    assert not model.get_input_embeddings().weight.requires_grad
    assert all(p.grad is not None for p in injection.parameters())


def test_sites_that_read_the_same_input_keep_it_once() -> None:
    rows = samples(6)
    per_token = 32 * 4  # hidden size in fp32
    tokens = sum(len(row.ids) for row in rows)
    one, three = (saved(adapted("llama", at=at, rank=4)[0], Shortcuts(True, True), rows) for at in ("q", "q,k,v"))
    # k and v of two layers keep A x, four numbers a token, and nothing of the width of x.
    assert sum(three.values()) - sum(one.values()) < 2 * 2 * tokens * per_token / 2


def test_adapters_keep_no_cast_copy_where_the_step_runs_in_half_precision() -> None:
    rows = samples(6)

    def kept(at: str) -> int:
        model = loading.tiny("tiny:llama").to(torch.bfloat16)
        inject(model, LoRAConfig(at=at, rank=4))
        with torch.autocast("cpu", torch.bfloat16):
            return sum(saved(model, Shortcuts(True, True), rows).values())

    tokens = sum(len(row.ids) for row in rows)
    assert kept("q,k,v") - kept("q") < 2 * 2 * tokens * 32 * 2


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_layers_compute_the_same_and_leave_nothing() -> None:
    model, injection = adapted("llama")
    loss, slopes = gradients(model, injection, ALL, samples(6))
    layers = Layers(model, Anatomy.of(model), backend="eager")
    with layers:
        found, others = gradients(model, injection, ALL, samples(6))
        assert all(layer._compiled_call_impl is not None for layer in model.model.layers)
    assert found == pytest.approx(loss, abs=1e-5)
    assert torch.allclose(others, slopes, atol=1e-5)
    assert all(layer._compiled_call_impl is None for layer in model.model.layers)


@pytest.mark.skipif(not (os.environ.get("LAB_SLOW") and compilation.compiler()), reason="needs minutes and a compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")
def test_compiled_trainings_agree() -> None:
    plain, _, _ = trained({}, "llama", "lora")
    assert trained({"compile": True}, "llama", "lora")[0] == pytest.approx(plain, abs=1e-5)


def test_without_a_compiler_compiling_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    model, injection = adapted("llama")
    with pytest.raises(BadSpec, match=r"train\.compile needs a C\+\+ compiler"):
        list(train(model, injection, samples(), TrainSpec(compile=True)))
    with pytest.raises(BadSpec, match=r"train\.compile needs a C\+\+ compiler"):
        check_spec(RunSpec.parse({"adapter": "lora", "train": {"compile": True}}))


@pytest.mark.parametrize("adapter", ["lora", "series", "prefix", "full-fine-tuning"])
@pytest.mark.parametrize("plan", [{}, PLAIN, {"gradient_checkpointing": True}], ids=["all", "plain", "checkpointed"])
@pytest.mark.parametrize("base", ["nano", "tiny:gpt2", "tiny:bloom"])
def test_the_estimate_is_what_the_allocator_gives(base: str, plan: dict[str, Any], adapter: str) -> None:
    checkpointed = "gradient_checkpointing" in plan
    if checkpointed and adapter == "prefix":
        pytest.skip("refused")
    rows = samples(8, least=40)
    spec = RunSpec.parse({"base": base, "adapter": adapter, "train": {"batch": 8, "max_steps": 1, **plan}})
    found = estimate(spec, rows)
    assert isinstance(found, Memory)
    model = loading.load_base(base).model
    weights = {p.untyped_storage().data_ptr(): p.nbytes for p in model.parameters()}
    assert found.weights == pytest.approx(sum(weights.values()), rel=0.15)
    injection = inject(model, spec.adapter)
    cuts, _ = choose(model, injection, rows, spec.train)
    model.train()
    if checkpointed:
        set_checkpointing(model, True)
    allocated(model, cuts, rows[:2])  # what is made once
    model.zero_grad()
    assert found.step == pytest.approx(allocated(model, cuts, rows), rel=0.15)
    own = sum(p.nbytes for p in injection.parameters())
    assert (found.adapter, found.optimizer) == (2 * own, 2 * own)
    assert found.total == sum(getattr(found, field.name) for field in fields(found))


def test_the_largest_micro_batch_is_found() -> None:
    rows = samples()
    longest = sorted(rows, key=lambda row: len(row.ids))[-2:]
    chunk = largest(rows, TrainSpec(batch=12, micro_batch=2), 0, padded=True)
    assert [len(row.ids) for row in chunk] == [len(row.ids) for row in longest]


def test_rows_on_their_way_to_a_gpu_can_be_estimated() -> None:
    with FakeTensorMode(), Peak():
        rows = torch.zeros(4, dtype=torch.long)
        assert torch.ops.aten._pin_memory.default(rows) is rows


def test_peak_counts_what_is_held_at_a_time() -> None:
    with Peak() as peak:
        one = torch.ones(100)
        two = one + one
        del one
        three = two * 2
    assert (peak.now, peak.most) == (800, 800)
    del two, three


@pytest.mark.parametrize("plan", [{}, PLAIN], ids=["all", "plain"])
def test_memory_does_not_grow_with_the_steps(plan: dict[str, Any]) -> None:
    model, injection = adapted("llama")
    held, rows = [], [samples(1, least=12)[0]] * 4
    with Peak() as peak:
        for event in train(model, injection, rows, TrainSpec(batch=4, epochs=8, **plan)):
            held += [peak.now] if isinstance(event, Step) else []
    assert len(held) == 8
    assert len(set(held[1:])) == 1


def test_the_plain_loop_is_left_as_it_was() -> None:
    from llm_adapters_lab.training.batches import collate

    model, _ = adapted("llama")
    rows = samples(5)
    with Objective(model, Shortcuts()).loss(model, rows) as loss:
        assert torch.equal(loss, token_loss(model, collate(rows, 0)))
