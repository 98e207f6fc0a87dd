"""Fast paths have the losses and gradients of the plain computation, or are disabled with a reason; memory."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from fast_path_cases import Small, adapted, allocated, gradients, samples
from torch._subclasses.fake_tensor import FakeTensorMode

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.merging import temporarily_merged
from llm_adapters_lab.errors import BadSpec, TrainingFailed
from llm_adapters_lab.events import FellBack, Step
from llm_adapters_lab.models import loading, random_models
from llm_adapters_lab.runs.forecast.memory import Memory, Peak, estimate, largest
from llm_adapters_lab.runs.preflight import check_spec
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training import compilation
from llm_adapters_lab.training.compilation import CompiledLayers
from llm_adapters_lab.training.fast_paths import choose_fast_paths
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import FastPaths, Objective, token_loss
from llm_adapters_lab.training.packing import pack
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import GradientComputer, set_gradient_checkpointing

PLAIN = {"label_head": False, "packing": False, "share_prefix": False, "recompute": False}
ALL = FastPaths(True, True, True, label_layer=True, recompute=True)
HEAD = replace(ALL, packing=False, share_prefix=False)
# Llama is grouped-query here, as are the other gated families; Phi is not, and has biases everywhere.
PACKS = {*("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3", "phi", "phi3", "olmo2", "stablelm", "granite")}
PACKS |= {"cohere", "starcoder2", "glm", "glm4", "gpt2", "gpt_neox", "opt"}


def trained(plan: dict[str, Any], family: str, adapter: str, **kwargs: Any) -> tuple[list[float], Any, list[str]]:
    """Return losses, final tensors and fallbacks."""
    model, injection = adapted(family, adapter)
    spec = TrainSpec(learning_rate=1e-2, batch=6, max_steps=3, **plan)
    events = list(train(model, injection, samples(), spec, **kwargs))
    warned = [f"{e.setting}: {e.reason}" for e in events if isinstance(e, FellBack)]
    return [e.loss for e in events if isinstance(e, Step)], injection.state_dict(), warned


@pytest.mark.parametrize("loss_on", ["answer", "all"])
@pytest.mark.parametrize("family", sorted(PACKS))
def test_every_fast_path_is_exact_in_every_family_that_packs(family: str, loss_on: str) -> None:
    model, injection = adapted(family, at="attn+mlp", rank=4)
    rows = samples(6, loss_on)
    loss, slopes = gradients(model, injection, FastPaths(), rows)
    paths = [FastPaths(label_head=True), FastPaths(packing=True), FastPaths(packing=True, share_prefix=True), ALL]
    paths += [FastPaths(recompute=True)]
    chosen, warned = choose_fast_paths(model, injection, rows, TrainSpec())
    if family == "opt":  # has its MLP in the layer itself
        assert (chosen, [e.setting for e in warned]) == (replace(ALL, label_layer=False), ["train.label_layer"])
        paths.remove(ALL)
    else:
        assert (chosen, warned) == (ALL, [])
    for path in paths:
        found, others = gradients(model, injection, path, rows)
        assert found == pytest.approx(loss, rel=1e-6), path
        assert torch.allclose(others, slopes, atol=1e-5), path


@pytest.mark.parametrize("family", sorted(set(random_models.TINY) - PACKS))
def test_other_families_use_the_label_head_only_and_say_so(family: str) -> None:
    model, injection = adapted(family, at="attn+mlp", rank=4)
    paths, warned = choose_fast_paths(model, injection, samples(), TrainSpec())
    assert paths == HEAD
    assert [e.setting for e in warned] == ["train.packing"]
    assert type(model).__name__ in warned[0].reason
    loss, slopes = gradients(model, injection, FastPaths(), samples(6))
    found, others = gradients(model, injection, paths, samples(6))
    assert found == pytest.approx(loss, abs=1e-5)
    assert torch.allclose(others, slopes, atol=1e-5)


@pytest.mark.parametrize("adapter", ["lora", "series", "parallel", "prefix"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gptj", "phi"])
def test_whole_trainings_agree(family: str, adapter: str) -> None:
    plain, start, none = trained(PLAIN, family, adapter)
    assert none == []
    for name in ("label_head", "packing", "share_prefix", "recompute"):
        plan = {**PLAIN, name: True, **({"packing": True} if name == "share_prefix" else {})}
        assert trained(plan, family, adapter)[0] == pytest.approx(plain, abs=1e-5), name
    losses, end, warned = trained({}, family, adapter)
    assert losses == pytest.approx(plain, abs=1e-5)
    assert all(torch.allclose(tensor, start[key], atol=1e-3) for key, tensor in end.items())
    packs = family in PACKS and adapter != "prefix"
    assert [line.partition(":")[0] for line in warned] == ([] if packs else ["train.packing"])
    if adapter == "prefix":
        assert "prefix puts virtual tokens before every row" in warned[0]
    for more in ({"micro_tokens": 24}, {"micro_batch": 2}, {"gradient_checkpointing": adapter != "prefix"}):
        assert trained(more, family, adapter)[0] == pytest.approx(plain, abs=1e-5), more


@pytest.mark.parametrize("paths", [{}, {"share_prefix": False, "packing": False}, PLAIN], ids=["all", "head", "plain"])
def test_prefetching_rows_changes_nothing(paths: dict[str, Any]) -> None:
    def losses(ahead: bool) -> tuple[list[float], list[int]]:
        model, injection = adapted("llama")
        rows, plan = samples(), TrainSpec(learning_rate=1e-2, batch=6, micro_batch=3, max_steps=4, **paths)
        made, coming = GradientComputer(model, injection, rows, plan, 0), []
        assert not made.prefetches  # on a CPU
        made.prefetches = ahead
        look = {"after_step": lambda state: coming.append(len(made.objective._prefetched))}
        events = list(train(model, injection, rows, plan, gradients=made, **look))
        return [e.loss for e in events if isinstance(e, Step)], coming

    assert losses(True) == (losses(False)[0], [2, 2, 2, 0])


@pytest.mark.parametrize("adapter", ["dora", "ia3", "krona", "bitfit", "norm-tuning", "full-fine-tuning"])
def test_the_other_token_wise_adapters(adapter: str) -> None:
    model, injection = adapted("llama", adapter)
    loss, slopes = gradients(model, injection, FastPaths(), samples(6))
    found, others = gradients(model, injection, ALL, samples(6))
    assert found == pytest.approx(loss, abs=1e-5)
    assert torch.allclose(others, slopes, atol=1e-5)
    before = injection.state_dict()
    assert choose_fast_paths(model, injection, samples(), TrainSpec()) == (ALL, [])
    assert all(torch.equal(tensor, before[key]) for key, tensor in injection.state_dict().items())


def test_dropout_is_drawn_for_every_row() -> None:
    model, injection = adapted("llama", dropout=0.1)
    paths, warned = choose_fast_paths(model, injection, samples(), TrainSpec())
    assert paths == replace(ALL, share_prefix=False)
    assert warned[0].setting == "train.share_prefix" and "q_proj" in warned[0].reason
    model = random_models.tiny("tiny:gpt2")  # has dropout of its own
    assert choose_fast_paths(model, inject(model, LoRAConfig()), samples(), TrainSpec())[0] == paths


def test_rows_longer_than_a_window_and_eager_attention_are_not_packed() -> None:
    model, injection = adapted("mistral")
    model.config.sliding_window = 9
    warned = choose_fast_paths(model, injection, samples(), TrainSpec())[1]
    assert "a row of 14 tokens is longer than the attention window of MistralForCausalLM (9)" in warned[0].reason
    model, injection = adapted("llama")
    model.set_attn_implementation("eager")
    assert "is eager, not sdpa" in choose_fast_paths(model, injection, samples(), TrainSpec())[1][0].reason


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


class Mixer(torch.nn.Module):
    """Adds half of the previous token in memory, as a state-space layer would."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.5 * torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]


