"""Curves read from a growing log, and what is remarkable about them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llm_adapters_lab.events import LeftOut, Norms, Started, Step, Validated
from llm_adapters_lab.results.curves import Curves
from llm_adapters_lab.results.health import hints
from llm_adapters_lab.runs.record import Run


def step(number: int, loss: float = 1.0, norm: float = 0.5, of: int = 100, seconds: float | None = None) -> Step:
    after = 0.1 * number if seconds is None else seconds
    return Step(number, of, loss, 1e-3, norm, 100 * number, after, 1000.0, 0.1 * (of - number))


def curves(losses: Any, norms: Any = None, of: int = 100, **more: Any) -> Curves:
    """Return the curves of a training with the given losses and gradient norms."""
    made = Curves(Run(Path("none")))
    given = list(losses)
    norms = list(norms or [0.5] * len(given))
    made.add([step(i + 1, loss, norm, of).to_json() for i, (loss, norm) in enumerate(zip(given, norms, strict=True))])
    return made


def falling(count: int, end: float = 0.3) -> list[float]:
    return [end + 3 * math.exp(-8 * i / count) for i in range(count)]


def test_a_growing_log_is_read_from_where_it_was_left(tmp_path: Path) -> None:
    record = Run(tmp_path / "run")
    found = Curves(record)
    assert not found.read()
    record.folder.mkdir()
    record.append(Started("run", 100, 1, 1, "cpu"))
    assert found.read()
    assert (len(found), found.planned) == (0, 100)
    assert found.points() == {key: [] for key in found.points()}
    for number in range(1, 51):
        record.append(step(number, loss=float(number), norm=number / 10))
    record.append(Norms(50, {"a": 3.0, "b": 4.0}))
    record.append(Validated(50, 2.5, True))
    assert found.read()
    assert not found.read()
    points = found.points()
    assert points["step"] == list(range(1, 51))
    assert points["loss"] == points["mean"] == [float(number) for number in range(1, 51)]
    assert points["speed"] == pytest.approx([1000.0] * 50)
    assert (found.validation, found.distances) == ([(50, 2.5)], [(50, 5.0)])
    few = found.points(10)
    assert few["step"] == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    assert few["mean"][:2] == [3.0, 8.0]
    assert few["gradient_norm"][-1] == 5.0
    assert few["speed"] == pytest.approx([1000.0] * 10)
    with record.log.open("a", encoding="utf-8") as file:
        file.write('{"event": "Step", "st')
    assert not found.read()
    record.clear()
    record.append(step(1, loss=7.0))
    assert found.read()
    assert found.points()["loss"] == [7.0]
    assert found.distances == []


def test_a_long_log_has_few_points_and_is_read_in_pieces(tmp_path: Path) -> None:
    record = Run(tmp_path / "run")
    record.folder.mkdir()
    lines = (json.dumps(step(number, of=30_000).to_json()) for number in range(1, 30_001))
    record.log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    found = Curves(record)
    assert found.read(seconds=0)
    assert 0 < len(found) < 30_000
    while found.read(seconds=0):
        pass
    assert len(found) == 30_000
    points = found.points(300)
    assert {len(values) for values in points.values()} == {300}
    assert points["step"][-1] == 30_000


GOOD = {
    "as usual": curves(falling(100)),
    "just started": curves([3.0]),
    "no steps": curves([]),
    "noise": curves([0.5 + 0.3 * math.sin(i) + loss for i, loss in enumerate(falling(100))]),
    "large gradients at the start": curves(falling(100), [50.0] * 3 + [1.0] * 97),
    "solved, with a small gradient now and then": curves(
        falling(100), [4.0] * 5 + ([0.01] * 9 + [0.4]) * 9 + [0.01] * 5
    ),
    "solved late": curves([*falling(60), *[0.001] * 40]),
    "solved at the end": curves([*falling(95), *[0.001] * 5]),
}
BAD = {
    "The loss is nan since step 3.": curves([2.0, 1.0, math.nan, math.nan]),
    "The gradient norm is inf since step 2.": curves([2.0, 1.0], [1.0, math.inf]),
    "Loss and gradient are 0 in all 5 steps: no label is counted.": curves([0.0] * 5, [0.0] * 5),
    "The gradient is 0 in all 5 steps, at a loss of 2:": curves([2.0] * 5, [0.0] * 5),
    "The loss rose from 0.305 (step 60) to 5 (step 100).": curves([*falling(60), *[5.0] * 40]),
    "The loss does not fall: 3 over the first 20 steps, 3 over the last 20. Raise": curves([3.0] * 60),
    "The gradient norm jumped once, to 90 at step 51 (median before 0.5).": curves(
        falling(100), [0.5] * 50 + [90.0] + [0.5] * 49
    ),
    "The gradient norm jumped 2 times": curves(falling(100), [0.5] * 50 + [90.0, 80.0] + [0.5] * 48),
    "The loss is below 0.01 since step 20 of 100: the task is solved. train.max_steps = 30 would": curves(
        [*falling(20), *[0.001] * 40]
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_said_of_a_good_training(name: str) -> None:
    assert hints(GOOD[name]) == []


@pytest.mark.parametrize("words", BAD)
def test_what_is_remarkable_is_said_with_a_number_and_an_advice(words: str) -> None:
    found = hints(BAD[words])
    assert found[0].startswith(words)
    assert found[0].count(". ") >= 1
    assert len(found) == 1


def test_rows_validation_and_speed() -> None:
    found = curves(falling(100))
    found.add([LeftOut(100, too_long=30).to_json()])
    assert hints(found) == [
        "30 % of the rows are not learnt. Of 100 training rows: 30 longer than data.max_tokens, dropped. "
        "Raise data.max_tokens?"
    ]
    found = curves(falling(100))
    found.add(Validated(at, loss, best=False).to_json() for at, loss in ((20, 0.9), (60, 1.0), (100, 1.4)))
    assert hints(found)[0].startswith("The validation loss rose from 0.9 (step 20) to 1.4 (step 100).")
    found = curves(falling(80))
    found.add(step(80 + i, 0.3, seconds=8 + i).to_json() for i in range(1, 21))
    assert hints(found)[0].startswith("The speed fell to 100 tokens/s from 1,000.")
