"""Fusion: exact where its weights are known, frozen members, saved whole, refused where members do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import logits, shake, tokens
from small_runs import small

from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import adapter_config
from llm_adapters_lab.core.saved_adapters import digest, read_saved
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import BadSpec, CannotInject, NoView, StateMismatch, WrongBase
from llm_adapters_lab.events import Step
from llm_adapters_lab.inspection import member_names, member_weights
from llm_adapters_lab.models import random_models
from llm_adapters_lab.results import plots
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.fast_paths import FastPaths
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import Objective
from llm_adapters_lab.training.spec import TrainSpec

IDS = tokens()
FOUR = pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3"])
HOWS = pytest.mark.parametrize("how", ["vector", "token", "attention"])
SERIES = {"type": "series", "bottleneck": 8}
PARALLEL = {"type": "parallel", "bottleneck": 8}


def saved(folder: Path, family: str, fields: dict[str, Any], seed: int = 0) -> str:
    model = random_models.tiny(f"tiny:{family}")
    injection = inject(model, adapter_config(fields))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    save_adapter(injection, folder)
    return str(folder)


def fused(family: str, of: list[Any], how: str = "token", **more: Any) -> tuple[Any, Injection]:
    model = random_models.tiny(f"tiny:{family}")
    return model, inject(model, adapter_config({"type": "fusion", "how": how, "of": of, **more}))


def alone(folder: str, family: str) -> torch.Tensor:
    model = random_models.tiny(f"tiny:{family}")
    load_adapter(model, folder)
    return logits(model, IDS)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@FOUR
@HOWS
def test_copies_of_one_adapter_fuse_to_it(family: str, how: str, tmp_path: Path) -> None:
    one = saved(tmp_path / "a", family, SERIES)
    model, injection = fused(family, [one] * 3, how)
    with torch.no_grad():
        for name, p in [
            (n, p) for a in injection.adapters.values() for n, p in a.named_parameters() if p.requires_grad
        ]:
            if name != "D":
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(4)) * 0.3)
    close(logits(model, IDS), alone(one, family))


@FOUR
def test_weights_known_beforehand_give_the_member_and_the_mean(family: str, tmp_path: Path) -> None:
    names = [saved(tmp_path / str(i), family, PARALLEL, seed=i) for i in range(3)]
    model, injection = fused(family, names)
    seen = logits(model, IDS)
    close(seen, logits(fused(family, names, "vector")[0], IDS))  # both start at the mean
    with torch.no_grad():
        for adapter in injection.adapters.values():
            adapter.b[1] = 1e4
    close(logits(model, IDS), alone(names[1], family))
    weights = member_weights(injection, IDS[:1])
    assert set(weights) == set(injection.adapters)
    assert all(torch.equal(w, torch.tensor([0.0, 1.0, 0.0]).expand(7, 3)) for w in weights.values())
    assert member_names(injection) == names
    figure = plots.member_weights(weights, [f"<b>{i}" for i in range(7)], ["<img src=x>", "b", "c"])
    assert "<img" not in json.dumps(json.loads(figure.to_json()))
    assert not any(m._forward_pre_hooks for a in injection.adapters.values() for m in a.modules())


@HOWS
def test_permuting_the_members_permutes_the_weights(how: str, tmp_path: Path) -> None:
    names = [saved(tmp_path / str(i), "llama", PARALLEL, seed=i) for i in range(3)]
    one, other = fused("llama", names, how)[1], fused("llama", [names[i] for i in (2, 0, 1)], how)[1]
    shake(one)
    with torch.no_grad():
        for key, adapter in other.adapters.items():
            for name, p in adapter.named_parameters(recurse=False):
                own = one.adapters[key].get_parameter(name)
                p.copy_(own[[2, 0, 1]] if how != "attention" else own)
    a, b = (member_weights(injection, IDS[:1]) for injection in (one, other))
    for key in a:
        close(a[key][:, [2, 0, 1]], b[key])
        close(a[key].sum(-1), torch.ones(7))
        assert float(a[key].min()) >= 0
    close(logits(one.model, IDS), logits(other.model, IDS))


@FOUR
@HOWS
def test_training_leaves_frozen_members_alone_and_the_fusion_is_saved_whole(
    family: str, how: str, tmp_path: Path
) -> None:
    names = [saved(tmp_path / str(i), family, SERIES, seed=i) for i in range(2)]
    before = [digest(Path(name)) for name in names]
    model, injection = fused(family, names, how)
    held = {key: t for key, t in injection.state_dict().items() if "/members." in key}
    assert held
    rows = [Sample(f"r{n}", ids := tuple(tokens(1, 9)[0].roll(n).tolist()), ids) for n in range(8)]
    plan = TrainSpec(batch=4, max_steps=3, epochs=9, learning_rate=1e-2, precision="fp32")
    assert len([e for e in train(model, injection, rows, plan) if isinstance(e, Step)]) == 3
    after = injection.state_dict()
    assert all(torch.equal(after[key], t) for key, t in held.items())
    assert any(not torch.equal(t, torch.zeros_like(t)) for key, t in after.items() if "/members." not in key)
    assert before == [digest(Path(name)) for name in names]
    save_adapter(injection, tmp_path / "f")
    assert list(read_saved(tmp_path / "f").config.digests.values()) == before
    seen = logits(model, IDS)
    for name in names:  # the saved fusion needs neither
        (Path(name) / "adapter.json").unlink()
    again = random_models.tiny(f"tiny:{family}")
    load_adapter(again, tmp_path / "f")
    assert torch.equal(logits(again, IDS), seen)
    model.eval()
    with torch.no_grad():
        losses = []
        for paths in (FastPaths(packing=True), FastPaths(label_head=True)):
            with Objective(model, paths).losses(model, rows[:3]) as loss:
                losses.append(loss)
    if family != "bloom":  # whose positions are not packed
        close(*losses)


def test_members_that_are_not_frozen_learn_too() -> None:
    _, injection = fused("llama", [{"type": "lora", "rank": 2}, {"type": "lora", "rank": 4}], "mean", freeze=False)
    alone = [inject(random_models.tiny("tiny:llama"), adapter_config({"type": "lora", "rank": r})) for r in (2, 4)]
    assert injection.count() == sum(single.count() for single in alone)
    assert all(p.requires_grad for adapter in injection.adapters.values() for p in adapter.parameters())


def test_what_cannot_be_fused_is_refused_by_name(tmp_path: Path) -> None:
    names = {
        kind: saved(tmp_path / kind, "llama", {"type": kind})
        for kind in ("prefix", "norm-tuning", "conv", "lora", "series")
    }
    for kind in ("prefix", "norm-tuning", "conv"):
        with pytest.raises(CannotInject, match=f"'{kind}' cannot be a member"):
            fused("llama", [names[kind], names["lora"]])
    with pytest.raises(CannotInject, match="sit at different places"):
        fused("llama", [names["series"], names["lora"]])
    with pytest.raises((WrongBase, StateMismatch)):
        fused("gpt2", [names["series"], names["series"]])
    for fields, match in (
        ({"of": []}, "of must be"),
        ({"of": "x"}, "of must be a list of runs"),
        ({"of": [{"type": "fusion", "of": ["a"]}]}, "cannot be a member of a fusion"),
        ({"of": [{"type": "lora", "start": "a"}]}, "Name the saved adapter itself"),
        ({"of": ["a"], "how": "mean"}, "nothing to learn"),
        ({"of": ["a"], "how": "max"}, "how must be one of"),
    ):
        with pytest.raises(BadSpec, match=match):
            RunSpec.parse({"adapter": {"type": "fusion", **fields}})
    injection = inject(random_models.tiny("tiny:llama"), adapter_config("lora"))
    with pytest.raises(NoView, match="no members"):
        member_weights(injection, IDS[:1])


def test_a_run_fuses_runs_and_is_refused_before_weights_load(tmp_path: Path) -> None:
    short = {"batch": 8, "max_steps": 2, "learning_rate": 0.01}
    members = [run(small("lora", adapter=SERIES, train=short, seed=seed), root=tmp_path) for seed in (0, 1)]
    fields = {"type": "fusion", "of": [members[0].id, members[1].id]}
    record = run(small("lora", adapter=fields, train=short), root=tmp_path)
    assert record.summary["status"] == "finished"
    assert set(record.summary["hashes"]["adapters"]) == set(fields["of"])
    assert record.summary["trainable_parameters"] == 6 * 2 * 129
    with pytest.raises(BadSpec, match="no saved adapter 'nowhere'"):
        run(small("lora", adapter={**fields, "of": ["nowhere"]}, train=short), root=tmp_path)
