"""Trackers: the numbers of the record, in TensorBoard's files too, and nothing of them where none is asked for."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import small

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.run import run
from llm_adapters_lab.spec import RunSpec
from llm_adapters_lab.trackers import get_available_trackers, require


def tracked(*names: str, **changes: Any) -> RunSpec:
    train = {"batch": 8, "max_steps": 3, "learning_rate": 0.01, "evaluate_every": 2, "trackers": names}
    return small("lora", train=train, data={"task": "mini-math", "rows": 16, "validation": 2}, **changes)


def test_they_are_no_part_of_the_id() -> None:
    assert tracked("tensorboard").id == tracked().id
    assert tracked().train.trackers == ()


def test_an_unknown_one_is_refused_by_name() -> None:
    with pytest.raises(BadSpec, match="tensorbord"):
        tracked("tensorbord")


def test_one_that_is_not_installed_is_refused_before_any_work(tmp_path: Path) -> None:
    here = {str(name) for name in get_available_trackers()}
    missing = next((name for name in ("mlflow", "wandb", "trackio") if name not in here), None)
    if missing is None:
        pytest.skip("every tracker is installed here")
    with pytest.raises(BadSpec, match=f"`pip install {missing}`"):
        run(tracked(missing), root=tmp_path)
    assert not list(tmp_path.iterdir())
    require(())


def test_tensorboard_has_the_numbers_of_the_record(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = run(tracked("tensorboard", eval={"tasks": ["mini-bool"], "rows": 4, "batch": 4}), root=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {record.id}
    (folder,) = (record.folder / "trackers").iterdir()
    read = EventAccumulator(str(folder))
    read.Reload()
    for key in ("loss", "learning_rate", "gradient_norm", "tokens"):
        told = [(scalar.step, scalar.value) for scalar in read.Scalars(f"train/{key}")]
        assert told == [(e["step"], pytest.approx(e[key], rel=1e-6)) for e in record.events("Step")]
    told = [(scalar.step, scalar.value) for scalar in read.Scalars("validation/loss")]
    assert told == [(e["step"], pytest.approx(e["loss"], rel=1e-6)) for e in record.events("Validated")]
    (accuracy,) = read.Scalars("accuracy/mini-bool")
    assert accuracy.value == pytest.approx(record.summary["scores"]["mini-bool"]["accuracy"])
    assert [e["event"] for e in record.events("Failed")] == []


def test_none_are_begun_unasked(tmp_path: Path) -> None:
    assert not (run(tracked(eval={"tasks": []}), root=tmp_path).folder / "trackers").exists()
