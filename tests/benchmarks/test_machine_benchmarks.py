"""The benchmarks of machines work: parts of each at the smallest shapes. What they measure is no matter here."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import scaling  # noqa: E402

TINY: dict[str, Any] = {**gpu.SMALL.config, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # what Trainer and peft say of each other
def test_the_parts_of_the_gpu_benchmark(tmp_path: Path) -> None:
    shape = gpu.SMALL._replace(config=TINY, rows=2, length=16, tokens=64)
    base = gpu._written(tmp_path / "base", shape.config)
    assert all(rate > 0 for rate in gpu.ceiling(shape).values())
    names = [name for name, _ in gpu.parts(shape, tmp_path)]
    groups = {n.split("/")[0]: sum(m.startswith(n.split("/")[0]) for m in names) for n in names}
    assert list(groups) == ["ways", "linear", "families", "study"]
    assert groups["ways"] == len(gpu.WAYS) + 3 + ("trl" in gpu.WAYS) and groups["families"] == 8
    for real in (False, True):
        rows = gpu.rows(shape, real)
        assert all(sum(len(row.ids) for row in step) == (64 if real else 32) for step in rows)
    trained = {name: gpu.way(name, shape, base, real=False) for name in gpu.WAYS}
    trained["deterministic"] = gpu.way("deterministic", shape, base, real=False)
    losses = [found["losses"] for found in trained.values()]
    assert all(some == pytest.approx(losses[0], rel=1e-4) for some in losses)  # they do the same work
    assert all(found["tokens_per_step"] == 32 for found in trained.values())
    found = gpu.family("parallel", shape, base, pack=False)
    assert found["steps"] == 4 and found["trainable"] == 2 * 2 * 2 * 256 * 64


def test_four_bits_take_the_place_of_the_projections() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    import torch
    from bitsandbytes.nn import Linear4bit

    model = scaling.Case(hidden=96, layers=2).model()
    gpu.in_four_bits(model, torch.float32)
    assert sum(isinstance(m, Linear4bit) for m in model.modules()) == 2 * 7


def test_an_exponent_is_that_of_the_law() -> None:
    xs = [1.0, 2.0, 5.0, 9.0]
    assert scaling.slope(xs, [3 * x**1.7 for x in xs]) == pytest.approx(1.7)
    assert scaling.spread([1.0, 1.0, 1.0]) == 0
    assert scaling.spread([1.0, 2.0]) == pytest.approx(12.706 * 0.5, rel=1e-4)  # of one degree of freedom


def test_an_axis_is_counted_and_agrees_with_the_formula() -> None:
    base = scaling.Case(hidden=64, layers=2, length=16, rows=1, data=8)
    found = scaling.along([(n, scaling.replace(base, rows=n)) for n in (1, 2, 4)], rounds=2)
    assert found["flops_exponent"] == pytest.approx(1, abs=0.01)
    # What lies below the lowest adapter is not gone back through; the formula leaves that out.
    assert all(1 < ratio < 1.1 for ratio in found["formula"])
    held = scaling.growth(6)
    assert held.tensors[-1] == held.tensors[0]


def test_of_experts_only_the_chosen_are_counted() -> None:
    base = scaling.Case(hidden=192, layers=2, length=16, rows=1, data=8)
    found = scaling.along([(n, scaling.replace(base, experts=n)) for n in (2, 4, 8)], rounds=2)
    assert found["flops_exponent"] == pytest.approx(0, abs=0.01)
    assert all(1 < ratio < 1.1 for ratio in found["formula"])


def test_kept_scaling_figures_cover_all_axes() -> None:
    kept = json.loads((BENCHMARKS / "scaling.json").read_text(encoding="utf-8"))
    assert list(kept["axes"]) == [name for name, _ in scaling.axes(quick=False)]
    assert list(kept["axes"]) == list(scaling.WHY)
    assert scaling.page(kept) == scaling.PAGE.read_text(encoding="utf-8")
    assert [p["shape"] for p in kept["projection"]] == ["7B", "13B", "70B"]