@DTYPES
def test_token_mixing_outside_attention_is_detected_by_a_trial(dtype: torch.dtype) -> None:
    model = random_models.tiny("tiny:llama").to(dtype)
    model.model.layers[0].input_layernorm = torch.nn.Sequential(model.model.layers[0].input_layernorm, Mixer())
    injection = inject(model, LoRAConfig())
    paths, warned = choose_fast_paths(model, injection, samples(), TrainSpec())
    assert paths == HEAD
    assert "nats off" in warned[0].reason


class Rough(torch.nn.Module):
    """Rounds depending on the number of tokens, as GPU kernels do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(x.shape[:-1].numel()), dtype=x.dtype)
        return x * (1 + 2**-6 * noise)


def test_rounding_in_half_precision_disables_no_fast_path() -> None:
    model = random_models.tiny("tiny:llama").to(torch.bfloat16)
    layer = model.model.layers[0]
    layer.input_layernorm = torch.nn.Sequential(layer.input_layernorm, Rough())
    injection = inject(model, LoRAConfig())
    assert choose_fast_paths(model, injection, samples(), TrainSpec()) == (ALL, [])
    model.float()
    assert choose_fast_paths(model, injection, samples(), TrainSpec())[0] != ALL


class OwnHead(torch.nn.Module):
    """Looks at the whole row, as a head may that is not just a projection."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x - x.mean(1, keepdim=True))


