"""Checkpoints: interrupted runs resume to the same bits, and damaged checkpoints are skipped."""

import errno
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import required
from records import timeless

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.errors import BadSpec, CannotWrite, TrainingFailed
from llm_adapters_lab.events import Event, Scoring, Step, Validated
from llm_adapters_lab.models import random_models
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run, list_runs
from llm_adapters_lab.runs.recovery import checkpointing
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training import checkpoints
from llm_adapters_lab.training.checkpoints import Checkpoint, TrainingState

SMALL: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4, "dropout": 0.1},
    "data": {"task": "mini-math", "rows": 12, "validation": 4},
    "train": {"batch": 4, "micro_batch": 2, "max_steps": 6, "learning_rate": 1e-2, "evaluate_every": 2},
    "eval": {"tasks": ["mini-bool"], "rows": 4, "batch": 2, "max_new_tokens": 3},
}


def small(**changes: Any) -> RunSpec:
    return RunSpec.parse({**SMALL, **changes})


def stopped(spec: RunSpec, root: Path, when: Callable[[Event], bool]) -> Run:
    stop = threading.Event()
    record = run(spec, root=root, stop=stop, on_event=lambda event: stop.set() if when(event) else None)
    assert not record.done
    return record


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a run that was not interrupted."""
    return timeless(run(small(), root=tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("once")
    return stopped(small(train={**SMALL["train"], "checkpoint_every": 1}), root, at_step(4))


@pytest.fixture
def interrupted(once: Run, tmp_path: Path) -> Run:
    """A run with the checkpoints of steps 3 and 4."""
    shutil.copytree(once.folder, tmp_path / once.id)
    return Run(tmp_path / once.id)


def at_step(number: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Step) and event.step == number


@pytest.mark.parametrize("kind", sorted(all_adapters()))
def test_a_stopped_run_resumes_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    fields = {"type": kind, **required(kind)} | (
        {"dropout": 0.1} if "dropout" in all_adapters()[kind].config.model_fields else {}
    )
    spec = small(adapter=fields)
    whole = run(spec, root=tmp_path / "whole")
    record = stopped(spec, tmp_path / "parts", at_step(3))
    assert checkpoints.steps(record.folder) == [3]
    stopped(spec, tmp_path / "parts", at_step(4))
    stopped(spec, tmp_path / "parts", lambda event: isinstance(event, Scoring))
    assert checkpoints.steps(record.folder) == []
    assert [e["step"] for e in record.events("Step")] == [1, 2, 3, 4, 5, 6]
    assert run(spec, root=tmp_path / "parts").done
    assert timeless(record) == timeless(whole)
    assert [(e["stage"], e["step"]) for e in record.events("Resumed")] == [
        ("training", 3),
        ("training", 4),
        ("scoring", 0),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": {"type": "lora", "init": "pissa", "scale": "learned"}},
        {"adapter": {"type": "prefix", "mlp": 16}},
        {"adapter": {"type": "p-tuning", "encoder": "lstm"}},
        {"train": {**SMALL["train"], "weight_decay": 0.1, "schedule": "cosine", "warmup": 3, "probe_every": 2}},
        {"train": {**SMALL["train"], "gradient_checkpointing": True, "clip": 0.0}},
    ],
)
def test_variants_resume_to_the_same_bits(changes: dict[str, Any], tmp_path: Path) -> None:
    spec = small(**changes)
    whole, record = run(spec, root=tmp_path / "whole"), stopped(spec, tmp_path / "parts", at_step(3))
    assert run(spec, root=tmp_path / "parts").done
    assert timeless(record) == timeless(whole)


def test_after_a_stop_at_the_last_step_the_best_adapter_is_used(tmp_path: Path) -> None:
    plan = {**SMALL["train"], "learning_rate": 1.0, "schedule": "constant"}
    specs = [small(train=plan, seed=seed) for seed in range(8)]
    # Needs a run whose last validation is not its best; at this learning rate, every other one is such.
    whole = next(
        r for r in (run(s, root=tmp_path / "whole") for s in specs) if not list(r.events("Validated"))[-1]["best"]
    )
    record = stopped(whole.spec, tmp_path / "parts", lambda e: isinstance(e, Validated) and e.step == 6)
    assert run(whole.spec, root=tmp_path / "parts").done
    assert timeless(record) == timeless(whole)


def test_the_checkpoint_interval_changes_neither_result_nor_id(tmp_path: Path, whole: dict[str, Any]) -> None:
    often = small(train={**SMALL["train"], "checkpoint_every": 1})
    assert often.id == small().id
    assert (
        RunSpec.parse({"adapter": "lora", "train": {"checkpoint_every": 3}}).id == RunSpec(adapter={"type": "lora"}).id
    )
    seen: list[list[int]] = []
    folder = tmp_path / "often" / often.id
    record = run(often, root=tmp_path / "often", on_event=lambda event: seen.append(checkpoints.steps(folder)))
    assert [4, 5] in seen
    assert max(map(len, seen)) == checkpoints.KEPT
    assert timeless(record) == whole
    assert not list(folder.glob("checkpoints/*"))


def test_checkpoints_are_written_by_time_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointing, "SECONDS", 0.0)
    monkeypatch.setattr(checkpointing, "SHARE", 1e9)
    record = Run(tmp_path / small().id)
    seen: list[int] = []
    run(small(), root=tmp_path, on_event=lambda event: seen.extend(checkpoints.steps(record.folder)))
    assert {1, 2, 3, 4, 5} <= set(seen)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def other(path: Path) -> None:
    path.write_text("{}", encoding="utf-8")


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "flipped": ("state.safetensors", flip),
    "truncated": ("state.safetensors", cut),
    "missing": ("state.safetensors", Path.unlink),
    "facts flipped": ("state.json", flip),
    "no facts": ("state.json", Path.unlink),
    "torn manifest": ("manifest.json", cut),
    "empty manifest": ("manifest.json", other),
    "no manifest": ("manifest.json", Path.unlink),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    interrupted: Run, name: str, tmp_path: Path, whole: dict[str, Any]
) -> None:
    record = interrupted
    assert checkpoints.steps(record.folder) == [3, 4]
    file, damage = DAMAGE[name]
    damage(record.folder / "checkpoints" / "00000004" / file)
    assert run(small(), root=tmp_path).done
    assert "The checkpoint of step 4 cannot be used" in next(record.events("Noticed"))["text"]
    assert next(record.events("Resumed"))["step"] == 3
    assert timeless(record) == whole


def test_without_a_usable_checkpoint_training_starts_again_with_a_warning(interrupted: Run, tmp_path: Path) -> None:
    record = interrupted
    for path in record.folder.glob("checkpoints/*/state.json"):
        flip(path)
    assert run(small(), root=tmp_path).done
    text = next(record.events("Noticed"))["text"]
    assert "step 4 cannot" in text and "step 3 cannot" in text and "starts again" in text
    assert not list(record.events("Resumed"))
    assert [e["step"] for e in record.events("Step")] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_is_not_used_with_a_shorter_log_or_by_another_training(interrupted: Run, tmp_path: Path) -> None:
    record = interrupted
    first = record.folder / "checkpoints" / "00000003"
    with (record.folder / "events.jsonl").open("rb+") as file:
        file.truncate(json.loads((first / "state.json").read_text(encoding="utf-8"))["log"])
    found, faults = checkpoints.newest(record.folder, {})
    assert found is not None and found.facts["step"] == 3
    assert "log of the run ends before it" in faults[0]
    found, faults = checkpoints.newest(record.folder, {"spec": "another"})
    assert found is None and "another spec" in faults[1]


@pytest.mark.parametrize("what", ["the base", "the train rows", "the test/mini-bool rows"])
def test_changed_rows_or_bases_are_refused_and_nothing_is_lost(interrupted: Run, what: str, tmp_path: Path) -> None:
    record = interrupted
    path = record.folder / "hashes.json"
    hashes = json.loads(path.read_text(encoding="utf-8"))
    (hashes if what == "the base" else hashes["data"])[what.split()[1]] = "0" * 64
    path.write_text(json.dumps(hashes), encoding="utf-8")
    before = sorted((p, p.read_bytes()) for p in record.folder.rglob("*") if p.is_file())
    with pytest.raises(BadSpec, match=f"{what} changed.*--fresh"):
        run(small(), root=tmp_path)
    assert sorted((p, p.read_bytes()) for p in record.folder.rglob("*") if p.is_file()) == before
    assert run(small(), root=tmp_path, fresh=True).done
    assert not list(record.events("Resumed"))


def test_fresh_reuses_nothing(interrupted: Run, tmp_path: Path) -> None:
    record = interrupted
    stop = threading.Event()
    stop.set()
    run(small(), root=tmp_path, fresh=True, stop=stop)
    assert not list(record.events("Step"))
    assert not list(record.folder.glob("checkpoints/*"))


def test_partial_files_of_a_killed_process_are_removed(interrupted: Run, tmp_path: Path, whole: dict[str, Any]) -> None:
    record = interrupted
    shutil.copytree(record.folder / "checkpoints" / "00000004", record.folder / "checkpoints" / "00000005.part")
    (record.folder / "spec.json12345678.part").write_text("{", encoding="utf-8")
    with (record.folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "St')
    assert run(small(), root=tmp_path).done
    assert timeless(record) == whole


@pytest.mark.filterwarnings("ignore:.*(invalid value|overflow).*:RuntimeWarning")
def test_when_training_diverges_the_last_finite_state_is_kept(tmp_path: Path) -> None:
    plan = {"batch": 4, "max_steps": 9, "epochs": 9.0, "learning_rate": 10.0, "clip": 0.0, "schedule": "constant"}
    spec = small(adapter={"type": "full-fine-tuning"}, train=plan)
    with pytest.raises(TrainingFailed, match=r"step 4 is (nan|inf); its rows begin with mini-.*/train/\d+, mini-"):
        run(spec, root=tmp_path)
    (record,) = list_runs(tmp_path)
    assert checkpoints.steps(record.folder) == [3]
    found, _ = checkpoints.newest(record.folder, {})
    assert found is not None
    assert all(bool(tensor.isfinite().all()) for name, tensor in found.tensors.items() if "random" not in name)
    assert [e["step"] for e in record.events("Step")] == [1, 2, 3]
    (event,) = record.events("Failed")
    assert (event["stage"], event["step"]) == ("training", 3)
    assert "would fail again" in event["advice"] and "after step 3 is kept in checkpoints/00000003" in event["advice"]
    assert "_check_finite" in event["traceback"]
    assert f'File "{Path(torch.__file__).parents[1]}' not in event["traceback"]
    with pytest.raises(TrainingFailed, match="step 4"):
        run(spec, root=tmp_path)
    assert [e["step"] for e in record.events("Step")] == [1, 2, 3]
    assert next(record.events("Resumed"))["step"] == 3


def test_a_state_is_saved_and_restored_to_the_bit(tmp_path: Path) -> None:
    def made() -> tuple[Any, TrainingState]:
        model = random_models.tiny("tiny:llama")
        torch.manual_seed(0)
        injection = inject(model, RunSpec.parse({"adapter": "lora"}).adapter)
        optimizer = torch.optim.AdamW(injection.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        return model, TrainingState(
            injection, optimizer, scaler, {"all": [p.detach().clone() for p in injection.parameters()]}
        )

    model, state = made()
    scaled = state.scaler.scale(model(torch.tensor([[5, 6, 7]])).logits.square().mean())
    scaled.backward()
    state.scaler.step(state.optimizer)
    state.scaler.update(32.0)
    state.best = 0.25, state.injection.state_dict()
    state.step_done(1, 3, 0.5)
    taken = state.checkpoint()
    checkpoints.write(tmp_path, Checkpoint(taken.tensors, {**taken.facts, "log": 0}))
    drawn = torch.rand(3)
    (tmp_path / "events.jsonl").touch()
    found, faults = checkpoints.newest(tmp_path, {})
    assert found is not None and not faults
    _, again = made()
    again.restore(found)
    assert torch.equal(torch.rand(3), drawn)
    assert (again.step, again.tokens, again.seconds, again.best and again.best[0]) == (1, 3, 0.5, 0.25)
    assert again.scaler.get_scale() == 32.0
    assert again.checkpoint().tensors.keys() == taken.tensors.keys()
    assert all(
        torch.equal(value, taken.tensors[key])
        for key, value in again.checkpoint().tensors.items()
        if "random" not in key
    )


def test_a_disk_error_is_reported_as_such(tmp_path: Path, whole: dict[str, Any]) -> None:
    def full(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CannotWrite, match="No space left.*Make room"):
        run(small(train={**SMALL["train"], "checkpoint_every": 2}), root=tmp_path, on_event=full)
    (record,) = list_runs(tmp_path)
    summary = record.summary
    assert (summary["status"], summary["stage"], summary["step"]) == ("failed", "training", 2)
    assert summary["advice"] == "Run the same spec again: it resumes after step 2."
    assert run(small(), root=tmp_path).done
    assert timeless(record) == whole
