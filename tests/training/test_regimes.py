"""Regimes: heads that train one adapter together do what each would do alone, and merge what they have learnt."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from records import timeless
from safetensors.torch import load_file

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.config import change
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.merging import merge
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import BadSpec, CannotInject
from llm_adapters_lab.events import Merged, Step
from llm_adapters_lab.models import random_models
from llm_adapters_lab.models.loading import load_base
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.preview import dry_run
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training.batches import collate, row_order
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import token_loss
from llm_adapters_lab.training.regimes import Heads
from llm_adapters_lab.training.spec import Regime, TrainSpec
from llm_adapters_lab.training.step import GradientComputer

FAMILIES = ("tiny:llama", "tiny:gpt2", "tiny:gpt_neox", "tiny:gemma2")
HEAD = LoRAConfig(rank=2, alpha=3.0, at="attn+mlp")
LTE = Regime(name="lte", heads=3, every=3)
HD = Regime(name="hd-pissa", heads=3)
PLAN = TrainSpec(learning_rate=1e-2, batch=6, max_steps=5, epochs=9.0, clip=0.3, regime=LTE)


def rows(count: int = 12) -> list[Sample]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for i in range(count):
        ids = tuple(torch.randint(3, 128, (6 + i % 5,), generator=generator).tolist())
        found.append(Sample(f"row/{i}", ids, (IGNORED,) * (2 + i % 3) + ids[2 + i % 3 :]))
    return found


def start(regime: Regime, family: str = "tiny:llama", config: LoRAConfig = HEAD) -> tuple[Any, Injection, Heads]:
    model = random_models.tiny(family)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(0)
    injection = inject(model, config.headed(regime.heads, regime.dense))
    return model, injection, Heads(injection, config, regime)


def learn(regime: Regime, family: str = "tiny:llama", **changes: Any) -> tuple[list[Any], Heads]:
    model, injection, heads = start(regime, family)
    plan = PLAN.model_copy(update={"regime": regime, **changes})
    gradients = GradientComputer(model, injection, rows(), plan, 0, heads=heads)
    return list(train(model, injection, rows(), plan, gradients=gradients)), heads


def losses(events: list[Any]) -> list[float]:
    return [event.loss for event in events if isinstance(event, Step)]


def batches(steps: int) -> list[list[Sample]]:
    return [[rows()[i] for i in numbers] for numbers in row_order(12, 6, steps, 0)]


def alone(family: str, first: dict[str, torch.Tensor], given: list[list[Sample]]) -> tuple[list[float], Injection]:
    """Train a plain adapter from given A, computed as plainly as can be."""
    model = random_models.tiny(family)
    injection = inject(model, HEAD)
    for key, a in first.items():
        injection.adapters[key].load_state_dict({"A": a}, strict=False)
    optimizer = torch.optim.AdamW(injection.parameters(), lr=1e-2, weight_decay=0)
    found = []
    for chunk in given:
        loss = token_loss(model, collate(chunk, 0)) / sum(row.counted for row in chunk)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(injection.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found, injection


def drawn(heads: Heads, head: int) -> dict[str, torch.Tensor]:
    return {key: heads._drawn(site, i, 0)[0][head] for i, (key, site) in enumerate(heads.injection.sites.items())}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fast", [True, False])
def test_before_a_merge_every_head_is_an_adapter_of_its_own(family: str, fast: bool) -> None:
    paths = {} if fast else {"packing": False, "label_head": False, "micro_batch": 2}
    every = Regime(name="lte", heads=3, every=4)
    events, heads = learn(every, family, max_steps=3, schedule="constant", **paths)
    single = [alone(family, drawn(heads, h), [chunk[h::3] for chunk in batches(3)]) for h in range(3)]
    means = [sum(each) / 3 for each in zip(*(found for found, _ in single), strict=True)]
    assert losses(events) == pytest.approx(means, abs=1e-5)
    for head, (_, injection) in enumerate(single):
        for key, adapter in injection.adapters.items():  # the last step merges, so these are the factors now
            assert torch.allclose(heads.sites[key].A0[head], adapter.get_parameter("A"), atol=2e-4)
            assert torch.allclose(heads.sites[key].B0[head], adapter.get_parameter("B"), atol=2e-4)


def test_one_head_that_merges_every_step_is_the_plain_adapter() -> None:
    events, heads = learn(Regime(name="lte", heads=1, every=1), schedule="constant")
    found, injection = alone("tiny:llama", drawn(heads, 0), batches(5))
    assert losses(events) == pytest.approx(found, abs=1e-5)
    for key, tensor in injection.state_dict().items():
        assert torch.allclose(tensor, heads.injection.state_dict()[key], atol=2e-4)


@contextmanager
def learning(heads: Heads) -> Iterator[None]:
    """Attach heads that act as in training, in a model without dropout, whose three rows are theirs."""
    with heads.attached():
        for module in heads.sites.values():
            module.train()
        with next(iter(heads.sites.values())).context.given(group=torch.arange(3)):
            yield


@pytest.mark.parametrize("regime", [LTE, LTE.model_copy(update={"reset": True}), HD])
@pytest.mark.parametrize("family", FAMILIES)
def test_right_after_a_merge_training_and_evaluation_agree(family: str, regime: Regime) -> None:
    _, heads = learn(regime, family, max_steps=3)
    model = heads.injection.model
    ids = torch.arange(3, 9)[None].repeat(3, 1)
    with torch.no_grad():
        plain = model(ids, use_cache=False).logits
        with learning(heads):
            assert torch.equal(model(ids, use_cache=False).logits, plain)
    assert not torch.equal(random_models.tiny(family)(ids, use_cache=False).logits, plain)
    with heads.attached():
        assert torch.equal(model(ids, use_cache=False).logits, plain)
        heads.sites[next(iter(heads.sites))].train()
        with pytest.raises(CannotInject, match="rows that are assigned"):
            model(ids, use_cache=False)
    assert not hasattr(model.get_submodule(heads.injection.anatomy.decoder), "call_context")
    assert all(p.requires_grad for p in heads.injection.parameters())
    assert torch.equal(model(ids, use_cache=False).logits, plain)


def test_the_rank_of_what_is_merged() -> None:
    events, heads = learn(LTE)
    merges = [event for event in events if isinstance(event, Merged)]
    assert [(e.step, e.merges, {*e.rank.values()}) for e in merges] == [(3, 1, {6}), (5, 2, {6})]
    assert heads.injection.config == HEAD.model_copy(update={"rank": 6})
    events, _ = learn(LTE.model_copy(update={"reset": True}))
    assert [{*e.rank.values()} for e in events if isinstance(e, Merged)] == [{6}, {12}]
    for count in (1, 2, 4):  # the first step of Adam goes by signs alone, and a head may move in one direction twice
        events, _ = learn(HD.model_copy(update={"heads": count}), max_steps=1, batch=4)
        (ranks,) = [[*e.rank.values()] for e in events if isinstance(e, Merged)]
        assert max(ranks) == median(ranks) == 2 * count * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_hd_pissa_starts_at_the_base_and_follows_its_formulas(family: str) -> None:
    model, injection, heads = start(HD, family)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    with torch.no_grad(), learning(heads):
        assert torch.equal(model(ids).logits, random_models.tiny(family)(ids).logits)
    for site in heads.sites.values():
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert (site.A0[i] @ site.A0[j].T).abs().max() < 1e-5
            assert (site.B0[i].T @ site.B0[j]).abs().max() < 1e-5
    with learning(heads):
        token_loss(model, collate(rows(3), 0)).backward()
    for head, row in enumerate(rows(3)):
        whole = inject(random_models.tiny(family), injection.config)
        token_loss(whole.model, collate([row], 0)).backward()
        for key, site in heads.sites.items():
            g, a, b = whole.adapters[key].get_parameter("D").grad, site.A.grad, site.B.grad
            assert g is not None and a is not None and b is not None
            assert torch.allclose(a[head], heads.scale * site.B0[head].T @ g, atol=2e-5)
            assert torch.allclose(b[head], heads.scale * g @ site.A0[head].T, atol=2e-5)
    before = {key: (site.A.detach().clone(), site.B.detach().clone()) for key, site in heads.sites.items()}
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-2, weight_decay=0)
    optimizer.step()
    moved = {
        key: (site.A.detach() - before[key][0], site.B.detach() - before[key][1]) for key, site in heads.sites.items()
    }
    heads.after_step(Accelerator(cpu=True), optimizer, 1, 9, 9)
    for key, site in heads.sites.items():
        (da, db), (a0, b0) = moved[key], before[key]
        update = sum(db[h] @ a0[h] + b0[h] @ da[h] + db[h] @ da[h] for h in range(3))
        assert torch.allclose(injection.adapters[key].get_parameter("D"), update, atol=1e-6)
        assert torch.equal(site.A.detach(), a0) and torch.equal(site.B.detach(), b0)


FIELDS: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 1, "at": "q,down"},
    "data": {"task": "mini-math", "rows": 24, "validation": 4},
    "train": {"batch": 8, "max_steps": 8, "learning_rate": 1e-2, "evaluate_every": 3, "checkpoint_every": 1},
    "eval": {"tasks": ["mini-bool"], "rows": 4, "batch": 2, "max_new_tokens": 3},
}
KINDS: dict[str, dict[str, Any]] = {
    "lte": {"name": "lte", "heads": 4, "every": 3},
    "reset": {"name": "lte", "heads": 4, "every": 3, "reset": True},
    "hd-pissa": {"name": "hd-pissa", "heads": 4},
}


def fields(kind: str, **changes: Any) -> dict[str, Any]:
    init = {"init": "pissa"} if kind == "hd-pissa" else {}
    regime = {"regime": KINDS[kind]} | changes
    return FIELDS | {"adapter": FIELDS["adapter"] | init, "train": FIELDS["train"] | regime}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_between_merges_to_the_same_bits(tmp_path: Path, kind: str) -> None:
    spec = RunSpec.parse(fields(kind))
    whole = run(spec, root=tmp_path / "whole")
    stop = threading.Event()
    for when in (4, 5):

        def ask(event: Any, when: int = when) -> None:
            if isinstance(event, Step) and event.step == when:
                stop.set()

        assert not run(spec, root=tmp_path / "parts", stop=stop, on_event=ask).done
        stop.clear()
    found = run(spec, root=tmp_path / "parts")
    assert timeless(found) == timeless(whole)
    one, other = (load_file(r.folder / "adapter" / "adapter.safetensors") for r in (found, whole))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    _, injection = restore(found)
    assert injection is not None and injection.config == spec.injected
    merges = [event["step"] for event in found.events("Merged")]
    assert merges == ([*range(1, 9)] if kind == "hd-pissa" else [3, 6, 8])
    forecast = dry_run(spec)
    assert forecast.trainable_parameters == found.summary["trainable_parameters"]
    assert forecast.memory is not None and found.summary["base_parameters"] == 1_317_120


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train.batch": 9}, "batch = 9, which 4 heads cannot share evenly"),
        ({"train.objective": "dpo"}, "objective = 'dpo'"),
        ({"train.precision": "fp16"}, "precision = 'fp16'"),
        ({"train.probe_every": 2}, "probe_every = 2"),
        ({"train.regime.name": "hd-pissa", "train.regime.every": 1, "train.weight_decay": 0.1}, "weight_decay = 0.1"),
        ({"train.regime.name": "hd-pissa"}, "hd-pissa merges after every step"),
        ({"train.regime.name": "hd-pissa", "train.regime.every": 1}, "adapter.init = 'kaiming'. Set it to 'pissa'"),
        ({"adapter.init": "olora"}, "adapter.init = 'olora'. Set it to 'kaiming'"),
        ({"adapter.scale": "rslora"}, "adapter.scale = 'rslora'"),
        ({"adapter.dropout": 0.1}, "adapter.dropout = 0.1"),
        ({"adapter.sparse": {}}, "adapter.sparse"),
        ({"tokens": ["<tool>"]}, "rows of new tokens"),
        ({"adapter.alpha": 0}, "alpha"),
        ({"adapter": {"type": "dora"}}, "adapter.type = 'dora' does not have. .*lora"),
        ({"adapter": {"type": "prefix"}}, "adapter.type = 'prefix' does not have"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(BadSpec, match=text):
        RunSpec.parse(change(fields("lte"), changes))


def test_places_without_heads_are_refused_before_weights_load(tmp_path: Path) -> None:
    wide = change(fields("hd-pissa"), {"adapter.rank": 33})
    with pytest.raises(CannotInject, match="4 heads of rank 33 need 132 singular directions, but .* has 128"):
        dry_run(RunSpec.parse(wide))
    with pytest.raises(CannotInject, match="reads token ids"):
        dry_run(RunSpec.parse(change(fields("lte"), {"adapter.at": "embed,head"})))
    moe = change(fields("lte"), {"base": "nano-moe", "adapter.at": "experts"})
    with pytest.raises(CannotInject, match="sees only the tokens"):
        dry_run(RunSpec.parse(moe))
    model, injection, _ = start(LTE)
    with pytest.raises(BadSpec, match="needs heads"):
        next(iter(train(model, injection, rows(), PLAN)))


def test_a_blank_base_has_the_same_random_weights_every_time() -> None:
    first, second, nano = (load_base(name) for name in ("nano-blank", "nano-blank", "nano"))
    pairs = list(zip(first.model.parameters(), second.model.parameters(), nano.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not any(torch.equal(a, c) for a, _, c in pairs if a.ndim == 2)
    assert first.tokenizer.get_vocab() == nano.tokenizer.get_vocab()
    ids = tuple(nano.tokenizer(get_task("mini-addsub").load("test")[0].instruction).input_ids)
    text = collate([Sample("text", ids, ids)], 0)
    blank, known = (float(token_loss(base.model, text).detach()) for base in (first, nano))
    assert blank > 2 * known


@pytest.mark.parametrize("regime", [LTE, LTE.model_copy(update={"reset": True}), HD])
def test_the_result_is_saved_merged_and_exported_like_any_adapter(tmp_path: Path, regime: Regime) -> None:
    _, heads = learn(regime, max_steps=3)
    model, ids = heads.injection.model, torch.arange(3, 9)[None]
    with torch.no_grad():
        trained = model(ids).logits
        save_adapter(heads.injection, tmp_path / "own", "tiny:llama")
        folders = [tmp_path / "own"]
        if not regime.dense:
            to_peft(heads.injection, tmp_path / "peft", "tiny:llama")
            folders.append(tmp_path / "peft")
        for folder in folders:
            fresh = random_models.tiny("tiny:llama")
            load_adapter(fresh, folder)
            assert torch.allclose(fresh(ids).logits, trained, atol=1e-6)
        merge(heads.injection)
        assert torch.allclose(model(ids).logits, trained, atol=1e-5)
        assert not torch.allclose(random_models.tiny("tiny:llama")(ids).logits, trained, atol=1e-3)
