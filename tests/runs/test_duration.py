"""How long a run will take: by the same run, the speed of its base, or its operations; how many steps it does."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from launches import small

from llm_adapters_lab.runs.forecast.duration import Duration, estimate, total
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.rows import scored_rows, training_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.spec import DataSpec
from llm_adapters_lab.training.batches import describe_steps
from llm_adapters_lab.training.spec import TrainSpec

DAY = 1_764_000_000.0


@dataclass
class Shelf:
    """A folder of runs that have finished, as far as an estimate reads them."""

    root: Path

    def add(self, spec: RunSpec, seconds: float, training: float, *, began: float | None = None) -> Run:
        """Add a run that trained on 40 tokens a row; one without a beginning was copied here."""
        run = Run(self.root / spec.id)
        run.folder.mkdir(parents=True)
        steps = spec.train.max_steps or 0
        tokens = 40 * spec.train.batch * steps
        run.write("spec.json", spec.model_dump(mode="json"))
        events = [{"event": "Started", "id": run.id}, {"event": "Finished", "id": run.id, "seconds": seconds}]
        run.log.write_text("".join(json.dumps(event) + "\n" for event in events))
        scores = {task: {"total": rows} for task, rows in scored_rows(spec).items()}
        train = {"seconds": training, "tokens": tokens, "steps": steps, "rows": 3000} if spec.adapter else None
        run.write("summary.json", {"id": run.id, "status": "finished", "scores": scores, "train": train})
        if began is not None:
            os.utime(run.folder / "spec.json", (began, began))
            os.utime(run.folder / "summary.json", (began + seconds, began + seconds))
        return run


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def spec(steps: int = 100, rows: int = 50, **fields: object) -> RunSpec:
    train = {"max_steps": steps, "batch": 16}
    given = {"train": train, "eval": {"tasks": ["mini-bool"], "rows": rows}, "data": {"task": "mini-math"}}
    return small(**(given | fields))


def test_the_same_run_takes_the_same_time(shelf: Shelf) -> None:
    shelf.add(spec(), 20.0, 15.0)
    shelf.add(spec(seed=1), 30.0, 25.0)
    found = estimate(spec(seed=2), shelf.root)
    assert (found.seconds, found.source) == (25.0, "same run")
    assert str(found) == "The median of 2 finished runs like this one."


def test_other_sizes_of_an_adapter_count_as_the_same(shelf: Shelf) -> None:
    shelf.add(spec(), 20.0, 15.0)
    found = estimate(spec(adapter={"type": "lora", "rank": 2}), shelf.root)
    assert (found.seconds, str(found)) == (20.0, "The time of a finished run like this one.")


def test_more_steps_and_rows_take_longer(shelf: Shelf) -> None:
    shelf.add(spec(100, 50), 20.0, 15.0)
    assert estimate(spec(200, 50), shelf.root) == Duration(
        pytest.approx(35.0), "same base", "By the speed of 1 finished run with the base nano."
    )
    assert estimate(spec(100, 100), shelf.root).seconds == pytest.approx(25.0)
    assert estimate(spec(100, 50, adapter=None), shelf.root).seconds == pytest.approx(5.0)


def test_the_start_of_a_run_is_told_apart_from_its_answers(shelf: Shelf) -> None:
    shelf.add(spec(100, 20), 15.0 + 2 + 20, 15.0)
    shelf.add(spec(100, 80), 15.0 + 2 + 80, 15.0)
    assert estimate(spec(100, 200), shelf.root).seconds == pytest.approx(15 + 2 + 200)


def test_runs_at_the_same_time_share_it(shelf: Shelf) -> None:
    for seed, began in enumerate((DAY, DAY, DAY + 500)):
        shelf.add(spec(seed=seed), 20.0, 16.0, began=DAY + began - DAY)
    assert estimate(spec(seed=7), shelf.root).seconds == 10.0  # of 10, 10 and 20 s
    assert estimate(spec(200, seed=7), shelf.root).seconds == pytest.approx(18.0)


def test_copied_runs_share_nothing(shelf: Shelf) -> None:
    for seed in range(3):
        run = shelf.add(spec(seed=seed), 20.0, 16.0)
        os.utime(run.folder / "spec.json", (DAY, DAY))
        os.utime(run.folder / "summary.json", (DAY, DAY))
    assert estimate(spec(seed=7), shelf.root).seconds == 20.0


def test_a_run_that_was_resumed_tells_nothing(shelf: Shelf) -> None:
    run = shelf.add(spec(), 20.0, 15.0)
    run.log.write_text('{"event": "Started", "id": "x"}\n' + run.log.read_text())
    assert estimate(spec(), shelf.root).source == "rough"


@pytest.mark.parametrize("name", ["summary.json", "spec.json", "events.jsonl"])
def test_a_damaged_record_is_left_out(shelf: Shelf, name: str) -> None:
    (shelf.add(spec(), 20.0, 15.0).folder / name).write_text("[1, 2")
    assert estimate(spec(), shelf.root).source == "rough"


def test_a_summary_that_changes_is_read_again(shelf: Shelf) -> None:
    run = shelf.add(spec(), 20.0, 15.0)
    assert estimate(spec(), shelf.root).seconds == 20.0
    run.log.write_text(run.log.read_text().replace("20.0", "40.0"))
    run.write("summary.json", {"id": run.id, "status": "finished", "scores": {}, "train": None})
    assert estimate(spec(), shelf.root).seconds == 40.0


def test_without_runs_the_figure_is_rough(tmp_path: Path) -> None:
    short, long = (estimate(spec(steps), tmp_path / "none") for steps in (100, 240))
    assert short.source == long.source == "rough"
    assert 0 < (short.seconds or 0) < (long.seconds or 0) < 3600
    bare = estimate(spec(adapter=None), tmp_path)
    assert 0 < (bare.seconds or 0) < (short.seconds or 0)


def test_a_base_that_is_missing_gives_no_time(tmp_path: Path) -> None:
    found = estimate(spec(base=str(tmp_path / "nowhere")), tmp_path)
    assert (found.seconds, found.source) == (None, "unknown")
    assert "nowhere" in str(found)


def test_a_sum_is_as_good_as_its_worst_part() -> None:
    parts = [Duration(60, "same run", "Known."), Duration(30, "rough", "Rough."), Duration(30, "same base", "Base.")]
    assert total(parts) == Duration(120, "rough", "Rough.")
    assert total([]).seconds is None
    assert total([Duration(None, "unknown", "Why.")]) == Duration(None, "unknown", "Why.")


@pytest.mark.parametrize(
    ("plan", "rows", "words"),
    [
        ({"epochs": 3, "max_steps": 2000}, 4000, "750 steps (3 epochs; max_steps 2,000 is not reached)"),
        ({"epochs": 3}, 4000, "750 steps (3 epochs)"),
        ({"epochs": 1}, 16, "1 step (1 epoch)"),
        ({"epochs": 3, "max_steps": 60}, 4000, "60 steps (max_steps; 0.24 of 3 epochs)"),
    ],
)
def test_steps_are_told_with_what_limits_them(plan: dict[str, float], rows: int, words: str) -> None:
    assert describe_steps(TrainSpec.model_validate(plan), rows) == words


def test_rows_are_counted_without_tokenizing_them(tmp_path: Path) -> None:
    assert training_rows(DataSpec()) == 4000
    assert training_rows(DataSpec(validation=64)) == 3936
    assert training_rows(DataSpec(rows=100, validation=64)) == 100
    path = tmp_path / "own.csv"
    path.write_text("instruction,answer\n1 + 1?,2\n")
    data = DataSpec(task=f"own:{path}?form=number")
    assert training_rows(data) == 1
    path.write_text("instruction,answer\n1 + 1?,2\n1 + 2?,3\n")
    os.utime(path, (DAY, DAY))
    assert training_rows(data) == 2
