"""Composition by nested rules: equal to separate passes, in every layout of rows, and gone when ejected."""

from typing import Any

import pytest
import torch
from composition_cases import put
from contract import logits, tokens

from llm_adapters_lab.core.call_context import grouped
from llm_adapters_lab.core.composition import compose, mix, stack
from llm_adapters_lab.core.hooks import MARKS
from llm_adapters_lab.core.injection import injections
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.rules import Average, Mix, Parallel, Route, Rule, Split, Stack
from llm_adapters_lab.errors import BadSpec, CannotInject, CannotMerge
from llm_adapters_lab.models import random_models
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.fast_paths import FastPaths
from llm_adapters_lab.training.loss import Objective

IDS = tokens(3, 8)
FOUR = pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3"])
KINDS = {"a": "series", "b": "series", "c": "lora"}


def model_with(family: str, names: str = "abc", at: str = "mlp") -> Any:
    model = random_models.tiny(f"tiny:{family}")
    for seed, name in enumerate(names):
        kind = "series" if at == "mlp" else KINDS[name]
        put(
            model, name, kind, seed=seed, **({"bottleneck": 8, "at": at} if kind == "series" else {"rank": 4, "at": at})
        )
    return model


def alone(model: Any, *names: str, ids: torch.Tensor = IDS, **options: Any) -> torch.Tensor:
    stack(model, *names)
    return logits(model, ids, **options)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@FOUR
def test_rules_nest_and_the_simplest_are_stack_and_mix(family: str) -> None:
    model = model_with(family)

    def composed(rule: Rule) -> torch.Tensor:
        compose(model, rule)
        return logits(model, IDS)

    assert torch.equal(composed(Stack("b", "a")), alone(model, "b", "a"))
    assert not torch.allclose(composed(Stack("b", "a")), composed(Stack("a", "b")), atol=1e-5)
    assert torch.equal(composed(Stack(Stack("b"), "a")), alone(model, "b", "a"))
    nested = composed(Stack("a", Mix({"b": 1.0})))
    close(nested, alone(model, "a", "b"))
    mix(model, {"a": 0.3, "b": -0.5})
    close(logits(model, IDS), composed(Mix({"a": 0.3, "b": -0.5})))
    for seed in (10, 11):
        put(model, f"n{seed}", "series", seed=0, bottleneck=8, at="mlp")
    copies = composed(Average("a", "n10", "n11"))  # three times the same
    close(copies, alone(model, "a"))
    both = composed(Mix({Stack("a", "b"): 0.5, "c": 0.5}))
    assert not torch.allclose(both, copies, atol=1e-5)
    with pytest.raises(CannotMerge, match="composed; undo it with"):
        merge(injections(model)["a"])


@FOUR
def test_rows_are_routed_by_their_group(family: str) -> None:
    model = model_with(family)
    each = {name: alone(model, name) for name in "abc"}
    both = alone(model, "b", "c")
    compose(model, Route({"a": "de", Stack("b", "c"): "fr"}))
    with grouped(model, ["de", "fr", "de"]):
        seen = logits(model, IDS)
    close(seen, torch.stack([each["a"][0], both[1], each["a"][2]]))
    with pytest.raises(CannotInject, match="routed by the groups de, fr, and this call names none"):
        logits(model, IDS)
    with pytest.raises(BadSpec, match="knows the group 'es'"), grouped(model, ["es"] * 3):
        pass
    for name in "abc":
        injections(model)[name].eject()
    assert not any(m._forward_hooks or m._forward_pre_hooks or set(MARKS) & set(m.__dict__) for m in model.modules())


