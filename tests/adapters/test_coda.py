"""CoDA: the tokens that run are computed as before, the others not at all, and no token depends on a later one."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from composition_cases import put
from contract import logits, shake, tokens
from fast_path_cases import adapted, samples
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from llm_adapters_lab import inspection
from llm_adapters_lab.adapters.shared.token_choice import quantile, soft_topk
from llm_adapters_lab.core.composition import compose, mix, stack
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.registry import adapter_config
from llm_adapters_lab.core.rules import Mix
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import BadSpec, CannotInject, CannotMerge, NoView
from llm_adapters_lab.events import FellBack, Step
from llm_adapters_lab.models import random_models
from llm_adapters_lab.models.blueprint import blueprint
from llm_adapters_lab.results import plots
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.preview import dry_run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import FastPaths, Objective
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import set_gradient_checkpointing

FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3", "opt", "gptj"])
IDS = tokens(3, 9)
PLAN = TrainSpec(batch=4, max_steps=6, epochs=6, learning_rate=3e-3)


def conditional(family: str, **fields: Any) -> tuple[Any, Injection]:
    """Return a model with CoDA that is no longer at its start."""
    model, injection = adapted(family, "coda", **{"bottleneck": 8, **fields})
    return model.eval(), injection


def rows_of(model: Any, injection: Injection, ids: torch.Tensor) -> dict[str, int]:
    """Return how many rows enter the last projection of each MLP."""
    found: dict[str, int] = {}

    def note(key: str) -> Any:
        return lambda module, args, output: found.update({key: args[0].shape[:-1].numel()})

    handles = [injection.host(key).register_forward_hook(note(key), prepend=True) for key in injection.sites]
    logits(model, ids)
    for handle in handles:
        handle.remove()
    return found


class Masked(nn.Module):
    """What CoDA computes, without gathering: the whole MLP, times the gate."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own, self.token_gate = own, None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.own(x, y * self.own.token_gate(x)[..., None])
        return result


@FAMILIES
def test_gathered_is_masked_and_only_chosen_tokens_enter(family: str) -> None:
    model, injection = conditional(family)
    gathered, run = logits(model, IDS), inspection.tokens_run(injection, IDS)
    assert rows_of(model, injection, IDS) == {key: int(own.sum()) for key, own in run.items()}
    assert all(own.shape == (27,) and 0 < int(own.sum()) < 27 for own in run.values())
    for key in injection.sites:
        injection.chain(key)["default"] = Masked(injection.adapters[key])
    assert set(rows_of(model, injection, IDS).values()) == {27}
    assert torch.allclose(logits(model, IDS), gathered, atol=1e-5)


@FAMILIES
def test_with_all_tokens_it_is_a_parallel_bottleneck(family: str) -> None:
    model, injection = conditional(family, share=1.0)
    found, state = logits(model, IDS), injection.state_dict()
    assert all(own.all() for own in inspection.tokens_run(injection, IDS).values())
    injection.eject()
    parallel = inject(model, adapter_config({"type": "parallel", "bottleneck": 8}))
    parallel.load_state_dict(state)
    assert torch.equal(logits(model, IDS), found)


@FAMILIES
def test_a_token_depends_on_nothing_that_follows_nor_on_other_rows(family: str) -> None:
    model, injection = conditional(family)
    found, run = logits(model, IDS), inspection.tokens_run(injection, IDS)
    changed = IDS.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 100 + 3
    assert torch.allclose(logits(model, changed)[:, :5], found[:, :5], atol=1e-6)
    for i in range(3):
        assert torch.allclose(logits(model, IDS[i : i + 1]), found[i : i + 1], atol=1e-5)
        alone = inspection.tokens_run(injection, IDS[i : i + 1])
        assert all(torch.equal(alone[key], own.view(3, 9)[i]) for key, own in run.items())


@FAMILIES
def test_generation_agrees_with_cache_padding_and_beams(family: str) -> None:
    model, _ = conditional(family)
    ids, mask = tokens(), torch.ones(2, 7, dtype=torch.long)
    ids[1, :3], mask[1, :3] = 0, 0
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for beams in (1, 3):
        given = {"input_ids": ids, "attention_mask": mask, "num_beams": beams, **options}
        assert torch.equal(model.generate(use_cache=True, **given), model.generate(use_cache=False, **given))


