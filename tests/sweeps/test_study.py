"""Studies: every adapter has the losses, gradients and record of a run of its own, or is trained separately."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from fast_path_cases import Small, adapted, samples
from sweep_cases import SMALL, parsed

from llm_adapters_lab.cli.sweep_commands import Where
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import Event, FellBack, Noticed, Step
from llm_adapters_lab.models import random_models
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.forecast.memory import Peak
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.runs.status import state
from llm_adapters_lab.sweeps.executors import EXECUTORS, Studies
from llm_adapters_lab.sweeps.spec import Sweep
from llm_adapters_lab.sweeps.studies import study
from llm_adapters_lab.sweeps.sweeping import sweep
from llm_adapters_lab.training import joint
from llm_adapters_lab.training.joint import JointTrainer, Member
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.spec import TrainSpec

MIX: list[dict[str, Any]] = [
    {"type": "lora", "rank": 4, "at": "q,v,down"},
    {"type": "dora", "rank": 2, "at": "attn+mlp"},
    {"type": "series", "bottleneck": 8},
    {"type": "parallel", "bottleneck": 4, "at": "attn"},
    {"type": "ia3"},
    {"type": "krona", "at": "v@-1"},
    {"type": "lora", "rank": 2, "at": "mlp.in"},
]
STEPS = 4


def crowd(
    family: str, mix: list[dict[str, Any]], plan: dict[str, Any], tokens: int = 4096, change: Any = None
) -> tuple[list[list[float]], list[dict[str, torch.Tensor]], list[str], list[Any]]:
    """Train adapters side by side; return losses, final tensors and fallbacks of each, and the sizes of all passes."""
    model, first = adapted(family)
    first.eject()
    trainer, calls = JointTrainer(model, tokens), []
    model.get_input_embeddings().register_forward_hook(lambda m, x, y: calls.append((m.training, x[0].numel())))
    if change:
        change(model)
    going = []
    for number, fields in enumerate(mix):
        trainer.activate()
        injection = shaken(model, fields, f"study{number}")
        spec = TrainSpec(learning_rate=1e-2 / (1 + number), batch=6, max_steps=STEPS, warmup=number % 2, **plan)
        member = Member(trainer, model, injection, samples(), spec, 0)
        going.append((injection, train(model, injection, samples(), spec, gradients=member)))
    trainer.start()
    losses: list[list[float]] = [[] for _ in mix]
    warned: list[str] = [""] * len(mix)
    for step in range(STEPS):
        trainer.begin_step([injection.name for injection, _ in going], step)
        for number, (_, events) in enumerate(going):
            while not isinstance(event := next(events), Step):
                warned[number] += f"{event.setting}: {event.reason}\n" if isinstance(event, FellBack) else ""
            losses[number].append(event.loss)
    for _, events in going:
        list(events)
    trainer.finish()
    return losses, [injection.state_dict() for injection, _ in going], warned, [n for training, n in calls if training]


def shaken(model: Any, fields: dict[str, Any], name: str) -> Any:
    torch.manual_seed(1)
    injection = inject(model, get_adapter(fields["type"]).config(**fields), name=name)
    with torch.no_grad():
        for p in injection.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return injection


def alone(family: str, mix: list[dict[str, Any]], plan: dict[str, Any]) -> tuple[Any, Any]:
    losses, ends = [], []
    for number, fields in enumerate(mix):
        model, first = adapted(family)
        first.eject()
        injection = shaken(model, fields, "default")
        spec = TrainSpec(learning_rate=1e-2 / (1 + number), batch=6, max_steps=STEPS, warmup=number % 2, **plan)
        losses.append([e.loss for e in train(model, injection, samples(), spec) if isinstance(e, Step)])
        ends.append(injection.state_dict())
    return losses, ends


def agree(found: Any, expected: Any) -> None:
    for (mine, own), (theirs, other) in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
        assert all(torch.allclose(tensor, other[key], atol=1e-4) for key, tensor in own.items())


# Shared passes


PLANS: list[dict[str, Any]] = [
    {},
    {"packing": False},
    {"packing": False, "label_head": False},
    {"micro_batch": 2},
    {"gradient_checkpointing": True},
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gptj"])
def test_in_a_shared_pass_every_adapter_has_the_losses_and_gradients_of_its_own(
    family: str, plan: dict[str, Any]
) -> None:
    mix = MIX[:-1] if family in ("bloom", "gptj") else MIX
    losses, ends, warned, calls = crowd(family, mix, plan)
    agree((losses, ends), alone(family, mix, plan))
    assert not any("study" in line for line in warned)
    # The first step is taken separately, all further ones in shared passes.
    passes = 3 if "micro_batch" in plan else 1
    assert len(calls) == passes * (len(mix) + STEPS - 1)


def test_slices_that_go_to_the_wrong_adapter_would_be_noticed() -> None:
    losses, _, _, _ = crowd("llama", MIX[:2], {})
    other, _, _, _ = crowd("llama", MIX[1::-1], {})
    assert losses[0] != pytest.approx(other[0], abs=1e-4)


def test_a_shared_pass_respects_the_token_limit() -> None:
    full = crowd("llama", [MIX[0]] * 7, {"packing": False})[3]
    few = crowd("llama", [MIX[0]] * 7, {"packing": False}, tokens=3 * max(full[:7]))[3]
    assert len(full) == 7 + STEPS - 1
    assert len(few) == 7 + 3 * (STEPS - 1)  # 3 + 3 + 1 adapters, at most three per pass
    assert max(few) <= 3 * max(full[:7])
    assert len(crowd("llama", [MIX[0]] * 3, {}, tokens=1)[3]) == 3 * STEPS


TURNS: dict[str, dict[str, Any]] = {
    "acts on the whole model": {"type": "prefix", "virtual_tokens": 3},
    "replaces parameters of the base": {"type": "norm-tuning"},
    "looks at earlier tokens": {"type": "conv", "bottleneck": 4},
    "runs every batch several times": {"type": "series", "bottleneck": 4, "split": {"parts": 2}},
    "draws its dropout": {"type": "lora", "rank": 4, "dropout": 0.2},
}


def test_adapters_that_cannot_share_a_pass_are_trained_separately_with_a_reason() -> None:
    mix = [MIX[0], *TURNS.values(), MIX[2]]
    losses, ends, warned, _ = crowd("llama", mix, {})
    assert warned[0] == warned[-1] == ""
    for line, reason in zip(warned[1:-1], TURNS, strict=True):
        assert "study: " in line and reason in line and "trained separately" in line
    expected = alone("llama", mix, {})
    for number in (0, 1, 2, 3, 6):  # the others draw random numbers, which only whole runs keep separate
        agree(([losses[number]], [ends[number]]), ([expected[0][number]], [expected[1][number]]))


def test_a_base_with_dropout_is_shared_by_none() -> None:
    def drop(model: Any) -> None:
        model.transformer.drop.p = 0.1

    warned = crowd("gpt2", MIX[:2], {}, change=drop)[2]
    assert all("transformer.drop draws its dropout" in line for line in warned)


def test_an_adapter_whose_losses_change_in_a_shared_pass_is_detected_by_a_trial() -> None:
    model, injection = adapted("llama")
    injection.eject()
    trainer = JointTrainer(model, 4096)
    plan = TrainSpec(learning_rate=1e-2, batch=6, max_steps=2, packing=False)
    members = []
    for number in range(2):
        trainer.activate()
        injection = shaken(model, {"type": "lora", "rank": 2, "at": "down"}, f"study{number}")
        members.append(Member(trainer, model, injection, samples(), plan, 0))
    # As if it depended on the other adapters in the model.
    for adapter in members[1].injection.adapters.values():
        adapter.forward = lambda x, y: y * (2.0 if len(model.__dict__["injections"]) > 1 else 1.0)
    trainer.start()
    assert members[0].obstacle == ""
    assert "a shared pass computes losses that are up to" in members[1].obstacle


@pytest.mark.parametrize("backward", [False, True])
def test_out_of_memory_makes_passes_smaller_and_changes_no_loss(backward: bool) -> None:
    def narrow(model: Any) -> None:
        layer = model.model.layers[0]
        layer.post_attention_layernorm = Small(layer.post_attention_layernorm, 150, backward)

    losses, ends, warned, calls = crowd("llama", MIX[:4], {"packing": False}, tokens=1000, change=narrow)
    agree((losses, ends), alone("llama", MIX[:4], {"packing": False}))
    assert "study: out of memory in a pass shared by 4; now with at most 500 tokens." in warned[0]
    assert max(calls[-2:]) <= 150


HIGH: list[dict[str, Any]] = [
    {"type": "lora", "rank": 4, "at": "attn@1"},
    {"type": "series", "bottleneck": 4, "at": "mlp@1"},
    {"type": "lora", "rank": 2, "at": "mlp@1"},
]


@pytest.mark.parametrize("plan", [{}, {"packing": False}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("family", [*random_models.TINY, "mixtral"])
def test_layers_below_all_adapters_run_once_for_all_of_them(family: str, plan: dict[str, Any]) -> None:
    seen: list[list[int]] = [[], []]
    mix = HIGH[:1] * 2 if family == "mixtral" else HIGH

    def watch(model: Any) -> None:
        for path, found in zip(Anatomy.of(model).layers, seen, strict=False):
            layer = model.get_submodule(path)
            layer.register_forward_hook(
                lambda layer, args, kwargs, out, found=found: found.append(
                    (out[0] if isinstance(out, tuple) else out).shape[:2].numel()
                ),
                with_kwargs=True,
            )

    losses, ends, warned, _ = crowd(family, mix, plan, change=watch)
    agree((losses, ends), alone(family, mix, plan))
    if any("once, they compute" in line for line in warned):
        assert family in ("bloom", "falcon", "mpt"), warned
        return
    assert not any("study" in line for line in warned)
    below, above = (found[-1] for found in seen)
    assert above == len(mix) * below


def test_a_shared_pass_that_does_not_pay_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "SMALL", 10)
    losses, ends, warned, _ = crowd("llama", HIGH, {}, tokens=0)
    agree((losses, ends), alone("llama", HIGH, {}))
    assert not any("study" in line for line in warned)  # half of the layers run once: 1.29
    losses, ends, warned, _ = crowd("llama", MIX[:3], {}, tokens=0)
    agree((losses, ends), alone("llama", MIX[:3], {}))
    assert all("one pass for 3 adapters would be 1.00 times as fast; they take turns" in line for line in warned)


def test_after_a_failed_shared_pass_adapters_are_trained_separately() -> None:
    def brittle(model: Any) -> None:
        def refuse(module: Any, args: Any) -> None:
            if model.training and args[0].numel() > 100:
                raise RuntimeError("too wide")

        model.get_input_embeddings().register_forward_pre_hook(refuse)

    losses, ends, warned, _ = crowd("llama", MIX[:3], {}, change=brittle)
    agree((losses, ends), alone("llama", MIX[:3], {}))
    assert all("a shared pass failed (RuntimeError: too wide)" in line for line in warned)


def test_a_pass_shared_by_eight_needs_the_memory_of_one_run_with_as_many_tokens() -> None:
    def most(count: int, rows: int) -> int:
        model = random_models.tiny("tiny:llama")
        trainer = JointTrainer(model, 10**6)
        plan = TrainSpec(learning_rate=1e-2, batch=rows, max_steps=2, share_prefix=False)
        going = []
        for number in range(count):
            trainer.activate()
            injection = shaken(model, {"type": "lora", "rank": 2, "at": "q,v"}, f"study{number}")
            member = Member(trainer, model, injection, samples(64), plan, 0)
            going.append(train(model, injection, samples(64), plan, gradients=member))
        trainer.start()
        for step in range(2):
            trainer.begin_step([f"study{number}" for number in range(count)] if count > 1 else [], step)
            if step:
                with Peak(list(model.parameters())) as peak:
                    for events in going:
                        while not isinstance(next(events), Step):
                            pass
            else:
                for events in going:
                    while not isinstance(next(events), Step):
                        pass
        return peak.most

    assert most(8, 8) <= 1.3 * most(1, 64)


# The records


def specs(mix: list[dict[str, Any]], **changes: Any) -> list[RunSpec]:
    train = {"batch": 4, "max_steps": 5, **changes.pop("train", {})}
    rates = [{**train, "learning_rate": 3e-3 * (1 + n % 3), "warmup": n % 2} for n in range(len(mix))]
    fields = {**SMALL, "data": {"task": "mini-math", "rows": 16, **changes.pop("data", {})}, **changes}
    return [RunSpec.parse({**fields, "adapter": a, "train": rate}) for a, rate in zip(mix, rates, strict=True)]


def summary(record: Run) -> dict[str, Any]:
    found = record.summary
    for key in ("seconds", "tokens_per_second", "peak_memory_bytes", "loss_first", "loss_last"):
        del found["train"][key]
    return found


def equal(record: Run, other: Run, resumed: bool = False) -> None:
    """Compare the record of a run in a study with one of the run alone."""
    assert record.done and other.done and record.id == other.id
    for name in ("Step", "Validated"):
        mine, theirs = ([e["loss"] for e in r.events(name)] for r in (record, other))
        assert mine == pytest.approx(theirs, abs=1e-5)
    extra = {"FellBack", *(["Resumed"] if resumed else [])}
    kinds = [[e["event"] for e in r.events() if e["event"] not in extra] for r in (record, other)]
    assert kinds[0] == kinds[1]
    assert summary(record) == summary(other)
    assert list(record.predictions()) == list(other.predictions())
    assert {p.name for p in record.folder.rglob("*")} == {p.name for p in other.folder.rglob("*")}
    for name in ("spec.json", "hashes.json", "adapter/adapter.json", "adapter/base.json"):
        assert (record.folder / name).read_bytes() == (other.folder / name).read_bytes()


def test_every_record_is_as_if_its_spec_had_been_run_alone(tmp_path: Path) -> None:
    masked = {"type": "lora", "rank": 4, "sparse": {"score": "snip", "warmup": 2}}
    rounded = {"type": "series", "bottleneck": 8, "quantize": {"bits": 2}}
    chosen = specs([*MIX[:5], masked, rounded, *TURNS.values()], data={"validation": 4}, train={"evaluate_every": 2})
    heard: dict[str, list[Event]] = {}
    found = study(chosen, root=tmp_path / "study", on_event=lambda r, e: heard.setdefault(r.id, []).append(e))
    assert [record.id for record in found] == [spec.id for spec in chosen]
    for number, (spec, record) in enumerate(zip(chosen, found, strict=True)):
        equal(record, run(spec, root=tmp_path / "alone"))
        warned = [e for e in heard[record.id] if isinstance(e, FellBack) and e.setting == "study"]
        assert bool(warned) == (number >= 7)
        assert not list(record.folder.glob("*lock*"))
    before = {record.id: (record.folder / "summary.json").stat().st_mtime_ns for record in found}
    study(chosen, root=tmp_path / "study", on_event=lambda r, e: pytest.fail("a finished run was done again"))
    assert before == {record.id: (record.folder / "summary.json").stat().st_mtime_ns for record in found}


def test_a_stopped_study_with_a_run_ahead_of_the_others_resumes_to_the_same_result(tmp_path: Path) -> None:
    chosen = specs([*MIX[:3], TURNS["draws its dropout"]])
    stop, ahead = threading.Event(), threading.Event()

    def until(step: int, event: threading.Event) -> Any:
        return lambda *given: event.set() if getattr(given[-1], "step", 0) == step else None

    run(chosen[0], root=tmp_path / "study", stop=ahead, on_event=until(4, ahead))
    found = study(chosen, root=tmp_path / "study", stop=stop, on_event=until(2, stop))
    assert not any(record.done for record in found)
    assert {state(record).name for record in found} == {"stopped"}
    steps = [[e["step"] for e in record.events("Step")] for record in found]
    assert steps == [[1, 2, 3, 4], [1, 2], [1], [1]]
    for spec, record in zip(chosen, study(chosen, root=tmp_path / "study"), strict=True):
        assert [e["step"] for e in record.events("Step")] == [1, 2, 3, 4, 5]
        equal_losses(record, run(spec, root=tmp_path / "alone"))


def test_after_an_interrupt_the_others_are_saved(tmp_path: Path) -> None:
    chosen = specs(MIX[:3])

    def interrupt(record: Run, event: Event) -> None:
        if record.id == chosen[1].id and isinstance(event, Step) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(chosen, root=tmp_path / "study", on_event=interrupt)
    found = [Run(tmp_path / "study" / spec.id) for spec in chosen]
    assert [state(record).name for record in found] == ["stopped", "failed", "stopped"]
    assert [len(list(record.events("Step"))) for record in found] == [3, 3, 2]
    for spec, record in zip(chosen, study(chosen, root=tmp_path / "study"), strict=True):
        equal_losses(record, run(spec, root=tmp_path / "alone"))


def equal_losses(record: Run, other: Run) -> None:
    mine, theirs = ([e["loss"] for e in r.events("Step")] for r in (record, other))
    assert record.done and other.done
    assert mine == pytest.approx(theirs, abs=1e-5)
    assert list(record.predictions()) == list(other.predictions())


@pytest.mark.filterwarnings("ignore:.*invalid value.*:RuntimeWarning")
def test_a_failing_run_does_not_stop_the_others(tmp_path: Path) -> None:
    wild = {"type": "lora", "rank": 2, "alpha": 3e38}
    chosen = specs([MIX[0], wild, MIX[2]])
    heard: list[tuple[str, str]] = []
    found = study(
        chosen,
        root=tmp_path / "study",
        on_event=lambda r, e: heard.append((r.id, e.text)) if isinstance(e, Noticed) else None,
    )
    assert [record.done for record in found] == [True, False, True]
    assert state(found[1]).name == "failed" and "TrainingFailed" in state(found[1]).reason
    assert [name for name, _ in heard] == [found[1].id] and "the others continue" in heard[0][1]
    for number in (0, 2):
        equal(found[number], run(chosen[number], root=tmp_path / "alone"))


def test_incompatible_specs_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = specs(MIX[:2])
    for changes, words in (
        ({"seed": 1}, "seed = 0 here and 1 in"),
        ({"base": "smollm2-135m"}, "base = 'nano' here and 'smollm2-135m' in"),
        ({"dtype": "bf16"}, "dtype = 'auto' here and 'bf16' in"),
        ({"quantization": "nf4"}, "quantization = 'none' here and 'nf4' in"),
        ({"device_map": "auto"}, "device_map = 'none' here and 'auto' in"),
        ({"data": {"task": "mini-math", "rows": 12}}, "data.rows = 16 here and 12 in"),
        ({"train": {"batch": 8, "max_steps": 5}}, "train.batch = 4 here and 8 in"),
        ({"adapter": None}, "adapter: null"),
        ({"train": {"batch": 4, "max_steps": 5, "compile": True}}, "train.compile"),
    ):
        other = RunSpec.parse({**two.model_dump(mode="json"), **changes})
        with pytest.raises(BadSpec, match=words):
            study([one, other], root=tmp_path / "runs")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadSpec, match="one process"):
        study([one, two], root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_study_of_one_is_a_run(tmp_path: Path) -> None:
    (spec,) = specs(MIX[:1])
    bare = RunSpec.parse({**spec.model_dump(mode="json"), "adapter": None})
    assert study([], root=tmp_path) == []
    assert all(record.done for one in (spec, bare) for record in study([one, one], root=tmp_path))


def test_a_killed_study_is_resumed(tmp_path: Path) -> None:
    chosen = specs(MIX[:3], train={"max_steps": 30, "checkpoint_every": 1})
    (tmp_path / "specs.json").write_text(json.dumps([spec.model_dump(mode="json") for spec in chosen]))
    code = (
        "import json, sys; from llm_adapters_lab import RunSpec, study; "
        "study([RunSpec.parse(s) for s in json.load(open(sys.argv[1]))], root=sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "specs.json"), str(tmp_path / "study")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        end = time.monotonic() + 100
        while len(list(tmp_path.glob("study/*/checkpoints/*[1-9]/manifest.json"))) < 3:
            assert time.monotonic() < end and child.poll() is None
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
    found = study(chosen, root=tmp_path / "study")
    for spec, record in zip(chosen, found, strict=True):
        assert "Resumed" in {e["event"] for e in record.events()}
        equal_losses(record, run(spec, root=tmp_path / "alone"))


# Sweeps


def test_a_sweep_of_studies_has_the_results_of_single_runs(tmp_path: Path) -> None:
    what = parsed(**{"list": [{"adapter.at": "q"}, {"adapter.at": "v"}, {"adapter.at": "mlp"}], "seeds": [0, 1]})
    where = Studies()
    ended = sweep(what, root=tmp_path / "study", executor=where, every=0.0)
    assert [standing.state.name for standing in ended] == ["finished"] * 6
    for mine, theirs in zip(ended, sweep(what, root=tmp_path / "local"), strict=True):
        equal(mine.run, theirs.run)
    assert EXECUTORS["study"] is Studies and "study" in get_args(Where)
    with pytest.raises(BadSpec, match="jobs = 2"):
        Studies(2)


def test_a_sweep_of_studies_tries_a_failing_run_once(tmp_path: Path) -> None:
    base = {**SMALL, "train": {**SMALL["train"], "gradient_checkpointing": True}}
    wild = {"type": "prefix", "virtual_tokens": 2}  # gradient checkpointing drops its cache
    what = Sweep.parse({"spec": base, "list": [{"adapter.rank": 2}, {"adapter": wild}, {"adapter.rank": 4}]})
    ended = sweep(what, root=tmp_path, executor=Studies(), every=0.0)
    assert [standing.state.name for standing in ended] == ["finished", "failed", "finished"]
    assert "gradient_checkpointing" in ended[1].state.reason
    assert len(list(ended[1].run.events("Failed"))) == 1


def test_an_adapter_at_experts_is_trained_separately(tmp_path: Path) -> None:
    fields = {"base": "nano-moe", "data": {"task": "mini-math", "rows": 8}, "train": {"batch": 4, "max_steps": 2}}
    fields["eval"] = {"tasks": []}
    chosen = [
        RunSpec.parse({**fields, "adapter": {"type": "lora", "rank": 2, "at": at}}) for at in ("q", "experts", "o")
    ]
    found = study(chosen, root=tmp_path / "study")
    assert [len(list(record.events("FellBack"))) for record in found] == [0, 1, 0]
    assert "at experts" in next(found[1].events("FellBack"))["reason"]
    for record, one in zip(found, chosen, strict=True):
        alone = run(one, root=tmp_path / "alone")
        assert [e["loss"] for e in record.events("Step")] == pytest.approx([e["loss"] for e in alone.events("Step")])