@FOUR
def test_routed_generation_is_that_of_each_adapter_padded_cached_and_with_beams(family: str) -> None:
    model, ids, mask = model_with(family, "ab"), tokens(2, 8), torch.ones(2, 8, dtype=torch.long)
    ids[1, :3], mask[1, :3] = 0, 0
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for more in ({}, {"num_beams": 3}, {"use_cache": False}):
        apart = []
        for row, name in enumerate("ab"):
            stack(model, name)
            apart.append(model.generate(input_ids=ids, attention_mask=mask, **options, **more)[row])
        compose(model, Route({"a": "x", "b": "y"}))
        if more.get("num_beams"):
            with pytest.raises(CannotInject, match="rows where the model runs"), grouped(model, ["x", "y"]):
                model(input_ids=ids.repeat_interleave(3, 0))
        with grouped(model, ["x", "y"] if "num_beams" not in more else [g for g in "xy" for _ in range(3)]):
            together = model.generate(input_ids=ids, attention_mask=mask, **options, **more)
        assert torch.equal(together, torch.stack(apart))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi3"])
@pytest.mark.parametrize("rule", [Route({"a": "de", "b": "fr"}), Split({"a": slice(0, 4), "b": slice(4, None)})])
def test_packed_rows_are_those_of_a_batch(family: str, rule: Rule) -> None:
    model = model_with(family, "ab")
    ids = [tuple(row.tolist()) for row in tokens(4, 9)]
    rows = [Sample(str(n), row[: 9 - n], row[: 9 - n], group=("de", "fr")[n % 2]) for n, row in enumerate(ids)]
    compose(model, rule)
    found = []
    for paths in (FastPaths(packing=True), FastPaths(label_head=True)):
        with torch.no_grad(), Objective(model, paths).losses(model, rows) as losses:
            found.append(losses)
    close(*found)


@FOUR
def test_parallel_blocks_and_split_positions(family: str) -> None:
    model = model_with(family, "ab")
    compose(model, Parallel("a", "b"))
    seen = logits(model, IDS.repeat(2, 1))
    close(seen, torch.cat([alone(model, "a"), alone(model, "b")]))
    compose(model, Parallel("a", "b"))
    with pytest.raises(CannotInject, match="3 rows are no multiple"):
        logits(model, IDS)
    compose(model, Split({"a": slice(0, 4), "b": slice(4, None)}))
    split = logits(model, IDS)
    close(split[:, :4], alone(model, "a")[:, :4])
    assert not torch.allclose(split[:, 4:], alone(model, "a")[:, 4:], atol=1e-5)
    compose(model, Split({"a": slice(0, 4), "b": slice(4, None)}))
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids, mask = torch.cat([torch.zeros_like(IDS[:, :2]), IDS], 1), torch.ones(3, 10, dtype=torch.long)
    mask[:, :2] = 0
    plain = model.generate(input_ids=IDS, use_cache=False, **options)[:, 8:]
    for cached in (True, False):
        assert torch.equal(model.generate(input_ids=IDS, use_cache=cached, **options)[:, 8:], plain)
        padded = model.generate(input_ids=ids, attention_mask=mask, use_cache=cached, **options)[:, 10:]
        assert torch.equal(padded, plain)


def test_what_cannot_be_composed_is_refused_by_name() -> None:
    model = model_with("llama", "a")
    put(model, "p", "prefix", virtual_tokens=3)
    put(model, "n", "norm-tuning")
    put(model, "q", "lora", rank=2, at="down")
    for rule, match in (
        (Average("a", "p"), "'p' is 'prefix', whose effects do not add up"),
        (Average("a", "n"), "'n' is 'norm-tuning'"),
        (Average("a", "x"), "no adapter 'x'"),
        (Average("a", "q"), "'a' and 'q' follow one another"),
        (Mix({}), "at least one adapter"),
    ):
        with pytest.raises(BadSpec, match=match):
            compose(model, rule)
    compose(model, Stack("p", "a"))  # one after the other is allowed
    for made, match in (
        (lambda: Mix({"a": float("nan")}), "finite"),
        (lambda: Split({"a": slice(-3, None)}), "slices of step 1 from 0 on"),
    ):
        with pytest.raises(BadSpec, match=match):
            made()
    moe = random_models.tiny("tiny:mixtral")
    put(moe, "a", "lora", rank=2, at="experts.down")
    with pytest.raises(BadSpec, match="at experts"):
        compose(moe, Parallel("a", "a"))