@FAMILIES
def test_layouts_of_a_batch_give_the_same_loss_gradients_and_threshold(family: str) -> None:
    rows, found = samples(6), []
    paths = [FastPaths(), FastPaths(True), FastPaths(packing=True), FastPaths(True, True, True)]
    for chosen in paths if family in ("llama", "gemma3") else paths[:2]:  # lengths differ: the first two are padded
        model, injection = conditional(family)
        with Objective(model.train(), chosen, 0, injection).loss(model, rows) as loss:
            loss.backward()
        gradients = [p.grad.flatten() for p in injection.parameters()]
        assert all(g.abs().sum() > 0 for g in gradients)
        taus = [adapter.tau for adapter in injection.adapters.values()]
        found.append((loss.detach(), torch.stack(taus), torch.cat(gradients)))
    for one in found[1:]:
        assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-3) for a, b in zip(one, found[0], strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_recomputed_activations_run_the_same_tokens_once(family: str) -> None:
    rows, found = samples(4), []
    for on in (False, True):
        model, injection = conditional(family)
        set_gradient_checkpointing(model, on)
        with Objective(model.train(), FastPaths(), 0, injection).loss(model, rows) as loss:
            loss.backward()
        found.append([p.grad for p in injection.parameters()] + [a.tau for a in injection.adapters.values()])
        counted = {adapter.tokens_counted()[1] for adapter in injection.adapters.values()}
        assert counted == {sum(len(row.ids) for row in rows)}
    assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-3) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_training_keeps_the_share_counts_tokens_and_freezes_the_threshold(share: float, tmp_path: Path) -> None:
    model, injection = conditional("llama", share=share)
    before = injection.state_dict()
    plan = TrainSpec(batch=8, max_steps=20, epochs=20, learning_rate=3e-3)
    events = list(train(model, injection, samples(16), plan))
    assert len([e for e in events if isinstance(e, Step)]) == 20 and not [e for e in events if isinstance(e, FellBack)]
    assert all(not torch.equal(tensor, before[name]) for name, tensor in injection.state_dict().items())
    run, seen = map(sum, zip(*(a.tokens_counted() for a in injection.adapters.values()), strict=True))
    assert abs(run / seen - share) < 0.08
    after = injection.state_dict()
    logits(model, IDS)
    assert all(torch.equal(tensor, after[name]) for name, tensor in injection.state_dict().items())
    save_adapter(injection, tmp_path / "adapter")
    fresh = random_models.tiny("tiny:llama")
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(logits(fresh, IDS), logits(model, IDS))


def test_the_gate_lies_between_one_half_and_one_where_a_token_runs() -> None:
    _, injection = conditional("llama", share=0.25)
    adapter: Any = next(iter(injection.adapters.values()))
    x = torch.randn(4, 50, injection.anatomy.hidden)
    gate = adapter.token_gate(x)
    run = adapter.tokens_run(x)
    assert torch.equal(gate > 0, run) and bool((gate[run] > 0.5).all()) and bool((gate <= 1).all())


def test_the_quantile_is_that_of_the_tokens_that_count() -> None:
    scores = torch.arange(10.0).view(2, 5)
    assert quantile(scores, None, 0.5) == 4.5
    assert quantile(scores, None, 0.2) == 7.5
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0]])  # with two columns of a cache
    assert quantile(scores, mask, 0.5) == 5.5  # of 2, 3, 5, 6, 7
    assert quantile(scores.view(1, 10), torch.tensor([9, *[1] * 9]), 0.5) == 0.5  # packed rows share the first token
    assert quantile(scores, torch.zeros(2, 5), 0.5) is None


def test_a_batch_that_runs_nothing_or_everything() -> None:
    model, injection = conditional("llama")
    for tau, count in ((1e6, 0), (-1e6, 27)):
        for adapter in injection.adapters.values():
            adapter.tau.fill_(tau)
        assert set(rows_of(model, injection, IDS).values()) == {count}
        model(input_ids=IDS).logits.sum().backward()
        assert all(p.grad.isfinite().all() for p in injection.parameters())


def test_adapters_at_its_projections_change_what_runs_and_those_at_the_mlp_see_the_result() -> None:
    model, injection = conditional("llama")
    shake(put(model, "inner", "lora", rank=2, at="gate,up,down"))
    shake(put(model, "beside", "parallel", bottleneck=4))
    shake(put(model, "before", "series", bottleneck=4, at="mlp.in,gate.in"))
    run = inspection.tokens_run(injection, IDS)
    assert rows_of(model, injection, IDS) == {key: int(own.sum()) for key, own in run.items()}
    found = logits(model, IDS)
    assert torch.equal(logits(copy.deepcopy(model), IDS), found)
    # LoRA merged into the projections is the same.
    plain, again = conditional("llama")
    shake(inner := put(plain, "inner", "lora", rank=2, at="gate,up,down"))
    again.eject()
    merge(inner)
    inject(plain, injection.config, name="coda").load_state_dict(injection.state_dict())
    shake(put(plain, "beside", "parallel", bottleneck=4))
    shake(put(plain, "before", "series", bottleneck=4, at="mlp.in,gate.in"))
    assert torch.allclose(logits(plain, IDS), found, atol=1e-5)


