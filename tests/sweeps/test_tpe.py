"""Benchmarks whose settings Optuna chooses."""

from pathlib import Path
from statistics import median
from typing import Any

import pytest

from llm_adapters_lab.runs.record import list_runs
from llm_adapters_lab.sweeps.benchmarks import Benchmark, benchmark

pytest.importorskip("optuna", reason="Optuna is an optional extra")
RATE = "train.learning_rate"


def fields(runs: int) -> dict[str, Any]:
    return {
        "spec": {
            "data": {"task": "mini-addsub", "rows": 96, "validation": 24},
            "train": {"batch": 8, "max_steps": 12},
            "eval": {"tasks": ["mini-addsub"], "rows": 8, "batch": 8},
        },
        "methods": {
            "lora": {"adapter": {"type": "lora", "rank": 4, "at": "attn+mlp"}},
            "series": {"adapter": "series", "search": {"adapter.bottleneck": {"choice": [4, 8]}}},
        },
        "search": {"by": "tpe", "runs": runs, "fields": {RATE: {"log-uniform": [1e-4, 0.1]}}},
        "seeds": [0],
    }


def test_a_search_continues_where_it_was(tmp_path: Path) -> None:
    outcome = benchmark(Benchmark.parse(fields(5)), root=tmp_path)
    assert not outcome.unfinished and len(outcome.trials) == 10
    lora, series = ([t for t in outcome.trials if t.contest == place] for place in outcome.benchmark.contests())
    assert len({t.changes[RATE] for t in lora}) == 5 and {t.changes["adapter.bottleneck"] for t in series} <= {4, 8}
    before = len(list_runs(tmp_path))
    again = benchmark(Benchmark.parse(fields(5)), root=tmp_path)
    assert [t.run.id for t in again.trials] == [t.run.id for t in outcome.trials] and len(list_runs(tmp_path)) == before
    more = benchmark(Benchmark.parse(fields(6)), root=tmp_path)
    assert [t.run.id for t in more.trials if t.contest == more.benchmark.contests()[0]][:5] == [t.run.id for t in lora]


def test_later_settings_follow_from_earlier_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_adapters_lab.sweeps import searching

    def best(wanted: float) -> list[float]:
        asker = searching.Asker(Benchmark.parse(fields(5)).ranges("lora"), seed=0)
        rates = []
        for _ in range(30):
            changes, tell = asker.ask()
            rates.append(changes[RATE])
            tell(abs(changes[RATE] - wanted) / wanted)
        return rates[-10:]

    assert median(best(2e-4)) < 1e-3 and median(best(5e-2)) > 1e-2