@DTYPES
def test_a_head_that_looks_at_the_whole_row_gets_it(dtype: torch.dtype) -> None:
    model = random_models.tiny("tiny:llama").to(dtype)
    model.lm_head = OwnHead(model.lm_head)
    paths, warned = choose_fast_paths(model, inject(model, LoRAConfig()), samples(), TrainSpec())
    assert paths == FastPaths(recompute=True)
    assert {e.setting for e in warned} == {"train.label_head", "train.packing", "train.share_prefix"}


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
    parts, warned = losses(30)
    assert none == []
    assert parts == pytest.approx(whole, abs=1e-5)
    assert warned[0] == FellBack("train.micro_batch", "out of memory with 8 rows at a time; now 4.")
    assert len(warned) <= 3
    with pytest.raises(TrainingFailed, match=r"One row of \d+ tokens needs more memory"):
        losses(2)


def saved(model: Any, paths: FastPaths, rows: list[Sample]) -> dict[int, int]:
    """Return the bytes of every storage that a forward pass keeps for the backward pass, parameters excluded."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), Objective(model, paths).loss(model, rows):
        pass
    return kept


def test_nothing_below_the_lowest_site_is_kept() -> None:
    rows = samples(6)
    low, high, none = (
        sum(saved(adapted("llama", at=at, rank=4)[0], FastPaths(True, True, True), rows).values())
        for at in ("q@0", "q@1", "down@1")
    )
    assert none < high < 0.7 * low
    model, injection = adapted("llama", at="q@1", rank=4)
    set_gradient_checkpointing(model, True)
    model.train()
    reached: list[bool] = []
    layer = model.model.layers[1]
    layer.register_forward_pre_hook(lambda layer, args: reached.append(args[0].requires_grad))
    with Objective(model, ALL).loss(model, rows) as loss:
        loss.backward()
    assert reached == [False]  # no gradient is computed below, either
    assert not model.get_input_embeddings().weight.requires_grad
    assert all(p.grad is not None for p in injection.parameters())


@pytest.mark.parametrize("family", random_models.TINY)
def test_what_is_cheap_to_compute_again_is_not_kept(family: str) -> None:
    rows = samples(8, least=40)
    model, injection = adapted(family, at="attn+mlp", rank=4)
    chosen, _ = choose_fast_paths(model, injection, rows, TrainSpec())
    assert chosen.recompute
    kept = replace(chosen, recompute=False)
    assert allocated(model, chosen, rows) < 0.97 * allocated(model, kept, rows)
    # The same kernels on the same numbers: equal to the bit.
    (loss, slopes), (found, others) = (gradients(model, injection, paths, rows) for paths in (kept, chosen))
    assert found == loss
    assert torch.equal(others, slopes)


@pytest.mark.parametrize("base", ["tiny:mixtral", "tiny:qwen3_moe", "tiny:jamba", "tiny:falcon_h1"])
def test_mixtures_and_hybrids_train_as_without_fast_paths(base: str) -> None:
    model, injection = adapted(base.removeprefix("tiny:"), at="attn?", rank=4)
    loss, slopes = gradients(model, injection, FastPaths(), samples(6))
    chosen, _ = choose_fast_paths(model, injection, samples(6), TrainSpec())
    assert chosen.recompute and chosen.label_head
    found, others = gradients(model, injection, chosen, samples(6))
    assert found == pytest.approx(loss, rel=1e-6)
    assert torch.allclose(others, slopes, atol=1e-5)


def test_a_norm_whose_result_is_changed_in_place_is_noticed() -> None:
    def double(module: Any, args: Any, kwargs: Any) -> None:
        kwargs["hidden_states"].mul_(2)

    model, injection = adapted("llama", at="q,v", rank=4)
    model.model.layers[1].self_attn.register_forward_pre_hook(double, with_kwargs=True)
    paths, warned = choose_fast_paths(model, injection, samples(), TrainSpec())
    assert paths == replace(ALL, recompute=False)
    assert "of their norm off" in warned[0].reason


def test_a_frozen_adapter_under_the_trained_one_can_be_merged_meanwhile() -> None:
    def losses(merged: bool) -> tuple[list[float], torch.Tensor]:
        model, first = adapted("llama", at="q,v,down", rank=4)
        before = [p.detach().clone() for p in first.parameters()]
        for p in first.parameters():
            p.requires_grad_(False)
        plan = TrainSpec(learning_rate=1e-2, batch=6, max_steps=3)
        with temporarily_merged(first if merged else None) as done:
            assert done == merged
            torch.manual_seed(1)
            second = inject(model, LoRAConfig(rank=2, at="q,v,up"), name="second")
            events = list(train(model, second, samples(), plan))
        assert all(map(torch.equal, before, (p for a in first.adapters.values() for p in a.parameters())))
        ends = torch.cat([tensor.flatten() for tensor in second.state_dict().values()])
        return [event.loss for event in events if isinstance(event, Step)], ends

    (hooked, one), (merged, other) = losses(False), losses(True)
    assert merged == pytest.approx(hooked, rel=1e-6)
    assert torch.allclose(one, other, atol=1e-4)


def test_the_last_layer_runs_only_for_tokens_that_predict_a_label() -> None:
    model, _ = adapted("llama", at="q,down", rank=4)
    seen: dict[str, list[int]] = {}
    for layer in model.model.layers:
        attention = layer.self_attn
        parts = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj, "o": attention.o_proj}
        for name, part in (parts | {"mlp": layer.mlp}).items():
            add = seen.setdefault(name, []).append
            part.register_forward_hook(lambda module, args, out, add=add: add(args[0].shape[1]))
    rows = samples(6)
    with Objective(model, ALL).loss(model, rows):
        pass
    packed = pack(rows, share=True)
    every, few = packed.ids.shape[1], len({*packed.reads.tolist()})
    assert every > few
    assert seen == {name: [every, every if name in "kv" else few] for name in ("q", "k", "v", "o", "mlp")}


@pytest.mark.parametrize("kind", ["series", "parallel"])
def test_the_last_mlp_does_so_beside_an_adapter_of_the_whole_attention_too(kind: str) -> None:
    model, injection = adapted("llama", kind, at="attn")
    rows = samples(6)
    assert choose_fast_paths(model, injection, rows, TrainSpec())[0] == ALL
    seen: list[int] = []
    model.model.layers[-1].mlp.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
    with Objective(model, FastPaths()).loss(model, rows) as plain, Objective(model, ALL).loss(model, rows) as loss:
        assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)
    assert seen[1] == len({*pack(rows, share=True).reads.tolist()})


def test_sites_that_read_the_same_input_keep_it_once() -> None:
    rows = samples(6)
    per_token = 32 * 4  # hidden size in fp32
    tokens = sum(len(row.ids) for row in rows)
    one, three = (saved(adapted("llama", at=at, rank=4)[0], FastPaths(True, True), rows) for at in ("q", "q,k,v"))
    # k and v of two layers keep A x, four numbers a token, and nothing of the width of x.
    assert sum(three.values()) - sum(one.values()) < 2 * 2 * tokens * per_token / 2


def test_adapters_keep_no_cast_copy_where_the_step_runs_in_half_precision() -> None:
    rows = samples(6)

    def kept(at: str) -> int:
        model = random_models.tiny("tiny:llama").to(torch.bfloat16)
        inject(model, LoRAConfig(at=at, rank=4))
        with torch.autocast("cpu", torch.bfloat16):
            return sum(saved(model, FastPaths(True, True), rows).values())

    tokens = sum(len(row.ids) for row in rows)
    assert kept("q,k,v") - kept("q") < 2 * 2 * tokens * 32 * 2


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_layers_compute_the_same_and_leave_nothing() -> None:
    model, injection = adapted("llama")
    loss, slopes = gradients(model, injection, ALL, samples(6))
    layers = CompiledLayers(model, Anatomy.of(model), backend="eager")
    with layers:
        found, others = gradients(model, injection, ALL, samples(6))
        assert all(layer._compiled_call_impl is not None for layer in model.model.layers)
    assert found == pytest.approx(loss, abs=1e-5)
    assert torch.allclose(others, slopes, atol=1e-5)
    assert all(layer._compiled_call_impl is None for layer in model.model.layers)


@pytest.mark.skipif(
    not (os.environ.get("LAB_SLOW") and compilation.find_compiler()), reason="needs minutes and a compiler"
)
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
def test_the_estimate_matches_the_allocated_memory(base: str, plan: dict[str, Any], adapter: str) -> None:
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
    paths, _ = choose_fast_paths(model, injection, rows, spec.train)
    model.train()
    if checkpointed:
        set_gradient_checkpointing(model, True)
    allocated(model, paths, rows[:2])  # one-time allocations
    model.zero_grad()
    assert found.step == pytest.approx(allocated(model, paths, rows), rel=0.15)
    own = sum(p.nbytes for p in injection.parameters())
    assert (found.adapter, found.optimizer) == (2 * own, 2 * own)
    assert found.total == sum(getattr(found, field.name) for field in fields(found))


def test_the_largest_micro_batch_is_found() -> None:
    rows = samples()
    longest = sorted(rows, key=lambda row: len(row.ids))[-2:]
    chunk = largest(rows, TrainSpec(batch=12, micro_batch=2), 0, padded=True)
    assert [len(row.ids) for row in chunk] == [len(row.ids) for row in longest]


def test_pinning_rows_for_a_gpu_can_be_estimated() -> None:
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


def test_without_fast_paths_the_loss_is_the_plain_one() -> None:
    from llm_adapters_lab.training.batches import collate

    model, _ = adapted("llama")
    rows = samples(5)
    with Objective(model, FastPaths()).loss(model, rows) as loss:
        assert torch.equal(loss, token_loss(model, collate(rows, 0)))