def test_what_is_refused() -> None:
    model, injection = conditional("llama")
    with pytest.raises(CannotMerge, match="'coda' does more than a linear change of a weight"):
        merge(injection)
    for at, match in (("attn", "is no MLP"), ("up,down", "is no MLP"), ("mlp.in", "is no MLP")):
        with pytest.raises(CannotInject, match=match):
            put(model, "second", "coda", at=at)
    for family in ("mixtral", "deepseek_v3"):
        with pytest.raises(CannotInject, match="is a mixture, or one of several"):
            put(random_models.tiny(f"tiny:{family}"), "one", "coda")
    for fields, match in (
        ({"share": 0}, "share must be"),
        ({"share": 1.5}, "share must be"),
        ({"temperature": 0}, "temperature must be"),
    ):
        with pytest.raises(BadSpec, match=match):
            RunSpec.parse({"adapter": {"type": "coda", **fields}})
    lora = put(model, "lora")
    with pytest.raises(NoView, match="'lora' runs all tokens"):
        inspection.tokens_run(lora, IDS)


def test_two_that_decide_and_mixes_are_refused_until_one_is_off() -> None:
    model, injection = conditional("llama")
    found = logits(model, IDS)
    second = put(model, "second", "coda", bottleneck=4)
    with pytest.raises(CannotInject, match="Only one can"):
        logits(model, IDS)
    stack(model, "default")
    assert torch.equal(logits(model, IDS), found)
    for combine in (lambda: mix(model, {"default": 0.5}), lambda: compose(model, Mix({"default": 0.5, "second": 0.5}))):
        with pytest.raises(BadSpec, match="'default' is 'coda', whose effects do not add up"):
            combine()
    second.eject()
    put(model, "inner", "molora", rank=2, at="down")
    stack(model, "default", "inner")
    with pytest.raises(CannotInject, match="'inner' at a projection of an MLP reads the whole call"):
        logits(model, IDS)
    stack(model, "inner")
    logits(model, IDS)
    injection.eject()
    logits(model, IDS)


def test_the_first_to_come_may_leave_before_others() -> None:
    model = random_models.tiny("tiny:llama")
    plain = logits(model, IDS)
    beside = put(model, "beside", "parallel", bottleneck=4)
    coda = put(model, "coda", "coda", bottleneck=4)
    shake(beside)
    with coda.disabled():
        found = logits(model, IDS)
    coda.eject()
    assert torch.equal(logits(model, IDS), found)
    beside.eject()
    assert torch.equal(logits(model, IDS), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks or "read_by" in m.__dict__ for m in model.modules())


def test_the_figure_shows_each_token_at_each_site() -> None:
    _, injection = conditional("llama")
    run = inspection.tokens_run(injection, IDS[:1])
    figure = plots.tokens_run(run, [f"<b>t{i}" for i in range(9)], "coda")
    (cells,) = figure.data
    assert len(plots.data(figure)) == 9 * len(run) and "<b>t" not in str(cells.x)
    assert [list(row) for row in cells.z] == [own.int().tolist() for own in run.values()]
    assert {word for row in cells.customdata for word in row} == {"runs", "does not run"}


def test_as_a_part_of_a_union_it_decides_for_the_others_at_its_mlp() -> None:
    parts = [{"type": "coda", "bottleneck": 8}, {"type": "lora", "rank": 2, "at": "q,down"}]
    model, injection = adapted("llama", "union", of=[*parts, {"type": "parallel", "bottleneck": 4}])
    run = inspection.tokens_run(injection, IDS)
    assert len(run) == 2 and {key.partition("/")[0] for key in run} == {"0"}
    entered = rows_of(model, injection, IDS)
    assert all(entered[key] == int(own.sum()) for key, own in run.items())
    found, state = logits(model, IDS), injection.state_dict()
    plain = injection.eject()
    again = inject(plain, injection.config)
    again.load_state_dict(state)
    assert torch.equal(logits(plain, IDS), found)


def encoder(**fields: Any) -> tuple[Any, Injection]:
    """Return a random model without a causal mask, with CoDA that chooses among the tokens of a row."""
    config = Gemma3TextConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=16)
    config.update({"num_key_value_heads": 1, "intermediate_size": 48, "use_bidirectional_attention": True})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        injection = inject(model, adapter_config({"type": "coda", "bottleneck": 4, "route": "topk", **fields}))
        shake(injection)
    return model, injection


