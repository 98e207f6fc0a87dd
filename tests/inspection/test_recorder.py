"""The recorder records the same as plain hooks, edits what is selected, and leaves nothing behind."""

import copy
import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from contract import ALL, CASES, FAMILIES, config, logits, shake, tokens
from memory_adapter import memories, reading_memory

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.call_context import context_of
from llm_adapters_lab.core.composition import mix
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec, EmptyPlacement, NoView
from llm_adapters_lab.inspection.interventions import add, replace, scale_adapter, zero
from llm_adapters_lab.inspection.recorder import Recorder
from llm_adapters_lab.inspection.recording import Moments
from llm_adapters_lab.models import loading, random_models
from llm_adapters_lab.training.step import set_gradient_checkpointing

POST_NORM = ("gemma2", "gemma3", "olmo2", "glm4")
"""Families with a norm after each sublayer, whose exits do not add up to the residual stream."""
OF_PARTS = {case: [get_adapter(part.type).cls for part in config(case).parts] for case in CASES}
SITES = [
    case
    for case, parts in OF_PARTS.items()
    if all(cls.scope == "site" and not (cls.trains_base or cls.for_tokens or cls.token_gate) for cls in parts)
]
MLP0 = "model.layers.0.mlp.down_proj:mlp"


def adapted(case: str = "lora", family: str = "llama", **changes: Any) -> tuple[Any, Any]:
    model = random_models.tiny(f"tiny:{family}")
    torch.manual_seed(0)
    injection = inject(model, config(case, **changes))
    shake(injection)
    return model, injection


def traces(model: Any) -> list[Any]:
    """Return everything a recorder could leave in a model."""
    found: list[Any] = [dict(model.config.__dict__), model.config._attn_implementation]
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        extra = (module._forward_hooks_with_kwargs, module._forward_pre_hooks_with_kwargs)
        extra += (module._forward_hooks_always_called,)
        # A call that fails half-way leaves the note of virtual tokens to the next one, recorder or not.
        own = sorted(set(module.__dict__) - {"ahead"})
        found.append((name, [list(h.values()) for h in hooks], [len(e) for e in extra], own))
    return found


@FAMILIES
def test_values_equal_those_of_plain_hooks(family: str) -> None:
    model, ids = random_models.tiny(f"tiny:{family}"), tokens()
    anatomy, plain = Anatomy.of(model), {}
    sites = {site.key: site for site in anatomy.sublayers}
    handles = []
    for key, site in sites.items():
        reader, host = model.get_submodule(site.reader), model.get_submodule(site.path)
        handles.append(reader.register_forward_pre_hook(lambda m, a, k=key: plain.update({f"{k}/x": a[0]})))
        # A copy: Falcon adds to this output in place.
        handles.append(host.register_forward_hook(lambda m, a, out, k=key: plain.update({f"{k}/y": out.clone()})))
    expected = logits(model, ids)
    for handle in handles:
        handle.remove()
    with Recorder(model, "attn+mlp", ("x", "y", "base")) as seen:
        assert torch.equal(logits(model, ids), expected)
    assert list(seen) == sorted(sites, key=lambda k: sites[k].layer) or family in ("gpt_neox", "falcon", "phi", "gptj")
    assert set(seen) == set(sites)
    for key in seen:
        assert torch.equal(seen[key].x, plain[f"{key}/x"].reshape(2, 7, -1))
        assert torch.equal(seen[key].y, plain[f"{key}/y"].reshape(2, 7, -1))
        assert torch.equal(seen[key].base, seen[key].y)


@FAMILIES
def test_embedding_and_sublayers_add_up_to_the_residual_stream(family: str) -> None:
    model, ids = random_models.tiny(f"tiny:{family}"), tokens()
    anatomy = Anatomy.of(model)
    with Recorder(model, ("layers", "attn+mlp")) as seen:
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert [key for key in seen if key == "embed" or key in anatomy.layers] == ["embed", *anatomy.layers]
    assert torch.equal(seen["embed"].y, hidden[0])
    assert torch.equal(seen[anatomy.layers[0]].y, hidden[1])
    total = seen["embed"].y + sum(seen[site.key].y for site in anatomy.sublayers)
    last = seen[anatomy.layers[-1]].y
    assert torch.allclose(total, last, atol=1e-5) == (family not in POST_NORM)


