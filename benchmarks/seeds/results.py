"""What the experiments of this folder share: runs of three seeds, their numbers as JSON, and a row of docs/seeds.md."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from llm_adapters_lab import RunSpec, run
from llm_adapters_lab.runs.record import Run

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "seeds.md"
SEEDS = (0, 1, 2)


def options(description: str | None) -> argparse.Namespace:
    """Return the options that every experiment takes."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("runs/seeds"), help="folder of the runs; finished ones count")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    return asked


def finished(root: Path, seed: int, **fields: Any) -> Run:
    """Return a finished run of the packaged model."""
    record = run(RunSpec.parse({"base": "nano", "seed": seed, **fields}), root=root)
    accuracy = {name: round(score["accuracy"], 3) for name, score in record.summary["scores"].items()}
    print(record.id, accuracy, flush=True)
    return record


def accuracy(record: Run) -> float:
    """Return the mean accuracy over the tasks of a run."""
    return statistics.fmean(score["accuracy"] for score in record.summary["scores"].values())


def each(values: Iterable[float], digits: int = 2) -> str:
    """Return numbers as text, one for each seed."""
    return " / ".join(f"{value:.{digits}f}" for value in values)


def record(name: str, system: str, asked: str, reached: str, control: str, numbers: Any) -> None:
    """Write the numbers of an experiment to `name`.json, and its row into the table of docs/seeds.md."""
    (HERE / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    head = TABLE.read_text(encoding="utf-8").splitlines()
    row = f"| [{system}](../benchmarks/seeds/{name}.py) | {asked} | {reached} | {control} |"
    kept = [line for line in head if not line.startswith(f"| [{system}](")]
    last = max(i for i, line in enumerate(kept) if line.startswith("|"))
    TABLE.write_text("\n".join([*kept[: last + 1], row, *kept[last + 1 :]]) + "\n", encoding="utf-8")
    print(row)
