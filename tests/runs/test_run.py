"""The one entry point: what a run leaves behind, and what a bad one does not."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_adapters_lab.errors import BadRow, BadSpec, DataUnavailable, EmptyPlacement, LabError, ModelUnavailable
from llm_adapters_lab.events import Event, Step
from llm_adapters_lab.models import loading
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.record import Run, find_run, list_runs
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec

SMALL: dict[str, Any] = {
    "base": "nano",
    "adapter": {"type": "lora", "rank": 4},
    "data": {"task": "mini-math", "rows": 24, "validation": 8},
    "train": {"batch": 8, "max_steps": 3, "learning_rate": 1e-3},
    "eval": {"tasks": ["mini-addsub", "mini-bool"], "rows": 5, "batch": 3, "max_new_tokens": 4},
}


def small(**changes: Any) -> RunSpec:
    return RunSpec.parse({**SMALL, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(small(), root=tmp_path_factory.mktemp("runs"))


def test_the_summary_has_every_key_with_a_sensible_value(finished: Run) -> None:
    summary = finished.summary
    keys = {"id", "status", "adapter", "base", "trainable_parameters", "base_parameters", "scores", "train"}
    assert set(summary) == keys | {"adapter_bytes", "environment", "leaks", "hashes", "sites", "rows"}
    assert {name: leak["total"] for name, leak in summary["leaks"].items()} == {"mini-addsub": 5, "mini-bool": 5}
    assert summary["id"] == finished.id == small().id
    assert summary["status"] == "finished"
    assert summary["adapter"]["rank"] == 4
    assert 0 < summary["trainable_parameters"] < 0.08 * summary["base_parameters"]
    assert summary["adapter_bytes"] == 4 * summary["trainable_parameters"]
    assert set(summary["scores"]) == {"mini-addsub", "mini-bool"}
    for score in summary["scores"].values():
        assert score["total"] == 5
        assert score["accuracy"] == score["correct"] / 5
        assert 0 <= score["low"] <= score["accuracy"] <= score["high"] <= 1
        assert {"chance", "majority", "in_format"} <= set(score)
    train = summary["train"]
    assert train["steps"] == 3
    assert train["rows"] == 24
    wanted = {"tokens", "seconds", "tokens_per_second", "loss_first", "loss_last", "peak_memory_bytes"}
    assert all(train[key] > 0 for key in wanted)
    assert {"python", "torch", "transformers", "device", "threads"} <= set(summary["environment"])


def test_the_record_holds_spec_events_predictions_and_adapter(finished: Run) -> None:
    assert finished.spec == small()
    kinds = [e["event"] for e in finished.events()]
    assert kinds[0] == "Started"
    assert kinds[-1] == "Finished"
    assert kinds.count("Step") == 3
    assert kinds.count("Validated") == 1
    predictions = list(finished.predictions())
    assert len(predictions) == len({(p["task"], p["id"]) for p in predictions}) == 10
    for task, score in finished.summary["scores"].items():
        assert score["correct"] == sum(p["correct"] for p in predictions if p["task"] == task)
    assert {f.name for f in (finished.folder / "adapter").iterdir()} == {
        "adapter.json",
        "adapter.safetensors",
        "base.json",
    }


def test_a_finished_run_is_returned_and_not_repeated(finished: Run) -> None:
    before = (finished.folder / "summary.json").stat().st_mtime_ns
    heard: list[Event] = []
    again = run(small(), root=finished.folder.parent, on_event=heard.append)
    assert again == finished
    assert heard == []
    assert (finished.folder / "summary.json").stat().st_mtime_ns == before


def test_a_repeated_run_gives_the_same_numbers_to_the_bit(finished: Run, tmp_path: Path) -> None:
    def timeless(record: Run) -> tuple[Any, ...]:
        summary = record.summary
        for key in ("seconds", "tokens_per_second", "peak_memory_bytes"):
            del summary["train"][key]
        return summary, [e["loss"] for e in record.events("Step")], list(record.predictions())

    again = run(small(), root=tmp_path)
    assert timeless(again) == timeless(finished)
    name = "adapter/adapter.safetensors"
    assert (again.folder / name).read_bytes() == (finished.folder / name).read_bytes()


def test_restore_gives_the_trained_model(finished: Run) -> None:
    from llm_adapters_lab.evaluation.predictions import evaluate
    from llm_adapters_lab.tasks.registry import get_task

    base, injection = restore(finished)
    assert injection is not None
    task = get_task("mini-addsub")
    rows = task.load("test", None)[:5]
    again = list(evaluate(base.model, base.tokenizer, task, rows, batch=3, max_new_tokens=4))
    stored = [p for p in finished.predictions() if p["task"] == "mini-addsub"]
    assert [p["text"] for p in again] == [p["text"] for p in stored]


def test_a_base_is_a_run_too(tmp_path: Path) -> None:
    record = run(small(adapter=None), root=tmp_path)
    assert record.summary["adapter"] is None
    assert record.summary["train"] is None
    assert record.summary["trainable_parameters"] == 0
    assert not (record.folder / "adapter").exists()
    assert restore(record)[1] is None


def test_stop_ends_after_the_step_and_the_same_call_starts_again(tmp_path: Path) -> None:
    stop = threading.Event()

    def listen(event: Event) -> None:
        if isinstance(event, Step):
            stop.set()

    record = run(small(), root=tmp_path, stop=stop, on_event=listen)
    assert not record.done
    assert record.summary == {"id": record.id, "status": "stopped"}
    assert len(list(record.events("Step"))) == 1
    with pytest.raises(BadSpec, match="no trained adapter"):
        restore(record)
    assert run(small(), root=tmp_path).done


def test_runs_are_found_by_the_beginning_of_their_id(finished: Run) -> None:
    root = finished.folder.parent
    assert find_run("nano-lora", root) == finished
    assert list_runs(root) == [finished]
    with pytest.raises(BadSpec, match="no run 'nano-x'"):
        find_run("nano-x", root)
    with pytest.raises(BadSpec, match="no runs yet"):
        find_run("x", root / "nowhere")


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    record = Run(tmp_path)
    (tmp_path / "events.jsonl").write_text('{"event": "Step", "step": 1}\n{"event": "St')
    assert [e["step"] for e in record.events()] == [1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"base": "nanoo"}, ModelUnavailable, "Did you mean 'nano'"),
        ({"base": "./nowhere"}, ModelUnavailable, "no model folder"),
        ({"base": "nowhere.gguf"}, ModelUnavailable, "no GGUF file"),
        ({"base": "nobody/nothing"}, ModelUnavailable, "nobody/nothing is not on this machine"),
        ({"base": "tiny:llamma"}, BadSpec, "Did you mean 'llama'"),
        ({"base": "tiny:llama"}, BadSpec, "no tokenizer"),
        ({"adapter": {"type": "lora", "at": "qkv"}}, EmptyPlacement, "roles: q, k, v, o, gate, up, down"),
        ({"adapter": {"type": "lora", "at": "q@99"}}, BadSpec, "layers 0 to"),
        ({"data": {"task": "boolq", "root": "./nowhere"}}, DataUnavailable, "boolq.*nowhere"),
        ({"data": {"task": "mini-math", "rows": 1, "validation": 10**6}}, BadSpec, "leaves none"),
    ],
)
def test_what_is_wrong_is_said_before_a_folder_is_made(
    changes: dict[str, Any], error: type[LabError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run(small(**changes), root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_malformed_row_is_named(tmp_path: Path) -> None:
    good = {"instruction": "Is it so?", "input": "", "output": "the correct answer is true", "answer": "true"}
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "train.json").write_text(json.dumps([good, {**good, "answer": "perhaps"}]))
    with pytest.raises(BadRow, match=r"train\.json.*2.*answer"):
        run(small(data={"task": "boolq", "root": str(tmp_path)}), root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_an_empty_test_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "test.json").write_text("[]")
    with pytest.raises(LabError, match="boolq"):
        run(small(adapter=None, eval={"tasks": ["boolq"], "root": str(tmp_path)}), root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_failure_is_recorded_with_its_stage(tmp_path: Path) -> None:
    changes = {"adapter": {"type": "prefix"}, "train": {**SMALL["train"], "gradient_checkpointing": True}}
    with pytest.raises(LabError, match="gradient_checkpointing"):
        run(small(**changes), root=tmp_path)
    (record,) = list_runs(tmp_path)
    assert record.summary["status"] == "failed"
    (event,) = record.events("Failed")
    assert event["stage"] == "training"
    assert "CannotInject" in event["error"]


@pytest.mark.parametrize(
    ("adapter", "rate"),
    [
        ({"type": "lora", "at": "attn+mlp"}, 0.005),
        ({"type": "series"}, 0.01),
        ({"type": "parallel"}, 0.01),
        ({"type": "prefix"}, 0.1),
    ],
)
def test_every_family_learns_one_batch_by_heart(adapter: dict[str, Any], rate: float, tmp_path: Path) -> None:
    plan = {"batch": 8, "max_steps": 60, "epochs": 60, "learning_rate": rate, "schedule": "constant"}
    record = run(small(adapter=adapter, data={"task": "mini-addsub", "rows": 8}, eval={}, train=plan), root=tmp_path)
    train = record.summary["train"]
    assert train["steps"] == 60
    assert train["loss_last"] < 0.3 * train["loss_first"]


def test_dtype_and_devices_follow_the_machine() -> None:
    if torch.cuda.is_available():
        pytest.skip("this test is about machines without a GPU")
    assert loading.pick_dtype("auto") == torch.float32
    assert loading.pick_dtype("bf16") == torch.bfloat16