@FAMILIES
def test_patterns_equal_the_models_own_and_attention_is_restored(family: str) -> None:
    model, ids = random_models.tiny(f"tiny:{family}"), tokens()
    before, plain = traces(model), logits(model, ids)
    if family == "falcon":
        with (
            pytest.raises(NoView, match="Falcon.* cannot change its attention, .*'sdpa'.*'eager'"),
            Recorder(model, "attn", "pattern"),
        ):
            pass
        assert traces(model) == before
        return
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    with Recorder(model, "mlp", "pattern") as seen:
        model(input_ids=ids, attention_mask=mask)
        model(input_ids=ids, attention_mask=mask)
    assert traces(model) == before
    assert torch.equal(logits(model, ids), plain)
    if model.config._attn_implementation != "eager":
        model.set_attn_implementation("eager")
    expected = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    assert list(seen) == [site.key for site in Anatomy.of(model).sublayers if site.role == "attn"]
    for key, weights in zip(seen, expected, strict=True):
        assert torch.equal(seen[key].calls("pattern")[0], weights)
        assert torch.equal(seen[key].pattern, torch.cat([weights, weights], dim=2))
        assert torch.allclose(weights.sum(-1)[0], torch.ones(4, 7))


@ALL
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind_even_after_an_exception(case: str, fails: bool) -> None:
    model, injection = adapted(case)
    ids, plain, before = tokens(), logits(model, tokens()), traces(model)
    state = copy.deepcopy(model.state_dict())
    if case == "parscale":
        with pytest.raises(NoView, match="runs every row in 3 streams"):
            Recorder(model, "layers")
        return

    def edit(y: torch.Tensor) -> torch.Tensor:
        if fails:
            raise RuntimeError("on purpose")
        return y * 2

    try:
        with Recorder(model, ("layers", "attn+mlp"), ("x", "y", "grad", "pattern"), edit=edit) as seen:
            assert traces(model) != before
            model(input_ids=ids).logits.sum().backward()
    except RuntimeError as error:
        assert fails and "on purpose" in str(error)
    else:
        assert not any(z.requires_grad for key in seen for z in (seen[key].x, seen[key].y, seen[key].grad))
    assert traces(model) == before
    assert torch.equal(logits(model, ids), plain)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    injection.eject()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@FAMILIES
@pytest.mark.parametrize("case", SITES)
def test_contributions_add_up_and_scaling_them_to_zero_gives_the_base(case: str, family: str) -> None:
    model, injection = adapted(case, family)
    ids, on = tokens(), logits(model, tokens())
    with injection.disabled():
        off = logits(model, ids)
        with Recorder(model) as bare:
            logits(model, ids)
    with Recorder(model, what=("y", "base", "contributions")) as seen:
        logits(model, ids)
    assert set(seen) == set(injection.sites)
    for key in seen:
        (added,) = seen[key].contributions.values()
        assert added.abs().sum() > 0
        assert torch.allclose(seen[key].base + added, seen[key].y, atol=1e-6)
    for factor, expected in ((0, off), (1, on)):
        with Recorder(model, edit=scale_adapter("default", factor)):
            assert torch.equal(logits(model, ids), expected)
    with Recorder(model, edit={key: replace(bare[key].y) for key in bare}):
        assert torch.allclose(logits(model, ids), off, atol=1e-6)


def test_scaling_a_linear_adapter_equals_scaling_its_weights() -> None:
    model, injection = adapted("lora", at="q,v,down")
    with Recorder(model, edit=scale_adapter("default", 1.5)):
        scaled = logits(model, tokens())
    with torch.no_grad():
        for adapter in injection.adapters.values():
            adapter.B.mul_(1.5)
    assert torch.allclose(scaled, logits(model, tokens()), atol=1e-5)