def test_topk_runs_the_largest_scores_of_each_row() -> None:
    model, injection = encoder(share=0.4)
    ids, mask = tokens(3, 9) % 60 + 3, torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    scores: dict[str, torch.Tensor] = {}
    for key, adapter in injection.adapters.items():
        adapter.token_gate = watched(adapter, adapter.token_gate, scores, key)
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask).logits
    for adapter in injection.adapters.values():
        del adapter.token_gate
    for s, gate in scores.values():
        assert (gate >= 0).all() and (gate <= 1 + 1e-6).all()
        for row, length in enumerate((9, 5, 9)):
            k = math.ceil(0.4 * length)
            assert gate[row].nonzero()[:, 0].tolist() == sorted(s[row, :length].topk(k).indices.tolist())
    for row, length in enumerate((9, 5, 9)):  # whatever else is in the batch
        with torch.no_grad():
            alone = model(input_ids=ids[row : row + 1, :length]).logits
        assert torch.allclose(alone[0], together[row, :length], atol=1e-5)
    entered = rows_of(model, injection, ids)
    assert {*entered.values()} == {3 * 4}
    assert all(run.view(3, 9).sum(1).tolist() == [4] * 3 for run in inspection.tokens_run(injection, ids).values())
    later = ids.clone()
    later[0, 8] = 3 + (later[0, 8] - 2) % 60
    assert not torch.allclose(logits(model, later)[0, :8], logits(model, ids)[0, :8])


def watched(adapter: Any, gate: Any, found: dict[str, Any], key: str) -> Any:
    def keep(x: torch.Tensor) -> torch.Tensor:
        found[key] = adapter.scores(x), (result := gate(x))
        return result

    return keep


def test_topk_gathered_is_masked_and_learns() -> None:
    model, injection = encoder(share=0.5)
    ids = tokens(3, 9) % 60 + 3
    gathered = logits(model, ids)
    loss = model(input_ids=ids).logits.square().mean()
    loss.backward()
    gradients = [adapter.w.grad for adapter in injection.adapters.values()]
    assert all(g is not None and g.abs().max() > 0 for g in gradients)
    for key, adapter in injection.adapters.items():
        injection.chain(key)[injection.name] = Masked(adapter)
    assert torch.allclose(logits(model, ids), gathered, atol=1e-5)


def test_soft_topk_is_between_0_and_1_and_follows_the_scores() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0, -torch.inf], [0.3, 0.2, 0.1, 0.5, 0.4]])
    found = soft_topk(scores, torch.tensor([[2.0], [3.0]]))
    assert ((found >= 0) & (found <= 1 + 1e-6)).all()
    assert torch.allclose(found[0], torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]), atol=5e-3)
    assert (found[1][scores[1].sort().indices].diff() >= -1e-6).all()
    assert (found.sum(-1) <= torch.tensor([2.0, 3.0]) + 1e-4).all()


def test_topk_is_refused_in_a_decoder_and_for_parts_of_rows() -> None:
    config = adapter_config({"type": "coda", "route": "topk"})
    with pytest.raises(CannotInject, match="LlamaForCausalLM is a decoder. Set adapter.route to 'threshold'"):
        inject(random_models.tiny("tiny:llama"), config)
    with pytest.raises(CannotInject, match="is a decoder"):
        dry_run(RunSpec.parse({"adapter": {"type": "coda", "route": "topk"}}))
    model, _ = encoder()
    past = model(input_ids=IDS % 60 + 3, use_cache=True).past_key_values
    with pytest.raises(CannotInject, match="without a cache"):
        model(input_ids=IDS[:, :1] % 60 + 3, past_key_values=past, use_cache=True)


def test_a_run_tells_which_share_of_the_tokens_runs(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"data": {"task": "mini-math", "rows": 24}, "eval": {"tasks": []}}
    fields["train"] = {"batch": 8, "max_steps": 3, "learning_rate": 0.01}
    told = {}
    for kind, adapter in {"coda": {"type": "coda", "bottleneck": 4, "share": 0.25}, "lora": {"type": "lora"}}.items():
        record = run(RunSpec.parse(fields | {"adapter": adapter}), root=tmp_path)
        told[kind] = [text for event in record.events("Noticed") if "MLPs" in (text := event["text"])]
    assert told["lora"] == []
    (text,) = told["coda"]
    mean, by_layer, saved = re.fullmatch(
        r"Of the tokens of 16 training rows, (\d+) % run through the MLPs \(by layer (.*)\); (\d+) % of .* left out\.",
        text,
    ).groups()  # type: ignore[union-attr]
    shares = [int(part.split(": ")[1].removesuffix(" %")) for part in by_layer.split(", ")]
    assert len(shares) == 6 and sum(shares) / 6 == pytest.approx(int(mean), abs=1)
    anatomy = blueprint("nano").anatomy
    work = {p: p.d_in * p.d_out for p in anatomy.projections}
    part = sum(w for p, w in work.items() if p.sublayer == "mlp") / sum(work.values())
    assert int(saved) == pytest.approx((100 - sum(shares) / 6) * part, abs=1.5)
