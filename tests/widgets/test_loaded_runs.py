"""Runs in memory: one copy of a base carries the adapters of all runs that are in use, each as if it were alone."""

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small

from llm_adapters_lab.core.injection import injections
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run, find_run
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import prompt_ids
from widgets.kit import loaded_runs
from widgets.kit.loaded_runs import base_key, free_memory, load_run

Finished = tuple[Path, dict[str, str]]


def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([ids])).logits
    return found


def test_runs_of_one_base_share_it_and_compute_as_if_alone(finished: Finished) -> None:
    runs = [find_run(finished[1][name], finished[0]) for name in ("lora", "prefix", "own")]
    loaded = [load_run(each) for each in runs]
    assert len({id(each.model) for each in loaded}) == 1
    assert load_run(runs[0]) is loaded[0]
    ids = prompt_ids(loaded[0].tokenizer, "tom has 3 coins .")
    for each in loaded:
        base, _ = restore(each.run)
        with each.lock:
            assert torch.equal(logits(each.model, ids), logits(base.model, ids))
    base, _ = restore(runs[0])
    with loaded[0].base.using(), torch.no_grad():
        own = base.model(input_ids=torch.tensor([ids]))
    names = [each.injection.name for each in loaded]
    with loaded[0].base.using():
        bare = logits(loaded[0].model, ids)
    assert not torch.equal(own.logits, bare)
    with loaded[0].base.using(shares={names[0]: 0.5, names[2]: 1.5}):
        mixed = logits(loaded[0].model, ids)
    assert not torch.equal(mixed, bare)
    with loaded[0].base.using(shares={names[0]: 1.0}):
        assert torch.allclose(logits(loaded[0].model, ids), own.logits, atol=1e-5)
    with pytest.raises(BadSpec, match="do not add up"), loaded[0].base.using(shares={names[1]: 0.5}):
        pass
    with loaded[0].lock:  # the lock was released
        assert torch.equal(logits(loaded[0].model, ids), own.logits)


def test_an_adapter_leaves_with_its_run_and_the_base_with_the_last(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_runs, "_bases", weakref.WeakValueDictionary())  # panels of other tests may hold a base
    root = shutil.copytree(finished[0], tmp_path / "runs")
    first, second = (load_run(Run(root / finished[1][name])) for name in ("lora", "own"))
    model, name = weakref.ref(first.model), second.injection.name
    assert {first.injection.name, name} <= set(injections(first.model))
    del second
    free_memory()
    with first.lock:
        assert name not in injections(first.model)
    del first
    gc.collect()
    assert model() is None


def test_what_changes_the_base_is_not_shared(finished: Finished, tmp_path: Path) -> None:
    spec = find_run(finished[1]["lora"], finished[0]).spec
    changes: list[dict[str, Any]] = [{"dtype": "bf16"}, {"base": "nano-moe"}, {"tokens": ["<new>"]}]
    for changed in changes:
        assert base_key(RunSpec.parse({**spec.model_dump(mode="json"), **changed})) != base_key(spec)
    assert base_key(small("prefix", seed=3)) == base_key(spec)
    tokens = run(small("lora", tokens=["<new>"], eval={"tasks": ["mini-bool"], "rows": 1}), root=tmp_path)
    one, other = load_run(find_run(finished[1]["lora"], finished[0])), load_run(tokens)
    assert one.model is not other.model
    assert "<new>" not in one.tokenizer.get_vocab()


def test_a_run_without_an_adapter_is_refused(tmp_path: Path) -> None:
    done = run(small("lora", adapter=None, eval={"tasks": ["mini-bool"], "rows": 1}), root=tmp_path)
    with pytest.raises(BadSpec, match="has no adapter"):
        load_run(done)
    shutil.rmtree(done.folder)
    with pytest.raises(OSError, match=r"spec\.json"):
        load_run(done)