def test_each_adapter_of_a_chain_or_a_mix_has_its_own_contribution() -> None:
    model, _ = adapted("lora", at="down")
    shake(inject(model, config("series"), name="after"))
    with Recorder(model, "mlp", ("base", "y", "contributions")) as seen:
        chain = logits(model, tokens())
    parts = seen[MLP0].contributions
    assert list(parts) == ["default", "after"]
    assert torch.allclose(seen[MLP0].y, seen[MLP0].base + parts["default"] + parts["after"], atol=1e-6)
    with Recorder(model, "mlp", edit=scale_adapter("after", 0)):
        one = logits(model, tokens())
    model.__dict__["injections"]["after"].eject()
    assert torch.equal(logits(model, tokens()), one)
    assert not torch.equal(one, chain)
    shake(inject(model, config("lora", at="down"), name="second"))
    mix(model, {"default": 0.7, "second": -0.3})
    with Recorder(model, "down", ("base", "y", "contributions")) as seen:
        logits(model, tokens())
    down = seen["model.layers.1.mlp.down_proj"]
    assert torch.allclose(down.y, down.base + sum(down.contributions.values()), atol=1e-6)


def test_a_single_edit_is_applied_once_to_an_output_with_several_keys() -> None:
    model, _ = adapted("lora", at="down")
    shake(inject(model, config("series"), name="after"))
    for options in ({"edit": scale_adapter("default", 0.5)}, {"edit": lambda y: 2 * y}):
        with Recorder(model, **options) as both:
            twice = logits(model, tokens())
        with Recorder(model, "down", **options):
            assert torch.equal(logits(model, tokens()), twice)
    assert {key.partition(":")[0] for key in both} == {
        site.path for site in Anatomy.of(model).projections if site.role == "down"
    }


def test_a_quantised_projection_is_recorded_like_any_other() -> None:
    class Int8(torch.nn.Linear):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__(linear.in_features, linear.out_features, bias=False)
            self.scale = float(linear.weight.detach().abs().max()) / 127
            whole = (linear.weight.detach() / self.scale).round().to(torch.int8)
            self.weight = torch.nn.Parameter(whole, requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)

    model = random_models.tiny("tiny:llama")
    for layer in model.model.layers:
        layer.mlp.down_proj = Int8(layer.mlp.down_proj)
    injection = inject(model, config("lora", at="down"))
    shake(injection)
    with Recorder(model, what=("x", "y", "base", "grad", "contributions")) as seen:
        model(input_ids=tokens()).logits.sum().backward()
    for key, part in seen.items():
        with injection.disabled():
            assert torch.equal(part.base, injection.host(key)(part.x))
        assert torch.allclose(part.y, part.base + part.contributions["default"], atol=1e-6)
        assert part.grad.abs().sum() > 0


def test_edits_change_only_the_selected_tokens() -> None:
    model, ids = random_models.tiny("tiny:llama"), tokens()
    with Recorder(model, "mlp@0", tokens=[0, -2], edit=zero) as cut, Recorder(model, "mlp@0") as whole:
        logits(model, ids)
    assert torch.equal(cut[MLP0].y, torch.zeros(2, 2, 32))
    assert [bool(whole[MLP0].y[:, i].any()) for i in range(7)] == [False, True, True, True, True, False, True]
    steer = torch.arange(32.0)
    with Recorder(model, "mlp@0") as plain:
        logits(model, ids)
    with Recorder(model, "mlp@0", edit=add(steer)) as seen:
        logits(model, ids)
    assert torch.equal(seen[MLP0].y, plain[MLP0].y + steer)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 3] = True
    with Recorder(model, "layers", tokens=mask, edit={"embed": replace(steer)}) as seen:
        logits(model, ids)
    assert torch.equal(seen["embed"].y, steer[None])
    with Recorder(model, "mlp.in@0", ("x", "y", "base"), tokens=0, edit=lambda y: 2 * y) as seen:
        logits(model, ids)
    (inside,) = seen.values()
    assert torch.equal(inside.y, 2 * inside.x)
    assert torch.equal(inside.base, inside.x)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gptj", "opt", "gemma3"])
def test_gradients_with_and_without_checkpointing(family: str) -> None:
    model, injection = adapted("lora", family, at="q,v@1")
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0

    def backward(edit: Any = None) -> tuple[dict[str, list[torch.Tensor]], list[Any]]:
        model.zero_grad()
        with Recorder(model, ("layers", "attn+mlp"), ("y", "grad"), edit=edit) as seen:
            model(input_ids=tokens(), use_cache=False).logits.square().mean().backward()
        return {key: [seen[key].y, seen[key].grad] for key in seen}, [p.grad.clone() for p in injection.parameters()]

    for edit in (None, {"embed": lambda y: y * 1.1}):
        plain, gradients = backward(edit)
        set_gradient_checkpointing(model, True)
        again, recomputed = backward(edit)
        set_gradient_checkpointing(model, False)
        assert list(plain) == list(again)
        for key, values in plain.items():
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(values, again[key], strict=True))
            assert values[0].shape == values[1].shape == (2, 7, 32)
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(gradients, recomputed, strict=True))
    assert all(p.grad is None for n, p in model.named_parameters() if "adapters." not in n)


def test_the_gradient_equals_a_finite_difference() -> None:
    model, _ = adapted(family="gpt2")
    key = "transformer.h.0.mlp.c_proj:mlp"
    ids, step = tokens(), torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    model.double()
    with Recorder(model, "mlp@0", "grad") as seen:
        model(input_ids=ids).logits.square().sum().backward()
    values = []
    for sign in (1, -1):
        with Recorder(model, "mlp@0", edit=add(sign * 1e-5 * step)):
            values.append(float(logits(model, ids).square().sum()))
    assert float((seen[key].grad * step).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "opt", "gemma3"])
@pytest.mark.parametrize("case", ["lora", "parallel", "prefix", "prompt-tuning"])
def test_generation_with_a_cache_records_the_same_as_a_full_forward(case: str, family: str) -> None:
    model, _ = adapted(case, family)
    ids, mask = tokens(), torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    with Recorder(model, ("layers", "attn+mlp"), ("y", "pattern")) as steps:
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    mask = torch.cat([mask, mask.new_ones(2, 4)], dim=1)
    with Recorder(model, ("layers", "attn+mlp"), ("y", "pattern")) as full:
        model(input_ids=out[:, :-1], attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    for key in full:
        assert steps[key].y.shape == (2, 11, 32)
        assert [z.shape[1] for z in steps[key].calls("y")] == [7, 1, 1, 1, 1]
        assert torch.allclose(steps[key].y[mask.bool()], full[key].y[mask.bool()], atol=1e-5)
        if ":attn" in key:
            first, second = (seen[key].pattern.transpose(1, 2)[mask.bool()] for seen in (steps, full))
            assert first.shape[-1] == 11 + 5 * (case in ("prefix", "prompt-tuning"))
            assert torch.allclose(first, second, atol=1e-5)


def test_the_last_token_is_the_last_one_that_is_not_padding() -> None:
    model, ids = random_models.tiny("tiny:llama"), tokens()
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with Recorder(model, "layers", tokens="last") as last, Recorder(model, "layers") as whole:
        model(input_ids=ids, attention_mask=mask)
    for key in last:
        assert torch.equal(last[key].y[:, 0], torch.stack([whole[key].y[0, 6], whole[key].y[1, 3]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_equal_those_of_numpy_without_padding(dtype: torch.dtype) -> None:
    model, ids = random_models.tiny("tiny:llama").to(dtype), tokens(6, 9)
    mask = torch.ones_like(ids)
    mask[::2, :4] = 0
    batches = [(ids[i : i + 2], mask[i : i + 2]) for i in range(0, 6, 2)]
    rows = []
    found = {}
    for reduce in (None, "mean", "norm", "covariance"):
        with Recorder(model, "mlp@0", reduce=reduce) as seen:
            for some, real in batches:
                model(input_ids=some, attention_mask=real)
        if reduce:
            found[reduce] = seen[MLP0].y.numpy()
            assert seen[MLP0].count == int(mask.sum())
        else:
            parts = zip(seen[MLP0].calls("y"), batches, strict=True)
            rows = np.concatenate([y[real.bool()].double().numpy() for y, (_, real) in parts])
    assert np.allclose(found["mean"], rows.mean(0), rtol=1e-12, atol=1e-15)
    assert np.allclose(found["norm"], np.linalg.norm(rows, axis=1).mean(), rtol=1e-12)
    assert np.allclose(found["covariance"], np.cov(rows.T), rtol=1e-10, atol=1e-15)


def test_moments_are_exact_far_from_zero() -> None:
    # The textbook form E[zz'] - mm' has no correct digit left here.
    rows = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e7
    moments = Moments("covariance")
    for block in (rows[:1], rows[1:1], rows[1:700], rows[700:]):
        moments.add(block)
    assert np.allclose(moments.value(), np.cov(rows.numpy().T), rtol=1e-7)


def test_a_function_reduces_each_call_without_padding() -> None:
    model, ids = random_models.tiny("tiny:llama"), tokens(4, 9)
    mask = torch.ones_like(ids)
    mask[::2, :4] = 0
    reduce = [lambda z: z.abs().amax(0), lambda z: z]
    with Recorder(model, "mlp@0", ("y", "grad"), reduce=reduce[0]) as seen, Recorder(model, "mlp@0") as whole:
        for i in (0, 2):
            model(input_ids=ids[i : i + 2], attention_mask=mask[i : i + 2]).logits.sum().backward()
    expected = [y[mask[:2].bool()].abs().amax(0) for y in whole[MLP0].calls("y")]
    assert torch.equal(seen[MLP0].y, torch.stack(expected))
    assert seen[MLP0].grad.shape == (2, 32)
    with Recorder(model, "mlp@0", tokens=slice(1, 3), reduce=reduce[1]) as seen:
        logits(model, ids)
        logits(model, ids[:1])
    assert [len(z) for z in seen[MLP0].calls("y")] == [8, 2]
    with pytest.raises(NoView, match="differ in shape"):
        seen[MLP0].y  # noqa: B018


def test_an_adapter_that_reads_an_input_of_its_row_is_recorded() -> None:
    model, ids, memory = random_models.tiny("tiny:llama"), tokens(), memories(2)
    with reading_memory(model) as injection, context_of(model).given(memory=memory):
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        expected = model.generate(input_ids=ids, **options)
        with Recorder(model, what=("x", "y", "base", "contributions", "pattern")) as steps:
            assert torch.equal(model.generate(input_ids=ids, **options), expected)
        with Recorder(model, what=("y", "grad"), edit=scale_adapter("default", 1)) as full:
            model(input_ids=expected[:, :-1]).logits.sum().backward()
    assert set(injection.sites) <= set(steps)
    for key, adapter in injection.adapters.items():
        shift = (memory @ adapter.W)[:, None].detach()
        assert torch.allclose(steps[key].contributions["default"], shift.expand(2, 10, -1), atol=1e-5)
        assert torch.allclose(steps[key].y, steps[key].base + shift, atol=1e-5)
        assert torch.allclose(steps[key].y, full[key].y, atol=1e-5)
        assert full[key].grad.shape == full[key].y.shape


@pytest.mark.slow
def test_memory_stays_flat_over_a_thousand_prompts() -> None:
    model = loading.load_base("nano").model
    inject(model, LoRAConfig(at="q,v"))
    generator, held = torch.Generator().manual_seed(0), []
    with Recorder(model, ("layers", "q@0"), ("y", "grad"), reduce="covariance") as seen:
        tracemalloc.start()
        for i in range(1000):
            loss = model(input_ids=torch.randint(3, 200, (1, 2 + i % 5), generator=generator)).logits.sum()
            if i % 20 == 0:  # all other calls have no backward pass
                loss.backward()
                model.zero_grad()
            del loss
            if i in (99, 999):
                gc.collect()
                tensors = sum(o.numel() for o in gc.get_objects() if type(o) is torch.Tensor)
                held.append((tensors, tracemalloc.get_traced_memory()[0]))
        tracemalloc.stop()
    assert held[0][0] == held[1][0]
    assert held[1][1] - held[0][1] < 100_000
    assert seen["embed"].count == sum(2 + i % 5 for i in range(1000))


def test_device_module_paths_and_order() -> None:
    model, _ = adapted("parallel")
    with Recorder(model, ("lm_head", "model.norm", "mlp+q@1"), device="cpu") as seen:
        expected = logits(model, tokens())
    last = ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj:mlp", "model.norm", "lm_head"]
    assert list(seen) == ["model.layers.0.mlp.down_proj:mlp", *last]
    assert torch.equal(seen["lm_head"].y, expected)
    with Recorder(model, ("model", "layers")) as seen:
        model.model(tokens())
        model(inputs_embeds=model.model.embed_tokens(tokens()))
        with pytest.raises(NoView, match="neither input_ids nor"):
            model(attention_mask=torch.ones(1, 1))
        hidden = model.model(input_ids=tokens()).last_hidden_state
    assert list(seen)[-1] == "model"
    assert all(torch.equal(z, hidden) for z in seen["model"].calls("y"))
    assert len(seen["model"].calls("y")) == len(seen["embed"].calls("y")) == 3
    with pytest.raises(NoView, match="OutputWithPast can be"), Recorder(model, "model", edit=zero):
        model(input_ids=tokens())
    with Recorder(model, "layers") as seen:
        model(input_ids=tokens())
        model(input_ids=tokens(3))
    assert [len(z) for z in seen["embed"].calls("y")] == [2, 3]
    with pytest.raises(NoView, match=r"differ in rows; read them with `calls\('y'\)`"):
        seen["embed"].y  # noqa: B018


def test_what_cannot_be_recorded_is_refused_by_name() -> None:
    model, _ = adapted("prefix")
    with pytest.raises(NoView, match=r"Say with `at` where .*'default' \(prefix\) at the whole model"):
        Recorder(model)
    with pytest.raises(NoView, match=r"'default' sits at none .*'default' \(prefix\) at the whole model"):
        Recorder(model, "mlp", edit=scale_adapter("default", 0))
    with pytest.raises(NoView, match="No adapter sits at the chosen sites"):
        Recorder(model, "mlp", "contributions")
    for case in ("norm-tuning", "full-fine-tuning"):
        model, _ = adapted(case)
        for options in ({"what": "base"}, {"what": "contributions"}, {"edit": scale_adapter("default", 0.5)}):
            with pytest.raises(NoView, match=r"trains the parameters of .* themselves.*`injection.disabled\(\)`"):
                Recorder(model, **options)
    model, _ = adapted("lora", at="q")
    with pytest.raises(NoView, match=r"'default' does not sit at .*mlp. The model carries 'default' .* at q"):
        Recorder(model, "q,mlp", edit={MLP0: scale_adapter("default", 0)})
    with pytest.raises(BadSpec, match="does not know 'z'"):
        Recorder(model, "q", "z")  # type: ignore[arg-type]
    with pytest.raises(BadSpec, match="reduction 'variance'. Did you mean 'covariance'"):
        Recorder(model, "q", reduce="variance")  # type: ignore[arg-type]
    with pytest.raises(BadSpec, match="nothing to edit at 'q'"):
        Recorder(model, "q", edit={"q": zero})
    with pytest.raises(EmptyPlacement):
        Recorder(model, "qkv")
    with pytest.raises(NoView, match="without a reduction"):
        Recorder(model, "attn", "pattern", reduce="mean")
    with pytest.raises(NoView, match="out of range for a call with 7 tokens"), Recorder(model, "q", tokens=7):
        logits(model, tokens())
    with pytest.raises(NoView, match="must be boolean"), Recorder(model, "q", tokens=torch.ones(2, 7)):
        logits(model, tokens())
    with pytest.raises(NoView, match="no stream"), Recorder(model, "model.embed_tokens", "x"):
        logits(model, tokens())
    with Recorder(model, "q", ("y", "grad")) as seen:
        logits(model, tokens())
    with pytest.raises(NoView, match="x was not asked for .*: grad, y"):
        next(iter(seen.values())).x  # noqa: B018
    with pytest.raises(NoView, match="No grad .*call `backward` inside the block"):
        next(iter(seen.values())).grad  # noqa: B018
    with Recorder(model, "q", reduce="mean") as seen:
        logits(model, tokens())
    with pytest.raises(NoView, match="reduced to a running moment"):
        next(iter(seen.values())).calls("y")
    with pytest.raises(KeyError, match="Did you mean"):
        seen["model.layers.0.self_attn.k_proj"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiled_models_are_refused() -> None:
    with pytest.raises(NoView, match="compiled"):
        Recorder(torch.compile(random_models.tiny("tiny:llama")), "mlp")  # type: ignore[arg-type]
    model = random_models.tiny("tiny:llama")
    model.model.layers[0].compile()
    with pytest.raises(NoView, match="compiled"):
        Recorder(model, "mlp")
